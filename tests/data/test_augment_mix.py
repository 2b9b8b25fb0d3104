"""Mixup and CutMix: shares, labels, pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxtrain.config import AugmentConfig
from jaxtrain.data.augment import mix, mix_weighted, normalize, resolve_augment
from jaxtrain.errors import UserError

SIDE = 20
BATCH = 4000


def config(**options):
    return resolve_augment(AugmentConfig(policy="none", **options), image_size=SIDE, flips=True, channels=1)


_mix = jax.jit(mix, static_argnums=0)


@jax.jit
def _mixup(alpha, keys, images, labels):
    return mix(config().model_copy(update={"mixup": alpha}), keys, images, labels)


def pairs():
    """Even images are black with label 0, odd ones white with label 1: pixels tell the shares."""
    images = jnp.tile(jnp.array([0.0, 1.0]), BATCH // 2)[:, None, None, None] * jnp.ones((1, SIDE, SIDE, 1))
    return jax.random.split(jax.random.key(0), BATCH), images, jnp.tile(jnp.eye(2), (BATCH // 2, 1))


def run(**options):
    mixed, soft = _mix(config(**options), *pairs())
    return np.asarray(mixed), np.asarray(soft)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_mixup_shares_follow_the_beta_distribution(alpha):
    images, labels = (np.asarray(array) for array in _mixup(alpha, *pairs()))
    kept = labels[::2, 0]
    for bound in (1e-4, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1 - 1e-4):
        expected = stats.beta(alpha, alpha).cdf(bound)
        spread = np.sqrt(expected * (1 - expected) / len(kept))
        assert abs((kept < bound).mean() - expected) <= 4 * spread + 1 / len(kept), bound
    flat = np.broadcast_to((1 - kept)[:, None, None, None], images[::2].shape)
    np.testing.assert_allclose(images[::2], flat, atol=1e-6)
    np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-6)


def test_both_of_a_pair_keep_the_same_share():
    for options in ({"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}):
        images, labels = run(**options)
        np.testing.assert_allclose(images[::2], 1 - images[1::2], atol=1e-6)
        np.testing.assert_allclose(labels[::2, 0], labels[1::2, 1], atol=1e-6)


def test_cutmix_labels_are_the_exact_area_of_one_box():
    images, labels = run(cutmix=1.0)
    pasted = images[::2, :, :, 0]
    assert set(np.unique(pasted)) == {0.0, 1.0}
    np.testing.assert_allclose(labels[::2, 1], pasted.mean((1, 2)), atol=1e-6)
    for mask in pasted:
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_cutmix_areas_and_places_follow_the_papers_scheme():
    """The paper's rand_bbox, one image at a time in NumPy."""
    _, labels = run(cutmix=1.0)
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(4000):
        cut = int(SIDE * np.sqrt(1 - rng.beta(1.0, 1.0)))
        corners = [rng.integers(SIDE) - cut // 2 for _ in range(2)]
        sides = [np.clip(c + cut, 0, SIDE) - np.clip(c, 0, SIDE) for c in corners]
        areas.append(sides[0] * sides[1] / SIDE**2)
    assert stats.ks_2samp(labels[::2, 1], areas).pvalue > 1e-3


def test_with_both_on_each_pair_draws_one_with_probability_half():
    images, labels = run(mixup=1.0, cutmix=1.0)
    flat = np.ptp(images[::2], axis=(1, 2, 3)) == 0
    strictly_between = (labels[::2, 0] > 0) & (labels[::2, 0] < 1)
    mixed_up = flat & strictly_between & (images[::2, 0, 0, 0] != 0)
    assert abs(mixed_up.mean() - 0.5) < 4 * 0.5 / np.sqrt(BATCH / 2)


def test_before_or_after_normalisation_is_the_same():
    rng = np.random.default_rng(0)
    images, labels = jnp.asarray(rng.random((8, 6, 6, 3)), jnp.float32), jnp.eye(8)
    keys, mean, std = jax.random.split(jax.random.key(1), 8), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    options = config(mixup=0.4, cutmix=1.0)
    before, _ = _mix(options, keys, images, labels)
    after, _ = _mix(options, keys, normalize(images, mean, std), labels)
    np.testing.assert_allclose(normalize(before, mean, std), after, atol=1e-5)


def test_a_pair_depends_on_its_even_key_alone():
    images = jax.random.uniform(jax.random.key(5), (8, 6, 6, 1))
    labels, keys = jnp.eye(8), jax.random.split(jax.random.key(1), 8)
    options = config(mixup=0.4, cutmix=1.0)
    mixed, soft = _mix(options, keys, images, labels)
    pair, pair_soft = _mix(options, keys.at[5].set(jax.random.key(99))[4:6], images[4:6], labels[4:6])
    np.testing.assert_array_equal(mixed[4:6], pair)
    np.testing.assert_array_equal(soft[4:6], pair_soft)


def test_off_returns_the_same_arrays_and_odd_batches_are_refused():
    images, labels, keys = jnp.ones((3, 4, 4, 1)), jnp.eye(3), jax.random.split(jax.random.key(0), 3)
    same, also_same = mix(config(), keys, images, labels)
    assert same is images
    assert also_same is labels
    with pytest.raises(UserError, match=r"it has 3: use an even number, as 4"):
        _mix(config(mixup=0.2), keys, images, labels)


def test_alphas_may_be_vmapped_and_0_mixes_nothing():
    keys, images, labels = (array[:4] for array in pairs())
    alphas = jnp.array([0.0, 0.2, 1.0])
    mixed, soft = jax.jit(jax.vmap(_mixup, in_axes=(0, None, None, None)))(alphas, keys, images, labels)
    np.testing.assert_array_equal(mixed[0], images)
    np.testing.assert_array_equal(soft[0], labels)
    for i in (1, 2):
        np.testing.assert_allclose(mixed[i], _mixup(alphas[i], *pairs())[0][:4], atol=1e-5)


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_a_weight_goes_where_its_targets_share_goes(options):
    """Share by share against the definition: pixels say how much of each image there is."""
    keys, images, labels = pairs()
    weights = jnp.tile(jnp.array([5.0, 0.5, 0.0, 2.0]), BATCH // 4)  # the third of four could not be read
    mixed, soft, total = jax.jit(mix_weighted, static_argnums=0)(config(**options), keys, images, labels, weights)
    white = np.asarray(mixed).mean((1, 2, 3))
    of_pair = np.repeat(np.asarray(weights).reshape(-1, 2), 2, axis=0)
    terms = np.stack([1 - white, white], -1) * of_pair
    np.testing.assert_allclose(np.asarray(soft) * np.asarray(total)[:, None], terms, atol=1e-5)
    np.testing.assert_allclose(np.asarray(soft).sum(-1), 1, atol=1e-5)


def test_weights_stay_as_they_are_where_nothing_is_mixed():
    keys, images, labels = (array[:4] for array in pairs())
    weights = jnp.array([1.0, 0.0, 2.0, 3.0])
    same = mix_weighted(config(), keys, images, labels, weights)
    assert (same[0] is images, same[1] is labels, same[2] is weights) == (True, True, True)
