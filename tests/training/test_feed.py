import jax.numpy as jnp
import numpy as np

from jaxtrain.config import ParallelConfig
from jaxtrain.data.base import ArraySource
from jaxtrain.data.order import Order
from jaxtrain.training import feed as feed_module
from jaxtrain.training.feed import ResidentFeed, padded_batches
from jaxtrain.training.parallel import make_strategy


def source(images):
    pixels = np.arange(images * 4, dtype=np.uint8).reshape(images, 2, 2, 1)
    return ArraySource(pixels, np.arange(images, dtype=np.int32))


def test_resident_batches_follow_the_order_over_window_borders(monkeypatch):
    monkeypatch.setattr(feed_module, "_WINDOW_ELEMENTS", 64)  # 8 steps of 8: many windows
    order = Order(size=21, batch_size=8, seed=3)
    feed = ResidentFeed(source(21), order, make_strategy(ParallelConfig()), steps_per_call=4)
    for step in [0, 1, 7, 8, 9, 40, 3]:  # also backwards, as after a resume
        batch = feed.batch(jnp.int32(step), *feed.args(step))
        assert batch.label.tolist() == order.steps(step, step + 1)[0].tolist()
        assert batch.image[:, 0, 0, 0].tolist() == [(4 * label) % 256 for label in batch.label.tolist()]


def test_padding_holds_every_image_once_and_has_no_weight():
    batches = list(padded_batches(source(21), 8))
    assert [batch.image.shape[0] for batch in batches] == [8, 8, 8]
    weights = np.concatenate([batch.weight for batch in batches])
    labels = np.concatenate([batch.label for batch in batches])
    assert labels[weights > 0].tolist() == list(range(21))
    assert weights.sum() == 21
