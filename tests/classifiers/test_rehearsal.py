"""`--smoke` and `--debug`."""

import itertools
import os
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtrain import FEClassifier, FTClassifier, PTClassifier
from jaxtrain.classifiers import rehearsal
from jaxtrain.errors import RunError

LINEAR = {"model": {"name": "linear"}, "parallel": {"compilation_cache": False}}


@pytest.fixture(autouse=True)
def _temporary(tmp_path, monkeypatch):
    """Runs are made in folders of this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def trained(tmp_path):
    """The directory of a trained network."""
    options = {"run_dir": tmp_path / "run", "quiet": True, "train": {"steps": 2}, "tracking": {"enabled": False}}
    model = PTClassifier(**LINEAR, **options)
    return str(model.fit(np.zeros((32, 8, 8), np.uint8), np.arange(32) % 10).run_dir)


def linear(kind=PTClassifier, **options):
    return kind(**LINEAR, **options)


class Recording(PTClassifier):
    """What happened, in order; the second run of a directory is a resumed one."""

    happened: list = []  # noqa: RUF012

    def fit(self, images, labels, **kwargs):
        assert self.config.tracking.enabled is False
        shapes = [np.shape(part) for part in (images, kwargs["validation"][0], kwargs["test"][0])]
        self.happened.append(shapes)
        super().fit(images, labels, **kwargs)
        self.happened.append(sorted(path.name for path in self.run_dir.iterdir()))
        self.happened.append(self.summary)
        return self


def test_smoke_runs_every_stage_and_leaves_nothing(tmp_path, capsys):
    Recording.happened = []
    start = time.monotonic()
    rehearsal.smoke(linear(Recording, train={"epochs": 300, "batch_size": 4096}, schedule={"warmup_epochs": 50}))
    assert time.monotonic() - start < 60
    shapes, files, summary, _, _, again = Recording.happened
    assert [shape[1:] for shape in shapes] == [(8, 8, 1)] * 3  # as the digits are
    assert {"checkpoints", "metrics.jsonl", "model", "benchmark", "config.yaml"} <= set(files)
    assert summary["classes"] == 10
    assert summary["steps"] == again["steps"] == 4
    assert None not in (summary["val_accuracy"], summary["test_accuracy"])
    assert "uint8[32, 8, 8, 1], 10 classes" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_smoke_needs_no_data_set(capsys):
    data = {"name": "folder:/nowhere/images", "image_size": 12, "channels": 3}
    rehearsal.smoke(linear(data=data, augment={"policy": "strong"}))
    told = capsys.readouterr().out
    assert "/nowhere/images" in told
    assert "12, 12, 3], 10 classes" in told


@pytest.mark.slow
def test_smoke_of_a_head_with_few_shots(trained, tmp_path, capsys):
    data = {"shots": 5, "draws": 9}
    rehearsal.smoke(FEClassifier(data=data, model={"weights": trained}, head={"name": "mlp"}))
    assert "smoke: fe linear trained" in capsys.readouterr().out
    assert set(os.listdir(tmp_path)) == {"run"}


class Forgetful(PTClassifier):
    """A run that is resumed ends in other parameters."""

    digests = itertools.count()

    def about(self, job):
        return {"params_sha256": str(next(self.digests))}


@pytest.mark.slow
def test_smoke_compares_the_resumed_run(tmp_path):
    with pytest.raises(RunError, match="the resumed run ends in other parameters"):
        rehearsal.smoke(linear(Forgetful))
    assert len(os.listdir(tmp_path)) == 1  # kept to look at


def test_debug_trains_one_step_on_one_batch_and_leaves_the_test_set_shut(tmp_path, capsys):
    class Watched(PTClassifier):
        def loss(self, model, batch, key):
            seen.append(batch.image.shape)
            return super().loss(model, batch, key)

        def fit(self, *args, **kwargs):
            raise AssertionError

    seen = []
    rehearsal.debug(linear(Watched, train={"epochs": 300, "batch_size": 24}))
    assert set(seen) == {(24, 8, 8, 1)}
    assert "one step made no NaN" in capsys.readouterr().out
    assert jax.config.jax_debug_nans is False
    assert os.listdir(tmp_path) == []


class NotANumber(PTClassifier):
    def loss(self, model, batch, key):
        loss, metrics = super().loss(model, batch, key)
        return loss + jnp.log(-jnp.abs(loss)), metrics


@pytest.mark.slow
def test_debug_stops_at_the_operation_that_makes_nan():
    with pytest.raises(RunError, match=r"nan.*log|log.*nan"):
        rehearsal.debug(linear(NotANumber))


class WrongInputs(PTClassifier):
    def inputs(self, batch, keys):
        batch = super().inputs(batch, keys)
        return type(batch)(batch.image[:, :-1], batch.label, batch.weight)


class WrongClasses(PTClassifier):
    def build_model(self, *, num_classes, axis_name):
        return super().build_model(num_classes=1, axis_name=axis_name)


class WrongLoss(PTClassifier):
    def loss(self, model, batch, key):
        loss, metrics = super().loss(model, batch, key)
        return loss, {**metrics, "each": batch.label[:, 0]}


class WrongUpdate(PTClassifier):
    def make_optimizer(self, schedule):
        return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u[None] if u.ndim == 1 else u, updates))


@pytest.mark.parametrize(
    ("classifier", "told"),
    [
        (WrongInputs, r"image that `inputs` gives is float32\[128, 7, 8, 1\], not float32\[128, 8, 8, 1\]"),
        (WrongClasses, r"output of the network is float32\[128, 1\], not float\[128, 10\]"),
        (WrongLoss, r"each that `loss` gives is float32\[128\], not float\[\]"),
        (WrongUpdate, r"update of head/bias is float32\[1, 10\], not float32\[10\]"),
    ],
)
def test_debug_names_the_first_wrong_shape(classifier, told):
    with pytest.raises(RunError, match=told):
        rehearsal.debug(linear(classifier))


@pytest.mark.slow
def test_debug_of_a_head(trained, capsys):
    rehearsal.debug(FEClassifier(quiet=True, model={"weights": trained}))
    assert "one step made no NaN" in capsys.readouterr().out


@pytest.mark.slow
def test_debug_of_blocks_that_join_later(trained, capsys):
    rehearsal.debug(FTClassifier(quiet=True, finetune={"unfreeze_steps": 50}, model={"weights": trained}))
    assert "one step made no NaN" in capsys.readouterr().out


@pytest.mark.slow
def test_debug_of_lora_checks_the_network_that_trains(tmp_path, monkeypatch):
    small = {"quiet": True, "train": {"steps": 1, "batch_size": 8}, "tracking": {"enabled": False}}
    vit = PTClassifier(run_dir=tmp_path / "vit", model={"name": "vit_test"}, **small)
    vit.fit(np.zeros((32, 32, 32, 3), np.uint8), np.arange(32) % 10)
    checked = []
    check = rehearsal.check_shapes
    monkeypatch.setattr(rehearsal, "check_shapes", lambda *given: (checked.append(given[1]), check(*given)))
    finetune = {"strategy": "lora"}
    rehearsal.debug(FTClassifier(quiet=True, finetune=finetune, model={"weights": str(tmp_path / "vit")}))
    (setup,) = checked
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(setup.state.params)]
    assert sum("lora" in name for name in names) >= 8, names
