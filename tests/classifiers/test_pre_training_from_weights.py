"""Pre-training that goes on from the weights of another run."""

import numpy as np
import pytest

import jaxtrain
from jaxtrain import PTClassifier, UserError

RNG = np.random.default_rng(0)
LABELS = np.arange(120) % 3
IMAGES = (RNG.integers(0, 100, (120, 8, 8)) + 70 * LABELS[:, None, None]).astype(np.uint8)
QUIET = {"quiet": True, "tracking": {"enabled": False}}


def classifier(folder, **options):
    train = {"batch_size": 32, **options.pop("train", {})}
    return PTClassifier(run_dir=folder, train=train, optimizer={"learning_rate": 1e-2}, **QUIET, **options)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pt") / "first"
    return classifier(folder, model={"name": "cnn_tiny"}, train={"epochs": 20}).fit(IMAGES, LABELS)


@pytest.mark.slow
def test_it_begins_where_the_other_run_ended(first, tmp_path):
    weights = {"weights": str(first.run_dir)}
    still = classifier(tmp_path / "still", model=weights, train={"steps": 1, "select": "last"})
    still.config = still.config.replace(**{"optimizer.learning_rate": 1e-12, "optimizer.weight_decay": 0.0})
    still.fit(IMAGES, LABELS)
    np.testing.assert_allclose(still.predict_logits(IMAGES[:9]), first.predict_logits(IMAGES[:9]), atol=0.15)
    assert still.summary["weights"] == str(first.run_dir)
    assert still.summary["trainable_params"] == still.summary["params"]
    assert still.fitted.config.model.name == "cnn_tiny"


@pytest.mark.slow
def test_other_classes_get_a_fresh_head_and_resuming_needs_no_weights(first, tmp_path):
    copy = jaxtrain.load(first.run_dir).save(tmp_path / "copy")
    options = {"model": {"weights": str(copy)}, "train": {"epochs": 10}}
    run = classifier(tmp_path / "run", **options).fit(IMAGES, LABELS % 2)
    assert run.summary["val_accuracy"] > 0.7
    digest = run.summary["params_sha256"]
    copy.rename(tmp_path / "gone")
    (run.run_dir / "summary.json").unlink()
    again = classifier(tmp_path / "run", **options, data={"channels": 1}).fit(IMAGES, LABELS % 2)
    assert again.summary["params_sha256"] == digest


@pytest.mark.slow
def test_weights_of_another_network_are_refused(first, tmp_path):
    with pytest.raises(UserError, match=r"model\.name"):
        classifier(tmp_path / "run", model={"weights": str(first.run_dir), "name": "vit_test"}).fit(IMAGES, LABELS)
    assert not (tmp_path / "run" / "checkpoints").exists()
