"""The public functions: policies, seeds, ranges, every transformation of JAX they run in."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxtrain.config import AugmentConfig
from jaxtrain.data.augment import augment, mix, normalize, prepare_eval, resolve_augment
from jaxtrain.errors import UserError

OPTIONS = {
    "pad+flips": {"crop": "pad", "pad": 2, "hflip": 0.5, "vflip": 0.5},
    "turned": {"crop": "pad", "pad": 1, "rotate": 20.0, "zoom": 0.2, "hflip": 0.5},
    "colour": {"color_jitter": 0.4, "randaugment_layers": 2, "randaugment_magnitude": 9.0},
    "everything": {
        "crop": "random_resized",
        "hflip": 0.5,
        "vflip": 0.5,
        "rotate": 10.0,
        "zoom": 0.1,
        "color_jitter": 0.3,
        "randaugment_layers": 1,
        "randaugment_magnitude": 5.0,
        "erasing": 0.5,
    },
}


def config(size=16, flips=True, policy="none", channels=3, **options):
    options = AugmentConfig(policy=policy, **options)
    return resolve_augment(options, image_size=size, flips=flips, channels=channels)


def batch(count=8, height=16, width=16, channels=3, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    return jax.random.split(jax.random.key(seed), count), jnp.asarray(images)


_jitted = jax.jit(augment, static_argnums=0, static_argnames="image_size")


def run(options, keys, images, size=16):
    return np.asarray(_jitted(options, keys, images, image_size=size))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels"), zip(OPTIONS, (1, 3, 1, 3), strict=True))
def test_an_image_depends_on_its_key_alone(name, channels):
    """Not on its neighbours, its place, or the size of the batch; and another key gives another image."""
    options, (keys, images) = config(**OPTIONS[name]), batch(channels=channels)
    results = run(options, keys, images)
    assert results.dtype == np.float32
    assert results.shape == (8, 16, 16, channels)
    assert results.min() >= 0
    assert results.max() <= 1
    order = np.array([3, 7, 0, 1, 6, 2, 5, 4])
    np.testing.assert_array_equal(run(options, keys[order], images[order]), results[order])
    np.testing.assert_array_equal(run(options, keys, images), results)
    np.testing.assert_array_equal(run(options, keys[5:6], images[5:6]), results[5:6])
    same_image = jnp.repeat(images[:1], 8, axis=0)
    assert np.ptp(run(options, keys, same_image), axis=0).max() > 0.1


@pytest.mark.parametrize(
    ("name", "shape"),
    [("none", (8, 40)), ("pad+flips", (24, 20)), ("turned", (24, 20)), ("everything", (8, 40))],
)
def test_any_input_size_comes_out_at_the_image_size(name, shape):
    keys, images = batch(2, *shape)
    results = run(config(**OPTIONS.get(name, {})), keys, images)
    assert results.shape == (2, 16, 16, 3)
    assert np.isfinite(results).all()
    assert results.max() > 0.3


def test_resizing_is_pils():
    keys, images = batch(3, 24, 20)
    for image, result in zip(np.asarray(images), run(config(), keys, images), strict=True):
        expected = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR))
        assert np.abs(255 * result - expected).max() <= 1.01


def test_nothing_on_is_nothing_done():
    keys, images = batch()
    np.testing.assert_allclose(run(config(), keys, images), np.asarray(images, np.float64) / 255, atol=1e-7)
    np.testing.assert_array_equal(run(config(), keys, images), prepare_eval(images))
    program = jax.jit(lambda k, x: augment(config(), k, x, image_size=16)).lower(keys, images).as_text()
    for operation in ("gather", "while", "threefry", "dot_general"):
        assert operation not in program
    zeros = {"crop": "pad", "pad": 0, "color_jitter": 0.0, "zoom": 0.0, "rotate": 0.0, "erasing": 0.0}
    np.testing.assert_array_equal(run(config(**zeros), keys, images), prepare_eval(images))


def test_traced_strengths_of_0_are_the_identity():
    keys, images = batch()
    names = ("hflip", "rotate", "color_jitter", "erasing")

    def member(strength):
        return augment(config().model_copy(update=dict.fromkeys(names, strength)), keys, images, image_size=16)

    results = jax.jit(jax.vmap(member))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(results[0], prepare_eval(images), atol=1e-6)
    assert np.abs(results[1] - prepare_eval(images)).max() > 0.1
    fixed = {**dict.fromkeys(names, 0.5)}
    np.testing.assert_allclose(results[1], run(config(**fixed), keys, images), atol=1e-4)


def test_one_option_leaves_the_draws_of_the_others():
    keys, images = batch(64)
    flipped = run(config(hflip=0.5), keys, images)
    both = run(config(hflip=0.5, color_jitter=1e-3), keys, images)
    np.testing.assert_allclose(flipped, both, atol=0.01)


def test_flips_have_their_probability():
    count = 3000
    keys, images = batch(count, 4, 4)
    left_right = run(config(4, hflip=0.3), keys, images, 4)
    original = np.asarray(prepare_eval(images))
    mirrored = (left_right == original[:, :, ::-1]).all((1, 2, 3))
    assert ((left_right == original).all((1, 2, 3)) ^ mirrored).all()
    assert abs(mirrored.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / count)
    upside_down = (run(config(4, vflip=1.0), keys, images, 4) == original[:, ::-1]).all()
    assert upside_down


def test_pad_and_crop_reaches_every_place_evenly():
    count = 2500
    keys, _ = batch(count, 1, 1)
    images = np.zeros((count, 9, 9, 1), np.uint8)
    images[:, 4, 4] = 255
    got = run(config(9, crop="pad", pad=2), keys, images, 9)
    places = np.argwhere(got[..., 0] == 1)
    assert len(places) == count
    seen = np.zeros((9, 9))
    np.add.at(seen, tuple(places[:, 1:].T), 1)
    assert (np.argwhere(seen).min(0) == 2).all()
    assert (np.argwhere(seen).max(0) == 6).all()
    assert np.abs(seen[2:7, 2:7] - count / 25).max() < 4.5 * np.sqrt(count / 25)


@pytest.mark.parametrize("size", [8, 28, 32, 48, 96])
@pytest.mark.parametrize("policy", ["auto", "light", "standard", "strong"])
def test_images_that_must_not_be_mirrored_never_are(policy, size):
    options = config(size, flips=False, policy=policy)
    assert options.hflip == 0
    assert options.vflip == 0


@pytest.mark.parametrize("size", [8, 96])
def test_auto_keeps_the_handedness_of_an_image(size):
    """An image brighter on its left stays so, but for flips; with flips allowed, about half turn round."""
    keys, _ = batch(64, 1, 1)
    ramp = np.linspace(250, 5, size).astype(np.uint8)
    images = np.tile(ramp[None, None, :, None], (64, size, 1, 1))

    def slopes(flips):
        got = run(config(size, flips, "auto"), keys, images, size)[
            :, size // 4 : -(size // 4), size // 4 : -(size // 4)
        ]
        return got[:, :, 0].mean((1, 2)) - got[:, :, -1].mean((1, 2))

    assert (slopes(flips=False) > 0).all()
    assert 0.25 < (slopes(flips=True) > 0).mean() < 0.75


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("size", [8, 28, 32, 64, 65, 224])
@pytest.mark.parametrize("policy", ["auto", "none", "light", "standard", "strong"])
def test_a_resolved_config_is_complete_and_resolves_to_itself(policy, size, flips):
    options = config(size, flips, policy)
    assert None not in options.model_dump().values()
    assert AugmentConfig.model_validate(options.model_dump()) == options
    assert resolve_augment(options, image_size=size, flips=flips, channels=3) == options


def test_policies():
    digits = config(8, flips=False, policy="auto")
    assert (digits.crop, digits.rotate, digits.zoom, digits.mixup) == ("none", 10.0, 0.1, 0.2)
    small = config(32, policy="auto")
    assert (small.crop, small.pad, small.hflip, small.rotate) == ("pad", 4, 0.5, 0.0)
    large = config(224, policy="auto")
    assert (large.crop, large.hflip, large.randaugment_layers) == ("random_resized", 0.5, 0)
    standard = config(224, policy="standard")
    assert (standard.randaugment_layers, standard.randaugment_magnitude, standard.mixup) == (2, 10.0, 0.2)
    assert standard.scale == (0.08, 1.0)
    strong = config(224, policy="strong")
    assert (strong.erasing, strong.mixup, strong.cutmix) == (0.25, 0.8, 1.0)


def test_explicit_options_win_over_the_policy():
    options = config(224, policy="strong", crop="none", mixup=0.0, scale=(0.5, 0.9))
    assert (options.crop, options.mixup, options.scale, options.cutmix) == ("none", 0.0, (0.5, 0.9), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.9, 0.1)}, r"augment.scale: \(0.9, 0.1\) is empty; did you mean \(0.1, 0.9\)"),
        ({"ratio": (2.0, 1.0)}, r"augment.ratio: .* is empty"),
        ({"crop": "pad", "pad": 16}, r"augment.pad: 16 .* 16 pixels"),
        ({"channels": 4, "color_jitter": 0.1}, r"augment.color_jitter: .* 1 or 3 channels, not 4"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        config(**options)


def test_an_unresolved_config_is_refused():
    keys, images = batch()
    with pytest.raises(ValueError, match="call resolve_augment first"):
        augment(AugmentConfig(), keys, images, image_size=16)


def test_normalize():
    images = np.random.default_rng(0).random((2, 3, 3, 3))
    got = normalize(jnp.asarray(images, jnp.float32), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    np.testing.assert_allclose(got, (images - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7], atol=1e-6)


def test_inside_scan():
    options, (keys, images) = config(**OPTIONS["turned"]), batch()
    steps = jax.vmap(lambda step: jax.vmap(lambda key: jax.random.fold_in(key, step))(keys))(jnp.arange(2))

    def step(carry, step_keys):
        return carry, augment(options, step_keys, images, image_size=16)

    _, results = jax.jit(lambda k: jax.lax.scan(step, 0, k))(steps)
    np.testing.assert_allclose(results[1], run(options, steps[1], images), atol=1e-5)
    assert np.abs(results[0] - results[1]).max() > 0.1


@pytest.mark.slow
def test_sharded_batches_give_the_same_without_communication():
    """jit over 8 virtual devices and pmap against one device, in a process that has 8."""
    script = """
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from jaxtrain.config import AugmentConfig
        from jaxtrain.data.augment import augment, mix, resolve_augment
        options = dict(randaugment_layers=1, randaugment_magnitude=9, mixup=1, cutmix=1)
        config = AugmentConfig(policy="light", **options)
        config = resolve_augment(config, image_size=16, flips=True, channels=3)
        def step(keys, images, labels):
            return mix(config, keys, augment(config, keys, images, image_size=16), labels)
        keys = jax.random.split(jax.random.key(0), 16)
        images = np.random.default_rng(0).integers(0, 256, (16, 20, 20, 3), dtype=np.uint8)
        args = keys, images, np.eye(16, dtype=np.float32)
        one = jax.tree.map(np.asarray, jax.jit(step)(*args))
        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        compiled = jax.jit(step).lower(*jax.device_put(args, NamedSharding(mesh, P("data")))).compile()
        text = compiled.as_text()
        for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
            assert word not in text, word
        sharded = compiled(*jax.device_put(args, NamedSharding(mesh, P("data"))))
        split = jax.tree.map(lambda a: a.reshape(8, 2, *a.shape[1:]), args)
        mapped = jax.tree.map(lambda a: a.reshape(16, *a.shape[2:]), jax.pmap(step)(*split))
        for other in (sharded, mapped):
            for got, want in zip(other, one):
                assert np.abs(np.asarray(got) - want).max() < 1e-5, np.abs(np.asarray(got) - want).max()
        print("same")
    """
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "same", done.stderr[-2000:]


def test_lowers_for_every_platform():
    """The forms for other devices than this one are at least valid programs."""
    options, (keys, images) = config(policy="strong"), batch()

    def step(keys, images):
        return mix(options, keys, augment(options, keys, images, image_size=16), jnp.eye(8))

    for platform in ("cpu", "cuda", "tpu"):
        text = jax.jit(step).trace(keys, images).lower(lowering_platforms=(platform,)).as_text()
        assert ("dot_general" in text) == (platform == "tpu")
