"""PTClassifier on plain arrays: what a person with five lines of Python gets."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss

import jaxtrain
from jaxtrain import BaseClassifier, PTClassifier, RunError, UserError
from jaxtrain.config import AugmentConfig
from jaxtrain.data.augment import resolve_augment
from jaxtrain.training.state import Batch
from jaxtrain.training.technique import Binding
from tests.marks import mostly_slow

FAST = {
    "model": {"name": "mlp_tiny"},
    "augment": {"policy": "none"},
    "train": {"epochs": 6, "batch_size": 64},
    "optimizer": {"learning_rate": 0.01},
    "tracking": {"enabled": False},
    "quiet": True,
}


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return (bunch.images * 255 / 16).round().astype(np.uint8), bunch.target


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    images, labels = digits
    classifier = PTClassifier(run_dir=tmp_path_factory.mktemp("run") / "run", **FAST)
    return classifier.fit(images[:1200], labels[:1200], test=(images[1200:], labels[1200:]))


def test_fit_learns_and_says_so(trained, digits):
    images, labels = digits
    assert accuracy_score(labels[1200:], trained.predict(images[1200:])) > 0.7
    assert trained.summary["test_accuracy"] == accuracy_score(labels[1200:], trained.predict(images[1200:]))
    assert trained.summary["steps"] == int(np.ceil(6 * 1080 / 64))
    assert json.loads((trained.run_dir / "summary.json").read_text()) == trained.summary


def test_evaluate_equals_scikit_learn(trained, digits):
    images, labels = digits[0][1200:], digits[1][1200:]
    metrics = trained.evaluate(images, labels)
    probabilities = trained.predict_proba(images).astype(np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    assert metrics["accuracy"] == accuracy_score(labels, probabilities.argmax(1))
    np.testing.assert_allclose(metrics["loss"], log_loss(labels, probabilities), rtol=1e-5)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-5)


def test_predictions_do_not_depend_on_what_is_beside_an_image(trained, digits):
    images = digits[0][:130]
    together = trained.predict_proba(images)
    np.testing.assert_allclose(trained.predict_proba(images[40:41])[0], together[40], rtol=1e-4, atol=1e-6)


def test_save_and_load_give_the_same_bits(trained, digits, tmp_path):
    images = digits[0][:50]
    trained.save(tmp_path / "model")
    for loaded in (
        jaxtrain.load(tmp_path / "model"),
        PTClassifier.load(tmp_path / "model"),
        jaxtrain.load(trained.run_dir),
    ):
        assert isinstance(loaded, PTClassifier)
        assert loaded.class_names == trained.class_names
        np.testing.assert_array_equal(loaded.predict_proba(images), trained.predict_proba(images))
    np.testing.assert_array_equal(loaded.embed(images), trained.embed(images))


def test_the_same_seed_gives_the_same_bits_and_another_does_not(digits, tmp_path):
    images, labels = digits
    options = {**FAST, "train": {"steps": 5, "batch_size": 32}}
    digest = [
        PTClassifier(run_dir=tmp_path / str(i), seed=seed, **options)
        .fit(images[:200], labels[:200])
        .summary["params_sha256"]
        for i, seed in enumerate((3, 3, 4))
    ]
    assert digest[0] == digest[1] != digest[2]


def test_string_labels_become_class_names(digits, tmp_path):
    images, labels = digits
    names = np.array(["zero", "one", "two"])
    few = labels < 3
    classifier = PTClassifier(run_dir=tmp_path / "run", **{**FAST, "train": {"steps": 2, "batch_size": 32}})
    classifier.fit(images[few], names[labels[few]])
    assert classifier.class_names == ("one", "two", "zero")


class Focal(PTClassifier):
    """Lin et al. 2017."""

    def loss(self, model: Any, batch: Any, key: Any) -> Any:
        log_p = jnp.log(jnp.clip(jnp.sum(batch.label * softmax(model(batch.image, train=True)), -1), 1e-6))
        return jnp.mean(-((1 - jnp.exp(log_p)) ** 2) * log_p), {"confidence": jnp.exp(log_p).mean()}


def softmax(logits):
    return jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)


def test_a_subclass_with_its_own_loss_trains_and_logs_its_own_metric(digits, tmp_path):
    images, labels = digits
    classifier = Focal(run_dir=tmp_path / "run", **FAST).fit(images[:1200], labels[:1200])
    assert classifier.evaluate(images[1200:], labels[1200:])["accuracy"] > 0.6
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    confidence = [record["train/confidence"] for record in records if "train/confidence" in record]
    assert confidence[-1] > confidence[0]
    assert isinstance(Focal.load(tmp_path / "run"), Focal)


class HeadOnly(PTClassifier):
    def trainable(self, path, value):
        return path[0] == "head"


def test_only_trainable_parameters_move_and_have_optimizer_state(digits, tmp_path):
    images, labels = digits
    classifier = HeadOnly(run_dir=tmp_path / "run", **{**FAST, "train": {"steps": 3, "batch_size": 32}})
    classifier.fit(images[:200], labels[:200])
    assert set(classifier.fitted.weights["params"]) == {"head/kernel", "head/bias"}
    assert classifier.summary["trainable_params"] < classifier.summary["params"]


@pytest.mark.slow
def test_class_weights_and_accumulation_and_ema_train(digits, tmp_path):
    images, labels = digits
    train = {"epochs": 6, "batch_size": 64, "accumulate": 2, "ema_decay": 0.9, "class_weights": "balanced"}
    classifier = PTClassifier(run_dir=tmp_path / "run", **{**FAST, "train": train})
    classifier.fit(images[:1200], labels[:1200])
    assert classifier.evaluate(images[1200:], labels[1200:])["accuracy"] > 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    "augment", [{"policy": "none"}, {"policy": "none", "mixup": 0.2}, {"policy": "none", "mixup": 0.8, "cutmix": 1.0}]
)
@pytest.mark.parametrize("smoothing", mostly_slow([0.0, 0.1], {0.1}))
def test_balanced_classes_share_the_loss_equally_however_images_are_mixed(augment, smoothing):
    """Nine images of ten are of one class."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (400, 8, 8, 1), np.uint8), (np.arange(400) % 10 == 0).astype(np.int32)
    options = resolve_augment(AugmentConfig(**augment), image_size=8, flips=True, channels=1)
    data = {"image_size": 8, "channels": 1, "mean": (0.5,), "std": (0.5,)}
    model = PTClassifier(augment=options, data=data, train={"label_smoothing": smoothing})
    bound = model.bind(model.config, Binding(2, class_weights=(400 / 720, 400 / 80)))
    terms = np.zeros(2)
    for step in range(5):
        rows, keys = rng.permutation(400), jax.random.split(jax.random.key(step), 400)
        batch = bound.inputs(Batch(jnp.asarray(images[rows]), jnp.asarray(labels[rows])), keys)
        terms += (np.asarray(batch.weight)[:, None] * np.asarray(batch.label)).sum(0)
    np.testing.assert_allclose(terms / terms.sum(), [0.5, 0.5], atol=1e-4)


def test_a_finished_run_is_not_repeated(trained, digits):
    again = PTClassifier(run_dir=trained.run_dir, **FAST).fit(digits[0][:1200], digits[1][:1200])
    assert again.summary == trained.summary


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"name": "mlp_tinny"}}, "mlp_tiny"),
        ({"train": {"epoch": 3}}, "train.epochs"),
        ({"train": {"batch_size": 0}}, "greater than or equal to 1"),
        ({"trian": {}}, "train"),
        ({"augment": {"mixup": 0.2}, "train": {"batch_size": 33}}, "34|32"),
    ],
)
def test_wrong_options_are_named(options, message, digits, tmp_path):
    with pytest.raises(UserError, match=message):
        PTClassifier(run_dir=tmp_path / "run", tracking={"enabled": False}, quiet=True, **options).fit(
            digits[0][:100], digits[1][:100]
        )


def test_wrong_arrays_are_named(digits):
    images, labels = digits
    with pytest.raises(UserError, match="uint8"):
        PTClassifier(**FAST).fit(images / 255.0, labels)
    with pytest.raises(UserError, match="without labels"):
        PTClassifier(**FAST).fit(images)
    with pytest.raises(UserError, match="not trained"):
        PTClassifier(**FAST).predict(images)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_traceback(digits, tmp_path):
    options = {**FAST, "optimizer": {"name": "sgd", "learning_rate": 1e20}}
    with pytest.raises(RunError, match=r"the loss became (nan|inf) at step"):
        PTClassifier(run_dir=tmp_path / "run", **options).fit(digits[0][:500], digits[1][:500])
    assert "Traceback" in (tmp_path / "run" / "error.log").read_text()


def test_every_technique_is_a_base_classifier():
    from jaxtrain.classifiers.files import TECHNIQUES

    for name, cls in TECHNIQUES.items():
        assert issubclass(cls, BaseClassifier)
        assert cls.technique == name


def test_groups_of_arrays_are_not_cut(digits, tmp_path):
    images, labels = digits[0][:200].repeat(2, axis=0), digits[1][:200].repeat(2)
    classifier = PTClassifier(run_dir=tmp_path / "run", **{**FAST, "train": {"steps": 1}})
    with pytest.raises(UserError, match=r"^groups: .*data\.group"):
        classifier.fit(groups=np.arange(400) // 2)
    classifier.fit(images, labels, groups=np.arange(400) // 2)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["group"] == "groups"
    again = PTClassifier(run_dir=tmp_path / "run", **{**FAST, "train": {"steps": 1}})
    assert again.fit(images, labels, groups=np.arange(400) // 2).summary == classifier.summary
    with pytest.raises(UserError, match=r"data\.group"):
        PTClassifier(data={"group": "patient"}, **FAST).fit(images, labels)
