"""Every registered model keeps the protocol of `classifier.Classifier`; a new entry is tested by being there."""

import functools
import math
import subprocess
import sys
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain.config import ModelConfig
from jaxtrain.errors import UserError
from jaxtrain.models import create_model, list_models, model_spec, registry
from jaxtrain.models.registry import FAMILIES, ModelSpec, catalogue
from jaxtrain.models.variants import VARIANTS
from jaxtrain.trees import flat
from tests.marks import mostly_slow
from tests.models.shapes import without_values


def plainest():
    """The smallest model of each kind: a family with the arguments that it is given. Others differ in numbers alone."""
    kinds = {}
    for name in sorted(list_models(), key=lambda name: int(catalogue()[name]["parameters"])):
        spec = model_spec(name)
        kwargs = {key: value for key, value in spec.kwargs.items() if key not in ("padding", "epsilon")}
        words = sorted(value for value in kwargs.values() if isinstance(value, str))
        kinds.setdefault((spec.family, *sorted(kwargs), *words), name)
    return sorted(kinds.values())


def up_to(millions, names):
    return [name for name in names if int(catalogue()[name]["parameters"]) < millions * 1e6]


TRACED = [name if name in up_to(4, plainest()) else pytest.param(name, marks=pytest.mark.slow)
          for name in up_to(60, plainest())]  # fmt: skip


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
VARIANTS_RUN = {
    "swin": ("swin", {"width": 8, "depths": (2, 1), "heads": (2, 2), "windows": (2, 2)}, 16),
    "dinov3": ("eva", {"patch_size": 8, "width": 16, "depth": 2, "heads": 2, "hidden": 24, "rope": "dinov3",
               "registers": 1, "layer_scale": 1e-5, "pool": "normed_avg", "norms": ("attn", "mlp")}, 16),
    "resnet_deep": ("resnet", {"depths": (1, 1), "widths": (8, 16), "bottleneck": True, "deep": (8, 8), "groups": 2,
                    "average_shortcut": True, "anti_alias": True, "squeeze": True}, 24),
    "regnet": ("regnet", {"depths": (1, 1), "widths": (8, 16), "group": 4}, 16),
    "efficientnet": ("efficientnet", {"stages": ("cn_r1_k3_s1_e1_c8_skip ds_r1_k3_s1_e1_c8_se0.25", "er_r2_k3_s2_e2_c8",
                     "ir_r1_k3_s2_e2_c16_se0.25_nre uir_r1_a3_k3_s1_e2_c16"), "stem": 8, "last": 16,
                     "act": "hard_swish", "head": "pooled_norm"}, 16),
    "convnextv2": ("convnext", {"depths": (1, 1), "widths": (8, 16), "response_norm": True}, 16),
    "vit_map": ("vit", {"patch_size": 8, "width": 16, "depth": 2, "heads": 2, "hidden": 24, "pre_norm": True,
                        "act": "quick_gelu", "pool": "map", "class_token": False}, 16),
}  # fmt: skip
"""Networks that are run in the slow suite, as rows of the registry for these tests alone."""
SPECS = {name: ModelSpec(name, family, MappingProxyType(kwargs), size)
         for name, (family, kwargs, size) in VARIANTS_RUN.items()}  # fmt: skip
SIDES = TINY | {name: spec.image_size for name, spec in SPECS.items()}
FAST = {"cnn_tiny", "resnet_tiny", "vit_test"}
RUN = mostly_slow([*TINY, *SPECS], FAST)


@pytest.fixture(autouse=True)
def rows(monkeypatch, request):
    """The row that a test asks for."""
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    if name in SPECS:
        monkeypatch.setitem(registry._MODELS, name, SPECS[name])


NORMALISED = {"cnn", "efficientnet", "regnet", "resnet", "wide_resnet"}
HAVE_DEPTH = (name for name in TINY if "drop_path_rate" in FAMILIES[model_spec(name).family].options)
DEEP = mostly_slow([*HAVE_DEPTH, *SPECS], FAST)


@pytest.mark.parametrize("name", TRACED)
def test_shapes_and_types(name):
    size = model_spec(name).image_size

    def run(images):
        model = create_model(name, num_classes=1000, image_size=size, dtype=jnp.bfloat16)
        embedding = model.embed(images)
        return model.features(images), embedding, model.head(embedding), nnx.to_pure_dict(nnx.state(model, nnx.Param))

    features, embedding, logits, params = jax.eval_shape(run, jnp.zeros((2, size, size, 3), jnp.bfloat16))
    assert features.ndim in (3, 4)
    assert features.shape[0] == 2
    assert embedding.shape == (2, int(catalogue()[name]["embedding"]))
    assert (logits.shape, logits.dtype, embedding.dtype) == ((2, 1000), jnp.float32, jnp.float32)
    assert params["head"]["kernel"].shape == (embedding.shape[1], 1000)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


@pytest.fixture
def shapes_alone(monkeypatch):
    without_values(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_as_many_as_the_catalogue_says(family, shapes_alone):
    """Those of timm's models were counted by timm."""

    @functools.cache
    def counted(name):
        model = create_model(name, num_classes=1000, image_size=model_spec(name).image_size)
        leaves = flat(nnx.to_pure_dict(nnx.state(model, nnx.Param))).values()
        return sum(math.prod(leaf.shape) for leaf in leaves), model.num_features

    first = {}
    for name in [name for name in list_models() if model_spec(name).family == family]:
        spec, said = model_spec(name), catalogue()[name]
        shaping = {key: value for key, value in spec.kwargs.items() if key not in ("act", "epsilon", "padding")}
        key = (str(sorted(shaping.items())), spec.image_size if family in ("vit", "eva") else None)
        assert (name, *counted(first.setdefault(key, name))) == (name, int(said["parameters"]), int(said["embedding"]))


def test_catalogue_and_variants_have_the_same_names():
    assert list_models() == sorted(VARIANTS) == sorted(catalogue())
    assert [name for name in list_models() if model_spec(name).timm_name not in (None, name)] == []


def test_each_family_has_a_model_that_is_run():
    assert {model_spec(name).family for name in TINY} | {spec.family for spec in SPECS.values()} == set(FAMILIES)


def graph(name, dtype=jnp.float32, **options):
    """The structure of a model for the images of `inputs`."""
    config = ModelConfig(name=name, **options)
    return nnx.eval_shape(lambda: create_model(config, num_classes=5, image_size=SIDES[name], dtype=dtype))


@functools.cache
def inputs(name):
    """Parameters (none of them 0 or 1, as some are at first), statistics, images and labels."""
    rng = np.random.default_rng(0)

    def random(path, leaf):
        fan_in = max(np.prod(leaf.shape[:-1]), 1)
        around, spread = {"scale": (1, 0.1), "var": (1, 0), "kernel": (0, fan_in**-0.5)}.get(path[-1].key, (0, 0.1))
        return jnp.asarray(around + spread * rng.normal(size=leaf.shape), jnp.float32)

    _, params, rest = nnx.split(graph(name), nnx.Param, ...)
    params, rest = (jax.tree_util.tree_map_with_path(random, nnx.to_pure_dict(x)) for x in (params, rest))
    images = rng.normal(size=(6, SIDES[name], SIDES[name], 3)).astype(np.float32)
    return params, rest, images, rng.integers(0, 5, 6)


def rebuild(name, params, rest, **options):
    return nnx.merge(nnx.graphdef(graph(name, **options)), params, rest)


@functools.cache
def evaluated(name):
    params, rest, images, _ = inputs(name)

    def run(params, rest, images, key):
        model = rebuild(name, params, rest)
        embedding = model.embed(images)
        logits = model(images)
        same = model(images, key=key)
        statistics = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return model.features(images), embedding, logits, model.head(embedding), same, statistics

    return jax.jit(run)(params, rest, images, jax.random.key(0))


def train_step(model_of, params, rest, images, labels, key):
    """Loss, logits, statistics after, and gradients: what a trainer takes from a model."""

    def loss(params):
        model = model_of(params, rest)
        logits = model(images, train=True, key=key)
        after = nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[2])
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -chosen.mean(), (logits, after)

    (value, (logits, after)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return value, logits, after, gradients


def step(name, **options):
    return functools.partial(train_step, functools.partial(rebuild, name, **options))


@functools.cache
def trained(name, seed=None, **options):
    key = None if seed is None else jax.random.key(seed)
    return jax.jit(step(name, **options))(*inputs(name), key)


@pytest.mark.parametrize("name", RUN)
def test_head_of_embedding_is_the_model(name):
    features, embedding, logits, from_embedding, with_key, _ = evaluated(name)
    assert features.shape[-1] == embedding.shape[-1]
    np.testing.assert_array_equal(from_embedding, logits)
    np.testing.assert_array_equal(with_key, logits)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", RUN)
def test_every_parameter_gets_a_finite_gradient(name):
    params = inputs(name)[0]
    gradients = trained(name)[3]
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert np.any(gradient != 0), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", RUN)
def test_statistics_move_in_training_alone(name):
    before = jax.tree.leaves(inputs(name)[1])
    assert bool(before) == (model_spec(name).family in NORMALISED)
    for old, new, evaluation in zip(
        before, jax.tree.leaves(trained(name)[2]), jax.tree.leaves(evaluated(name)[5]), strict=True
    ):
        assert np.all(old != new)
        np.testing.assert_array_equal(old, evaluation)


def program(name, **options):
    """The text of a training step without a key."""
    return str(jax.make_jaxpr(step(name, **options))(*inputs(name), None))


@pytest.mark.parametrize("name", RUN)
def test_nothing_is_dropped_without_a_key(name):
    deep = "drop_path_rate" in FAMILIES[model_spec(name).family].options
    options = {"drop_rate": 0.9} | ({"drop_path_rate": 0.9} if deep else {})
    assert program(name, **options) == program(name)


def drops(name, **options):
    """Logits in training with two keys: whether the same key repeats, whether another differs."""
    params, rest, images, _ = inputs(name)
    run = jax.jit(lambda key: rebuild(name, params, rest, **options)(images, train=True, key=key))
    first, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (1, 1, 2))
    return (first == again).all(), np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("name", DEEP)
def test_drop_path_follows_the_key(name):
    assert drops(name, drop_path_rate=0.9) == (True, True)


@pytest.mark.parametrize("name", ["linear", "cnn_tiny"])
def test_dropout_follows_the_key(name):
    assert drops(name, drop_rate=0.5) == (True, True)


@pytest.mark.slow
def test_rematerialisation_changes_nothing():
    plain, remat = (trained("resnet_tiny", seed=1, drop_path_rate=0.5, remat=r) for r in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(a).max()))


@pytest.mark.parametrize("name", mostly_slow([name for name in [*TINY, *SPECS] if name != "linear"], FAST))
def test_rematerialisation_is_in_the_program(name):
    assert "prevent_cse" not in program(name)
    assert "prevent_cse" in program(name, remat=True)


@pytest.mark.parametrize("name", RUN)
def test_bfloat16_is_close_to_float32(name):
    params, rest, images, _ = inputs(name)
    logits = jax.jit(lambda images: rebuild(name, params, rest, dtype=jnp.bfloat16)(images))(images)
    expected = evaluated(name)[2]
    assert logits.dtype == jnp.float32
    difference = np.abs(logits - expected).max()
    assert difference < 0.1 * np.abs(expected).max()
    assert name == "linear" or difference > 0


@pytest.mark.parametrize("name", mostly_slow(["cnn_tiny", "vit_test"], {"cnn_tiny"}))
def test_a_step_can_be_mapped_over_members(name):
    params, rest, images, labels = inputs(name)
    members = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), params)
    keys = jax.random.split(jax.random.key(0), 2)
    mapped = jax.vmap(step(name), in_axes=(0, None, None, None, 0))
    logits = jax.jit(mapped)(members, rest, images, labels, keys)[1]
    np.testing.assert_allclose(logits[0], trained(name)[1], rtol=1e-4, atol=1e-4)


def test_same_seed_same_bits_also_traced():
    def make(seed):
        model = create_model("mlp_tiny", num_classes=3, image_size=4, seed=seed)
        return nnx.to_pure_dict(nnx.state(model))

    static = [jax.tree.leaves(jax.jit(lambda seed=seed: make(seed))()) for seed in (7, 7, 8, 2**32 - 1)]
    traced_seed = jax.tree.leaves(jax.jit(make)(7))
    for a, b, c in zip(static[0], static[1], traced_seed, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert any(np.any(a != b) for a, b in zip(static[0], static[2], strict=True))
    assert any(np.any(a != b) for a, b in zip(static[0], static[3], strict=True))


def test_the_head_can_be_swapped():
    def run(images):
        model = create_model("cnn_tiny", num_classes=3, image_size=8)
        model.head = nnx.Linear(model.num_features, 7, rngs=nnx.Rngs(0))
        return model(images)

    assert jax.eval_shape(run, jnp.zeros((2, 8, 8, 3))).shape == (2, 7)


@pytest.mark.parametrize("name", RUN)
def test_grey_images(name):
    def run(images):
        return create_model(name, num_classes=3, image_size=SIDES[name], channels=1)(images)

    assert jax.eval_shape(run, jnp.zeros((2, SIDES[name], SIDES[name], 1))).shape == (2, 3)


def test_list_models_matches_patterns():
    assert list_models("resnet18*") == ["resnet18", "resnet18_cifar", "resnet18d"]
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
