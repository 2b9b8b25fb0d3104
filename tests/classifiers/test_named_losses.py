"""Losses by name through every technique, side by side, and resumed."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from jaxtrain import FEClassifier, FTClassifier, PTClassifier, UserError
from jaxtrain.cli.train import Train
from jaxtrain.config import HeadConfig, LossConfig
from jaxtrain.data.sources import load_dataset
from jaxtrain.heads import Vectors, fit_head
from jaxtrain.runs.group import run_together
from jaxtrain.runs.learning import Part
from jaxtrain.runs.program import Programs
from jaxtrain.runs.run import run
from tests.marks import mostly_slow

SLOW = pytest.mark.slow
LOSSES = [
    {"name": "bce"},
    {"name": "bce", "target_threshold": 0.3},
    {"name": "focal"},
    {"name": "poly1"},
    {"name": "asymmetric"},
    {"name": "gce"},
    {"name": "cross_entropy", "logit_adjustment": 1.0},
]
SOAK = pytest.mark.soak
OFTEN_ONE = [LOSSES[2], *(pytest.param(loss, marks=SOAK) for loss in LOSSES if loss != LOSSES[2])]
QUIET = {"quiet": True, "tracking": {"enabled": False}}
FAST = {"model": {"name": "mlp_tiny"}, "optimizer": {"learning_rate": 1e-2}, "parallel": {"devices": 1}, **QUIET}


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(PTClassifier(**FAST).data_config)


def part(programs):
    return Part(programs, lambda final: {}, lambda step, metrics: None)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [LOSSES[0], *(pytest.param(loss, marks=SLOW) for loss in LOSSES[1:])])
def test_pt_learns_with_every_loss_and_mixed_images(loss, dataset, tmp_path):
    model = PTClassifier(run_dir=tmp_path, loss=loss, train={"steps": 120}, augment={"mixup": 0.2}, **FAST)
    assert run(model, dataset).summary["val_accuracy"] > 0.85


@pytest.mark.slow
@pytest.mark.parametrize(
    "axis",
    [
        ({"name": "focal", "gamma": 0.0}, {"name": "focal", "gamma": 5.0}),
        ({"name": "gce", "q": 0.1}, {"name": "gce", "q": 1.0}),
        ({"name": "asymmetric", "clip": 0.0, "gamma": 1.0}, {"name": "asymmetric", "clip": 0.2}),
        ({"name": "bce", "target_threshold": 0.1}, {"name": "bce", "target_threshold": 0.5}),
        ({"name": "poly1", "epsilon": -1.0}, {"name": "poly1", "epsilon": 2.0}),
        ({"logit_adjustment": 0.5}, {"logit_adjustment": 2.0}),
    ],
)
def test_values_of_a_loss_train_side_by_side_as_alone(axis, dataset, tmp_path):
    """In one program: they are its arguments."""

    def model(name, loss):
        return PTClassifier(run_dir=tmp_path / name, loss=loss, train={"steps": 30}, augment={"mixup": 0.5}, **FAST)

    programs = Programs()
    members = run_together([(model(f"member{i}", loss), part(programs)) for i, loss in enumerate(axis)], dataset)
    assert len(programs._kept) == 1
    digests = set()
    for number, (loss, member) in enumerate(zip(axis, members, strict=True)):
        alone = run(model(f"alone{number}", loss), dataset)
        for name, value in alone.weights["params"].items():
            np.testing.assert_allclose(member.weights["params"][name], value, atol=2e-4)
        digests.add(member.summary["params_sha256"])
    assert len(digests) == 2


@pytest.mark.slow
@pytest.mark.parametrize("loss", OFTEN_ONE)
def test_ft_and_fe_learn_with_every_loss(loss, digits, tmp_path):
    PTClassifier(run_dir=tmp_path / "pt", train={"epochs": 10}, **FAST).fit(*digits, test=digits)
    options = {"model": {"weights": str(tmp_path / "pt")}, "loss": loss, **QUIET}
    for strategy in ({"strategy": "full"}, {"strategy": "full", "linear_probe": True}):
        finetuned = FTClassifier(
            run_dir=tmp_path / str(len(strategy)), finetune=strategy, train={"epochs": 3}, **options
        )
        assert finetuned.fit(*digits, test=digits).summary["test_accuracy"] > 0.8
    for head in ("linear", "mlp"):
        features = {"store": tmp_path / "store"}
        extracted = FEClassifier(run_dir=tmp_path / head, head={"name": head}, features=features, **options)
        assert extracted.fit(*digits, test=digits).summary["test_accuracy"] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("loss", [{"name": "asymmetric"}, {"logit_adjustment": 1.0}])
def test_a_run_goes_on_with_its_loss_to_the_same_bits(loss, digits, tmp_path):
    options = {"schedule": {"name": "constant"}, "train": {"steps": 40}, **FAST}
    whole = PTClassifier(run_dir=tmp_path / "whole", loss=loss, **options).fit(*digits, test=digits)
    PTClassifier(run_dir=tmp_path / "parts", loss=loss, **{**options, "train": {"steps": 20}}).fit(*digits, test=digits)
    continued = PTClassifier(run_dir=tmp_path / "parts", loss=loss, **options).fit(*digits, test=digits)
    assert continued.summary["params_sha256"] == whole.summary["params_sha256"]
    with pytest.raises(UserError, match=r"loss\."):
        PTClassifier(run_dir=tmp_path / "parts", loss={"name": "gce"}, **options).fit(*digits, test=digits)


def vectors(counts, seed):
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    centres = np.random.default_rng(9).standard_normal((len(counts), 5))
    return Vectors((centres[y] + generator.standard_normal((len(y), 5))).astype(np.float32), y)


@pytest.mark.parametrize("name", mostly_slow(["linear", "mlp"], {"linear"}))
@pytest.mark.parametrize("loss", [LOSSES[2], *(pytest.param(loss, marks=SLOW) for loss in LOSSES if loss != LOSSES[2])])
def test_heads_learn_with_every_loss(name, loss):
    train, val = vectors((200, 150, 100), 0), vectors((100, 100, 100), 1)
    head = fit_head(HeadConfig(name=name), train, val, num_classes=4, loss=LossConfig(**loss))
    reference = LogisticRegression().fit(train.x, train.y).score(val.x, val.y)
    assert np.mean(head.logits(val.x).argmax(1) == val.y) > reference - 0.05
    assert np.isfinite([row["val_loss"] for row in head.curve]).all()


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_logit_adjustment_of_a_linear_head_moves_its_biases_by_the_log_shares(solver):
    """Biases are free, so that the optimum is the plain one, moved."""
    train = vectors((300, 60, 20), 0)
    exact = {"learning_rate": (1.0,), "batch_size": len(train.y), "epochs": 400} if solver == "sgd" else {}
    config = HeadConfig(solver=solver, scaling=("none",), weight_decay=(1e-2,), **exact)
    plain, moved = (
        fit_head(config, train, num_classes=3, loss=LossConfig(logit_adjustment=tau)).logits(train.x)
        for tau in (0.0, 1.0)
    )
    shift = moved - plain
    shift -= shift.mean(axis=1, keepdims=True)
    expected = -np.log(np.bincount(train.y) / len(train.y))
    np.testing.assert_allclose(
        shift, np.tile(expected - expected.mean(), (len(shift), 1)), atol=1e-3 if solver == "lbfgs" else 0.05
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("pt --loss.name focl", "'focal'"),
        ("pt --loss.name gce --loss.gamma 2", "loss: gamma is an option of focal and asymmetric"),
        ("pt --loss.name gce --loss.q 0", "loss.q"),
        ("pt --loss.name bce --loss.logit-adjustment 1", "logit_adjustment"),
        ("pt --loss.name bce --loss.target-threshold 0.2 --train.label-smoothing 0.1", "label_smoothing"),
        ("pt --loss.name focal --own.loss a:b", "own.loss"),
        ("fe --loss.name focal --head.name knn", "head.name knn"),
        ("fe --loss.name focal --head.solver lbfgs", "head.solver lbfgs"),
        ("pt --loss focal", "--loss.name"),
        ("pt --focal-loss", "--loss.name focal"),
    ],
)
def test_losses_that_cannot_be_are_refused(words, named):
    with pytest.raises(UserError, match=named):
        Train.parse(["--technique", *words.split()])


def test_a_name_in_the_place_of_a_function_is_explained():
    with pytest.raises(UserError, match=r"loss\.name"):
        PTClassifier(loss="focal")
