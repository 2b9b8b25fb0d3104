import numpy as np
import pytest
from sklearn.datasets import make_moons
from sklearn.neural_network import MLPClassifier

from jaxtrain.config import HeadConfig
from jaxtrain.errors import RunError
from jaxtrain.heads import Vectors, fit_head


def moons(images, seed):
    x, y = make_moons(images, noise=0.15, random_state=seed)
    return Vectors(x.astype(np.float32), y.astype(np.int32))


TRAIN, VAL, TEST = moons(400, 0), moons(200, 1), moons(400, 2)
CONFIG = HeadConfig(name="mlp", hidden=(32,), learning_rate=(1e-2,), weight_decay=(1e-4,), batch_size=50)


@pytest.mark.slow
def test_learns_what_no_linear_head_can():
    head = fit_head(CONFIG, TRAIN, VAL, num_classes=2)
    ours = (head.logits(TEST.x).argmax(1) == TEST.y).mean()
    theirs = MLPClassifier((32,), learning_rate_init=1e-2, max_iter=200, random_state=0).fit(TRAIN.x, TRAIN.y)
    linear = fit_head(HeadConfig(), TRAIN, VAL, num_classes=2)
    assert ours >= theirs.score(TEST.x, TEST.y) - 0.01
    assert ours > (linear.logits(TEST.x).argmax(1) == TEST.y).mean() + 0.05


@pytest.mark.slow
def test_stops_early_and_keeps_the_best_epoch():
    noise = Vectors(TRAIN.x, np.random.default_rng(0).integers(0, 2, 400).astype(np.int32))
    head = fit_head(CONFIG.model_copy(update={"patience": 3}), noise, VAL, num_classes=2)
    assert head.settings["epochs"] < 20
    log_p = head.logits(VAL.x) - np.logaddexp.reduce(head.logits(VAL.x), axis=1, keepdims=True)
    assert -log_p[np.arange(200), VAL.y].mean() == pytest.approx(head.curve[0]["val_loss"], rel=1e-4)


@pytest.mark.slow
def test_members_of_a_grid_are_trained_as_if_alone():
    config = CONFIG.model_copy(update={"learning_rate": (1e-3, 1e-2), "epochs": 5})
    grid = fit_head(config, TRAIN, VAL, num_classes=2)
    for entry in grid.curve:
        alone = config.model_copy(update={"learning_rate": (entry["learning_rate"],)})
        one = fit_head(alone, TRAIN, VAL, num_classes=2).curve[0]
        assert one["val_loss"] == pytest.approx(entry["val_loss"], rel=1e-3)


def test_divergence_is_an_error():
    big = Vectors(TRAIN.x * np.float32(1e30), TRAIN.y)
    with pytest.raises(RunError, match="not finite"):
        fit_head(CONFIG.model_copy(update={"scaling": ("none",), "learning_rate": (1e30,)}), big, VAL, num_classes=2)
