"""Every registered model keeps the protocol of `layers.Classifier`; a new entry is tested by being there."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain.config import ModelConfig
from jaxtrain.errors import UserError
from jaxtrain.models import create_model, list_models, model_spec
from jaxtrain.models.registry import FAMILIES

TIMM_PARAMETERS = {
    "convnext_atto": 3_695_520,
    "convnext_base": 88_591_464,
    "convnext_femto": 5_217_784,
    "convnext_large": 197_767_336,
    "convnext_nano": 15_593_560,
    "convnext_pico": 9_045_672,
    "convnext_small": 50_223_688,
    "convnext_tiny": 28_589_128,
    "deit3_base_patch16_224": 86_585_320,
    "deit3_large_patch16_224": 304_374_760,
    "deit3_medium_patch16_224": 38_849_512,
    "deit3_small_patch16_224": 22_059_496,
    "deit_base_patch16_224": 86_567_656,
    "deit_base_patch16_384": 86_859_496,
    "deit_small_patch16_224": 22_050_664,
    "deit_tiny_patch16_224": 5_717_416,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "efficientnet_lite3": 8_197_096,
    "efficientnet_lite4": 13_006_568,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "tf_efficientnet_lite0": 4_652_008,
    "tf_efficientnet_lite1": 5_416_680,
    "tf_efficientnet_lite2": 6_092_072,
    "tf_efficientnet_lite3": 8_197_096,
    "tf_efficientnet_lite4": 13_006_568,
    "vit_base_patch14_dinov2": 87_348_712,
    "vit_base_patch14_reg4_dinov2": 87_351_016,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_384": 86_859_496,
    "vit_base_patch32_224": 88_224_232,
    "vit_base_patch32_384": 88_297_192,
    "vit_base_patch8_224": 86_576_872,
    "vit_large_patch14_224": 304_203_752,
    "vit_large_patch14_dinov2": 305_392_616,
    "vit_large_patch14_reg4_dinov2": 305_395_688,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch16_384": 304_715_752,
    "vit_large_patch32_224": 306_535_400,
    "vit_large_patch32_384": 306_632_680,
    "vit_small_patch14_dinov2": 22_441_192,
    "vit_small_patch14_reg4_dinov2": 22_442_344,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch16_384": 22_196_584,
    "vit_small_patch32_224": 22_878_952,
    "vit_small_patch32_384": 22_915_432,
    "vit_small_patch8_224": 22_055_272,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_tiny_patch16_384": 5_790_376,
    "wide_resnet50_2": 68_883_240,
}
"""timm 1.0.29.dev0 (commit aa4b5850), torch 2.13, each model made on the meta device:
`sum(p.numel() for p in timm.create_model(name, num_classes=1000).parameters())`."""

TINY = {
    "cnn_tiny": 12,
    "convnext_test": 24,
    "efficientnet_lite_test": 32,
    "linear": 8,
    "mlp_tiny": 8,
    "resnet_tiny": 12,
    "vit_test": 16,
    "wide_resnet_tiny": 8,
}
"""Models that are run, by the side of their images."""

NORMALISED = ("cnn_tiny", "efficientnet_lite_test", "resnet_tiny", "wide_resnet_tiny")
DEEP = tuple(name for name in TINY if "drop_path_rate" in FAMILIES[model_spec(name).family].options)


@functools.cache
def traced(name):
    """The model as shapes, and the shapes of what it gives for two images; nothing is computed."""
    size = model_spec(name).image_size

    def run(images):
        model = create_model(name, num_classes=1000, image_size=size, dtype=jnp.bfloat16)
        features = model.features(images)
        embedding = model.pool(features)
        return features, embedding, model.head(embedding), nnx.to_pure_dict(nnx.state(model, nnx.Param))

    return jax.eval_shape(run, jnp.zeros((2, size, size, 3), jnp.bfloat16))


@pytest.mark.parametrize("name", list_models())
def test_shapes_and_types(name):
    features, embedding, logits, params = traced(name)
    assert features.ndim in (3, 4)
    assert features.shape[0] == 2
    assert embedding.shape == (2, features.shape[-1])
    assert (logits.shape, logits.dtype, embedding.dtype) == ((2, 1000), jnp.float32, jnp.float32)
    assert params["head"]["kernel"].shape == (features.shape[-1], 1000)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", TIMM_PARAMETERS)
def test_parameters_are_as_many_as_in_timm(name):
    assert model_spec(name).timm_name == name
    assert sum(x.size for x in jax.tree.leaves(traced(name)[3])) == TIMM_PARAMETERS[name]


def test_no_model_of_timm_is_left_out_of_the_table():
    assert {name for name in list_models() if model_spec(name).timm_name} == set(TIMM_PARAMETERS)


def test_each_family_has_a_model_that_is_run():
    assert {model_spec(name).family for name in TINY} == set(FAMILIES)


@functools.cache
def setup(name, **options):
    """Graph, parameters (moved away from their zeros and ones), statistics, images, labels."""
    size = TINY[name]
    config = ModelConfig(name=name, **options)

    def make():
        return nnx.split(create_model(config, num_classes=5, image_size=size), nnx.Param, ...)

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: create_model(config, num_classes=5, image_size=size)))
    params, rest = jax.jit(lambda: tuple(nnx.to_pure_dict(state) for state in make()[1:]))()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    images = jnp.asarray(rng.normal(size=(6, size, size, 3)), jnp.float32)
    return graphdef, params, rest, images, jnp.asarray(rng.integers(0, 5, 6))


@functools.cache
def evaluated(name):
    graphdef, params, rest, images, _ = setup(name)

    def run(params, rest, images, key):
        model = nnx.merge(graphdef, params, rest)
        embedding = model.embed(images)
        logits = model(images)
        same = model(images, key=key)
        statistics = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return model.features(images), embedding, logits, model.head(embedding), same, statistics

    return jax.jit(run)(params, rest, images, jax.random.key(0))


def train_step(graphdef, params, rest, images, labels, key):
    """Loss, logits, statistics after, and gradients: what a trainer takes from a model."""

    def loss(params):
        model = nnx.merge(graphdef, params, rest)
        logits = model(images, train=True, key=key)
        after = nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[2])
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -chosen.mean(), (logits, after)

    (value, (logits, after)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return value, logits, after, gradients


@functools.cache
def trained(name, seed=None, **options):
    graphdef, params, rest, images, labels = setup(name, **options)
    key = None if seed is None else jax.random.key(seed)
    return jax.jit(train_step, static_argnums=0)(graphdef, params, rest, images, labels, key)


@pytest.mark.parametrize("name", TINY)
def test_head_of_embedding_is_the_model(name):
    features, embedding, logits, from_embedding, with_key, _ = evaluated(name)
    assert features.shape[-1] == embedding.shape[-1]
    np.testing.assert_array_equal(from_embedding, logits)
    np.testing.assert_array_equal(with_key, logits)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_finite_gradient(name):
    _, params, *_ = setup(name)
    gradients = trained(name)[3]
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert np.any(gradient != 0), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", TINY)
def test_statistics_move_in_training_alone(name):
    before = jax.tree.leaves(setup(name)[2])
    assert bool(before) == (name in NORMALISED)
    for old, new, evaluation in zip(
        before, jax.tree.leaves(trained(name)[2]), jax.tree.leaves(evaluated(name)[5]), strict=True
    ):
        assert np.all(old != new)
        np.testing.assert_array_equal(old, evaluation)


@pytest.mark.parametrize("name", DEEP)
def test_drop_path_needs_a_key_and_follows_it(name):
    plain = trained(name)[1]
    np.testing.assert_allclose(trained(name, drop_path_rate=0.5)[1], plain, rtol=1e-5, atol=1e-6)
    first, again = (trained(name, seed=1, drop_path_rate=rate)[1] for rate in (0.5, 0.5))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, plain, atol=1e-4)
    assert not np.allclose(first, trained(name, seed=2, drop_path_rate=0.5)[1], atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "cnn_tiny"])
def test_dropout_needs_a_key(name):
    plain = trained(name)[1]
    np.testing.assert_allclose(trained(name, drop_rate=0.5)[1], plain, rtol=1e-5, atol=1e-6)
    assert not np.allclose(trained(name, seed=1, drop_rate=0.5)[1], plain, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(TINY) - {"linear"}))
def test_rematerialisation_changes_nothing(name):
    options = {"drop_path_rate": 0.5} if name in DEEP else {}
    plain, remat = trained(name, seed=1, **options), trained(name, seed=1, remat=True, **options)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_rematerialisation_is_in_the_program():
    graphdef, *arguments = setup("cnn_tiny", remat=True)
    text = str(jax.make_jaxpr(functools.partial(train_step, graphdef))(*arguments, None))
    assert text.count("prevent_cse") >= 2


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_is_close_to_float32(name):
    _, params, rest, images, _ = setup(name)
    size = TINY[name]

    def run(params, rest, images):
        def make():
            return create_model(name, num_classes=5, image_size=size, dtype=jnp.bfloat16)

        return nnx.merge(nnx.graphdef(nnx.eval_shape(make)), params, rest)(images, train=True)

    logits = jax.jit(run)(params, rest, images)
    assert logits.dtype == jnp.float32
    expected = trained(name)[1]
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()
    assert name == "linear" or np.abs(logits - expected).max() > 0


@pytest.mark.parametrize("name", ["cnn_tiny", "vit_test"])
def test_a_step_can_be_mapped_over_members(name):
    graphdef, params, rest, images, labels = setup(name)
    members = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), params)
    keys = jax.random.split(jax.random.key(0), 2)
    step = jax.vmap(functools.partial(train_step, graphdef), in_axes=(0, None, None, None, 0))
    logits = jax.jit(step)(members, rest, images, labels, keys)[1]
    np.testing.assert_allclose(logits[0], trained(name)[1], rtol=1e-4, atol=1e-4)


def test_same_seed_same_bits_also_traced():
    def make(seed):
        model = create_model("cnn_tiny", num_classes=3, image_size=8, seed=seed)
        return nnx.to_pure_dict(nnx.state(model))

    static = [jax.tree.leaves(jax.jit(lambda seed=seed: make(seed))()) for seed in (7, 7, 8, 2**32 - 1)]
    traced_seed = jax.tree.leaves(jax.jit(make)(7))
    for a, b, c in zip(static[0], static[1], traced_seed, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert any(np.any(a != b) for a, b in zip(static[0], static[2], strict=True))
    assert any(np.any(a != b) for a, b in zip(static[0], static[3], strict=True))


def test_the_head_can_be_swapped(create):
    model = create("cnn_tiny", num_classes=3, image_size=8)
    model.head = nnx.Linear(model.num_features, 7, rngs=nnx.Rngs(0))
    assert model(jnp.zeros((2, 8, 8, 3))).shape == (2, 7)


def test_grey_images():
    for name, size in TINY.items():
        model = functools.partial(create_model, name, num_classes=3, image_size=size, channels=1)
        logits = jax.eval_shape(lambda images, model=model: model()(images), jnp.zeros((2, size, size, 1)))
        assert logits.shape == (2, 3)


def test_list_models_matches_patterns():
    assert list_models("resnet1*") == ["resnet101", "resnet152", "resnet18", "resnet18_cifar"]
    assert list_models("nothing*") == []
    assert list_models() == sorted(list_models())


def test_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match=r"^no model 'resnet81'; did you mean 'resnet18'\?$"):
        create_model("resnet81", num_classes=3, image_size=32)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("cnn_small", "patch_size", 4),
        ("cnn_small", "drop_path_rate", 0.1),
        ("resnet18", "registers", 4),
        ("vit_test", "stem", "cifar"),
        ("wide_resnet16_4", "stem", "cifar"),
    ],
)
def test_an_option_that_a_family_lacks_is_refused(name, option, value):
    config = ModelConfig(name=name, **{option: value})
    with pytest.raises(UserError, match=rf"model {name} has no option model\.{option}; it has: .*drop_rate"):
        create_model(config, num_classes=3, image_size=32)


def test_the_table_is_read_without_jax():
    code = "import sys; from jaxtrain.models import list_models; list_models(); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
