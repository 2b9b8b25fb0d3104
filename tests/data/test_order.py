import subprocess
import sys

import numpy as np
import pytest

from jaxtrain.data.order import Order


def test_an_epoch_shows_every_image_once_and_epochs_differ():
    order = Order(size=101, batch_size=8, seed=3)
    epochs = [order.positions(101 * epoch, 101 * (epoch + 1)) for epoch in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(101))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


@pytest.mark.parametrize("batch_size", [1, 7, 101, 250])
def test_steps_are_the_sequence_cut_into_batches(batch_size):
    order = Order(size=101, batch_size=batch_size, seed=3)
    steps = order.steps(2, 9)
    assert steps.shape == (7, batch_size)
    assert steps.dtype == np.int32
    np.testing.assert_array_equal(steps.ravel(), Order(101, 1, 3).positions(2 * batch_size, 9 * batch_size))


def test_any_step_is_reached_without_those_before_it():
    order = Order(size=50, batch_size=16, seed=0)
    whole = order.steps(0, 40)
    for step in (39, 0, 17):
        np.testing.assert_array_equal(Order(50, 16, 0).steps(step, step + 1)[0], whole[step])


def test_seeds_differ_and_an_empty_range_is_empty():
    assert not np.array_equal(Order(50, 8, 0).steps(0, 2), Order(50, 8, 1).steps(0, 2))
    assert Order(50, 8, 0).steps(5, 5).shape == (0, 8)
    assert Order(50, 8, 0).steps_per_epoch == 6.25


def test_the_first_images_are_uniform_over_seeds():
    first = np.bincount([int(Order(10, 1, seed).positions(0, 1)[0]) for seed in range(2000)], minlength=10)
    # 2,000 draws of probability 1/10: mean 200, standard deviation 13.4.
    assert np.abs(first - 200).max() < 4 * 13.4


def test_another_process_draws_the_same():
    code = "from jaxtrain.data.order import Order; print(Order(1000, 32, 7).steps(30, 34).ravel().tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(Order(1000, 32, 7).steps(30, 34).ravel().tolist())


def test_the_sequence_is_pinned():
    # A run that is resumed under a later version must see the same images.
    assert Order(10, 5, 0).steps(0, 2).tolist() == [[0, 7, 8, 6, 9], [5, 1, 3, 2, 4]]
