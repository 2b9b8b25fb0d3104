"""What makes up for rare classes: how often their images are drawn, and what they weigh."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.utils.class_weight import compute_sample_weight

import jaxtrain
from jaxtrain import FEClassifier, PTClassifier, UserError
from jaxtrain.cli.train import Train
from jaxtrain.config import Config, DataConfig, TrainConfig
from jaxtrain.data.base import ArraySource
from jaxtrain.data.order import Order, sampler
from jaxtrain.evaluation.runs import by_frequency
from jaxtrain.losses import log_shares
from jaxtrain.runs.imbalance import adjusted_shares, class_weights, pos_weight

QUIET = {"quiet": True, "tracking": {"enabled": False}}
COUNTS = np.array([500, 90, 0, 13, 1])
LABELS = np.random.default_rng(1).permutation(np.repeat(np.arange(5), COUNTS)).astype(np.int32)


def expected_shares(sampling, beta=0.999):
    """By the definitions, in plain Python."""
    each = {
        "balanced": lambda n: 1.0,
        "sqrt": lambda n: n**0.5,
        "effective": lambda n: n / sum(beta**i for i in range(n)),
    }[sampling]
    shares = np.array([each(int(n)) if n else 0.0 for n in COUNTS])
    return shares / shares.sum()


@pytest.mark.parametrize("sampling", ["balanced", "sqrt", "effective"])
def test_classes_are_drawn_by_their_shares_and_images_of_a_class_alike(sampling):
    shares = expected_shares(sampling)
    drawn = sampler(DataConfig(sampling=sampling), LABELS, 5)
    np.testing.assert_allclose(drawn.shares, shares)
    size, epochs = len(LABELS), 200
    order = Order(size, 32, seed=3, sampler=drawn)
    total = np.zeros(size)
    for epoch in range(epochs):
        positions = order.positions(epoch * size, (epoch + 1) * size)
        counts = np.bincount(LABELS[positions], minlength=5)
        assert (np.abs(counts - shares * size) < 1).all()  # in each epoch
        times = np.bincount(positions, minlength=size)
        for label in np.unique(LABELS):
            assert np.ptp(times[label == LABELS]) <= 1
        total += times
    over_time = np.bincount(LABELS, weights=total, minlength=5) / (size * epochs)
    np.testing.assert_allclose(over_time, shares, atol=2e-4)
    np.testing.assert_allclose(drawn.times[COUNTS > 0], (over_time * size)[COUNTS > 0] / COUNTS[COUNTS > 0], rtol=0.05)


def test_the_order_follows_from_seed_and_step_alone():
    def order(seed=3):
        return Order(len(LABELS), 32, seed, sampler(DataConfig(sampling="balanced"), LABELS.copy(), 5))

    whole = order().steps(0, 60)
    for step in (59, 7, 18, 19, 0):  # across the border of epochs too, in any order
        np.testing.assert_array_equal(order().steps(step, step + 1)[0], whole[step])
    assert not np.array_equal(order(4).steps(0, 3), whole[:3])


def test_effective_numbers_lie_between_uniform_and_balanced():
    def shares(beta):
        return sampler(DataConfig(sampling="effective", sampling_beta=beta), LABELS, 5).shares

    np.testing.assert_allclose(shares(0.0), COUNTS / COUNTS.sum())
    np.testing.assert_allclose(shares(1 - 1e-9), expected_shares("balanced"), atol=1e-6)


@pytest.mark.parametrize("given", ["balanced", {"b": 4, "d": 0.5}])
def test_class_weights_have_mean_one_over_the_training_images(given):
    weights = class_weights(TrainConfig(class_weights=given), COUNTS, "abcde")
    each = weights[LABELS]
    assert each.mean() == pytest.approx(1)
    expected = dict.fromkeys(range(5), 1.0) | {1: 4.0, 3: 0.5} if given != "balanced" else given
    reference = compute_sample_weight(expected, LABELS)
    np.testing.assert_allclose(each, reference / reference.mean())


def test_weights_of_labels_are_what_is_known_of_them():
    labels = np.array([[1, 0, 0, 1], [0, 0, -1, 1], [0, 1, -1, 1], [0, -1, 0, 1]], np.int8)
    assert pos_weight(TrainConfig(pos_weight="balanced"), labels, "abcd") == (3, 2, 1, 1)  # 1: none with it, or without
    assert pos_weight(TrainConfig(pos_weight={"c": 5}), labels, "abcd") == (1, 1, 5, 1)
    assert pos_weight(TrainConfig(), labels, "abcd") is None


@pytest.fixture(scope="module")
def skewed():
    bunch = load_digits()
    kept = np.concatenate([np.flatnonzero(bunch.target == digit)[: 170 - 17 * digit] for digit in range(10)])
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8)[kept], bunch.target[kept]


def options(folder, **more):
    return {"model": {"name": "mlp_tiny"}, "run_dir": folder, "train": {"steps": 30}, **QUIET} | more


def test_a_file_of_weights_is_kept_in_the_config(skewed, tmp_path):
    file = tmp_path / "weights.json"
    file.write_text(json.dumps({"3": 2, "9": 10}))
    model = PTClassifier(**options(tmp_path / "run", train={"steps": 3, "class_weights": file})).fit(*skewed)
    assert model.fitted.config.train.class_weights == {"3": 2.0, "9": 10.0}
    file.unlink()
    assert jaxtrain.load(tmp_path / "run").fitted.config.train.class_weights == {"3": 2.0, "9": 10.0}
    weights = np.array(model.fitted.technique.binding.class_weights)
    np.testing.assert_allclose(weights / weights[0], [1, 1, 1, 2, 1, 1, 1, 1, 1, 10])


@pytest.mark.slow
def test_vectors_take_a_mapping_too():
    generator = np.random.default_rng(0)
    y = np.repeat([0, 1], [300, 40])
    x = generator.normal(size=(340, 3)) + y[:, None]

    def ones(weights):
        head = FEClassifier(train={"class_weights": weights}).fit_embeddings(x, y)
        return (head.predict_embeddings(x) == 1).sum()

    assert ones({"1": 30}) > ones("balanced") > ones("none")


def test_the_shares_that_adjust_logits_are_those_of_what_is_drawn():
    train = ArraySource(np.zeros((len(LABELS), 1, 1, 1), np.uint8), LABELS)
    dataset = SimpleNamespace(train=train, num_classes=5, class_counts=COUNTS)
    config = Config(loss={"logit_adjustment": 1})
    np.testing.assert_allclose(adjusted_shares(config, dataset), log_shares(COUNTS), rtol=1e-6)
    balanced = config.replace(**{"data.sampling": "balanced"})
    found = np.delete(adjusted_shares(balanced, dataset), 2)
    assert np.ptp(found) < 1e-6
    assert adjusted_shares(Config(), dataset) is None


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("pt --data.sampling balancd", "'balanced'"),
        ("pt --data.sampling sqrt --data.sampling-beta 0.9", "sampling_beta"),
        ("pt --data.sampling balanced --train.class-weights balanced", "data.sampling balanced"),
        ("fe --data.sampling balanced", "data.sampling"),
        ("pt --train.class-weights balancd", "'balanced'"),
        ("pt --train.class-weights zero.yaml", "class eight must be a number above 0, not 0"),
        ("pt --train.class-weights other.yaml", "no class is called 'twelve'"),
        ("pt --train.class-weights list.yaml", "list.yaml"),
    ],
)
def test_wrong_options_are_refused_in_one_line(words, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero.yaml").write_text("eight: 0")
    (tmp_path / "other.yaml").write_text("twelve: 2")
    (tmp_path / "list.yaml").write_text("- 1\n- 2")
    with pytest.raises(UserError, match=named) as caught:
        Train.parse(["--technique", *words.split()]).run()
    assert "\n" not in str(caught.value)


def test_the_plan_says_what_an_epoch_is(skewed, tmp_path, capsys):
    given = {"data": {"sampling": "balanced"}, "loss": {"name": "focal"}, "train": {"steps": 3}, "quiet": False}
    PTClassifier(**options(tmp_path / "run", **given)).fit(*skewed)
    shown = " ".join(capsys.readouterr().out.split())
    assert "sampling balanced" in shown
    assert "one of 9 (" in shown
    assert "focal, gamma 2" in shown


@pytest.mark.slow
def test_rare_classes_are_found_more_often(tmp_path):
    """By each of the ways; on images of which one class is rare."""
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    rare = np.flatnonzero(bunch.target == 8)
    train = np.setdiff1d(np.arange(1200), rare[6:])
    test = np.setdiff1d(np.arange(1797), train)

    def recall(name, **more):
        more = options(tmp_path / name, train={"steps": 150, **more.pop("train", {})}, **more)
        model = PTClassifier(**more).fit(images[train], bunch.target[train])
        here = test[bunch.target[test] == 8]
        return np.mean(model.predict(images[here]) == 8)

    plain = recall("plain")
    assert recall("balanced", data={"sampling": "balanced"}) > plain
    assert recall("weights", train={"class_weights": {"8": 20}}) > plain
    assert recall("adjusted", loss={"logit_adjustment": 1.0}) > plain


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["device", "stream"])
def test_a_balanced_run_goes_on_to_the_same_bits(loader, skewed, tmp_path):
    data = {"sampling": "balanced", "loader": loader, "workers": 0}
    more = {"data": data, "schedule": {"name": "constant"}}
    whole = PTClassifier(**options(tmp_path / "whole", **more)).fit(*skewed)
    PTClassifier(**options(tmp_path / "parts", **more, train={"steps": 13})).fit(*skewed)
    parts = PTClassifier(**options(tmp_path / "parts", **more)).fit(*skewed)
    assert parts.summary["params_sha256"] == whole.summary["params_sha256"]


def test_test_images_by_how_frequent_their_class_is():
    dataset = SimpleNamespace(class_counts=np.array([101, 100, 20, 19]))
    test = SimpleNamespace(dataset=dataset, images=SimpleNamespace(labels=np.array([0, 1, 2, 3])))
    ((column, values),) = by_frequency(test).items()
    assert "training" in column
    assert [value.split()[0] for value in values] == ["many", "medium", "medium", "few"]
    dataset.class_counts = np.full(4, 150)
    assert by_frequency(test) == {}
