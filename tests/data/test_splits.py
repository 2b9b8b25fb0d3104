import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from jaxtrain.data.splits import few_shot, stratified_split, stratified_subset


def _labels(counts, seed=0):
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return np.random.default_rng(seed).permutation(labels)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.33])
@pytest.mark.parametrize("counts", [[178, 182, 177, 183], [1000, 60, 307, 11], [50] * 20])
def test_proportions_are_scikit_learns(counts, fraction):
    labels = _labels(counts)
    kept, held = stratified_split(labels, fraction, seed=0)
    theirs = next(StratifiedShuffleSplit(1, test_size=fraction, random_state=0).split(labels, labels))
    assert len(held) == len(theirs[1])
    ours, expected = np.bincount(labels[held]), np.bincount(labels[theirs[1]])
    # Equal but for ties of the remainder, which both draw by lot.
    assert np.abs(ours - expected).max() <= 1
    assert sorted(ours - np.floor(np.array(counts) * fraction)) == sorted(
        expected - np.floor(np.array(counts) * fraction)
    )
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(labels)))


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.99])
def test_every_class_of_two_is_on_both_sides_and_single_images_train(fraction):
    labels = _labels([1, 2, 3, 500])
    kept, held = stratified_split(labels, fraction, seed=5)
    assert (np.bincount(labels[kept], minlength=4) >= 1).all()
    assert np.bincount(labels[held], minlength=4)[0] == 0
    assert (np.bincount(labels[held], minlength=4)[1:] >= 1).all()


def test_nothing_is_held_out_at_fraction_zero():
    kept, held = stratified_split(_labels([2, 30]), 0.0, seed=0)
    assert len(held) == 0
    assert len(kept) == 32


def test_a_product_that_rounding_pushes_over_an_integer_does_not_add_an_image():
    assert 0.07 * 100 > 7
    assert len(stratified_split(_labels([50, 50]), 0.07, seed=0)[1]) == 7


def test_a_class_without_images_is_no_matter():
    labels = _labels([10, 0, 10])
    assert np.bincount(labels[stratified_split(labels, 0.2, seed=0)[1]]).tolist() == [2, 0, 2]


def test_seeds_decide_and_nothing_else():
    labels = _labels([40, 60])
    first, again, other = (stratified_split(labels, 0.2, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_images_of_a_class_are_held_out_alike_often():
    labels = np.zeros(20, np.int32)
    labels[10:] = 1
    held = np.concatenate([stratified_split(labels, 0.3, seed)[1] for seed in range(1000)])
    # 1,000 draws of probability 0.3: mean 300, standard deviation 14.5.
    assert np.abs(np.bincount(held, minlength=20) - 300).max() < 4.5 * 14.5


def test_a_subset_keeps_proportions_and_every_class():
    labels = _labels([600, 300, 100, 1])
    subset = stratified_subset(labels, 100, seed=0)
    counts = np.bincount(labels[subset])
    assert counts.sum() == 100
    assert counts[3] == 1
    np.testing.assert_allclose(counts[:3], [60, 30, 10], atol=1.5)
    assert (np.diff(subset) > 0).all()


def test_a_subset_of_all_is_all_and_one_below_the_classes_is_refused():
    labels = _labels([3, 4])
    np.testing.assert_array_equal(stratified_subset(labels, 7, seed=0), np.arange(7))
    with pytest.raises(ValueError, match="1 images cannot hold 2 classes"):
        stratified_subset(labels, 1, seed=0)


def test_few_shot_draws_are_balanced_and_differ():
    labels = np.random.default_rng(0).integers(0, 7, 500).astype(np.int32)
    draws = [few_shot(labels, 5, seed=3, draw=draw) for draw in range(3)]
    for places in draws:
        assert (np.bincount(labels[places], minlength=7) == 5).all()
        assert (np.diff(places) > 0).all()
    assert len({tuple(places) for places in draws}) == 3
    np.testing.assert_array_equal(draws[1], few_shot(labels, 5, seed=3, draw=1))


def test_few_shot_leaves_out_absent_classes_and_refuses_scarce_ones():
    labels = np.array([0, 0, 0, 3, 3], np.int32)
    np.testing.assert_array_equal(few_shot(labels, 2, seed=0), np.sort(few_shot(labels, 2, seed=0)))
    assert np.bincount(labels[few_shot(labels, 2, seed=0)]).tolist() == [2, 0, 0, 2]
    with pytest.raises(ValueError, match="class 3 has 2 images only"):
        few_shot(labels, 3, seed=0)
