from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.config import Config, DataConfig, TrackingConfig
from jaxtrain.config_io import dump_config
from jaxtrain.data.digest import digest_of_test_set
from jaxtrain.errors import UserError
from jaxtrain.evaluation import costs
from jaxtrain.evaluation.comparison import compare
from jaxtrain.evaluation.costs import ForwardPass
from jaxtrain.evaluation.finished import STUDY_LOCK, by_test_set, finished_runs, read_run
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.evaluation.report import FILES, Report
from jaxtrain.evaluation.runs import gather, make_report, track, track_report
from jaxtrain.files import numbered_folder
from jaxtrain.tracking import TrackerReport

DIGITS = tuple("0123456789")


class Fake:
    """A random linear model of digits."""

    class_names = DIGITS

    def __init__(self, path):
        self.seed = int(path.name[-1])
        self.calls = 0
        self.config = Config().replace(
            **{"data.image_size": 8, "data.channels": 1, "data.crop_pct": 1.0, "data.interpolation": "bilinear"}
        )
        self.weights = np.random.default_rng(self.seed).normal(size=(64, 10)).astype(np.float32) / 500

    def predict_logits(self, source):
        self.calls += 1
        return np.stack([source.read(i).ravel() for i in range(len(source))]).astype(np.float32) @ self.weights

    def forward_pass(self):
        return ForwardPass(lambda w, x: x.reshape(len(x), -1).astype(np.float32) @ w, self.weights, self.config)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "SECONDS", 0.01)
    monkeypatch.setattr(costs, "BATCHES", (1, 4))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def loaded():
    """A `load` that remembers what it gave."""
    given = []

    def load(path):
        given.append(Fake(path))
        return given[-1]

    load.given = given
    return load


def make_run(root, name, **options):
    path = root / "runs" / "pt" / name
    (path / "model").mkdir(parents=True)
    (path / "model" / "weights").write_bytes(bytes(1000))
    path.joinpath("config.yaml").write_text(dump_config(Config(technique="pt").replace(**options)))
    summary = {
        **{"params_sha256": name[-1] * 64, "model": "linear", "params": 640, "trainable_params": 640},
        **{"wall_seconds": 2.0, "images_per_second": 50.0, "mlflow_run_id": f"run {name}"},
    }
    path.joinpath("summary.json").write_text(json.dumps(summary))
    path.joinpath("metrics.jsonl").write_text('{"step": 1, "time": 0.0, "val/accuracy": 0.5}\n')
    return path


def test_predictions_costs_and_curves_are_gathered_once(tmp_path, loaded):
    paths = [make_run(tmp_path, f"m{i}", seed=i) for i in range(2)]
    first = gather(paths, loaded)
    assert [candidate.name for candidate in first.candidates] == ["pt/m0", "pt/m1"]
    one = first.candidates[1]
    assert np.array_equal(one.predictions.logits, Fake(paths[1]).predict_logits(first.test.images))
    assert one.predictions.val_logits.shape == (144, 10)
    assert (one.seed, one.run_dir, len(one.curves)) == (1, paths[1], 1)
    assert one.costs["images_seen"] == 100
    assert one.costs["model_mb"] == 0.001
    assert one.costs["latency_ms_p50"] > 0
    assert first.fresh == [True, True]
    assert first.looks == 2
    assert (paths[0] / "benchmark" / "predictions.npz").is_file()

    computed = sum(model.calls for model in loaded.given)
    second = gather(paths, loaded)
    assert sum(model.calls for model in loaded.given) == computed == 4
    assert second.fresh == [False, False]
    assert second.looks == 2
    assert second.candidates[1].costs == one.costs
    assert np.array_equal(second.candidates[1].predictions.logits, one.predictions.logits)


def test_many_settings_of_one_sweep_on_the_test_set_are_warned_about(tmp_path, loaded):
    rates = [0.1 * (i + 1) for i in range(5)]
    paths = [make_run(tmp_path, f"m{i}", **{"optimizer.learning_rate": rate}) for i, rate in enumerate(rates)]
    paths.append(make_run(tmp_path, "m6", seed=6, **{"optimizer.learning_rate": rates[0]}))

    def warnings(paths):
        gathered = gather(paths, loaded, costs=False)
        comparison = compare(gathered.candidates, resamples=100)
        report = make_report(gathered, comparison, columns={}, duplicates=False, corrupted={})
        return [line for line in report.warnings if "sweep" in line]

    assert warnings(paths) == []
    (tmp_path / "runs" / "pt" / STUDY_LOCK).touch()
    assert warnings(paths[:2]) == []
    assert warnings([paths[0], paths[5]]) == []
    (line,) = warnings(paths[2:5])  # those that were measured before count too, and a seed is not a setting
    assert line.startswith("5 settings of the sweep pt ")


def test_another_test_set_gets_a_folder_of_its_own(tmp_path, loaded):
    path = make_run(tmp_path, "m1")
    own = gather([path], loaded, costs=False)
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "other.npz", x_train=pixels, y_train=labels, x_test=pixels[:20], y_test=labels[:20])
    data = DataConfig(name=f"npz:{tmp_path / 'other.npz'}")
    other = gather([path], loaded, data=data, costs=False)
    assert other.folders == [path / "benchmark" / f"test-{other.test.digest[:12]}"]
    assert len(other.candidates[0].predictions.labels) == 20
    assert other.duplicates["training"]
    assert not gather([path], loaded, data=data, costs=False).fresh[0]
    # The run's own test set, named explicitly, is where it was.
    assert gather([path], loaded, data=DataConfig(), costs=False).folders == own.folders


def test_a_model_of_other_classes_is_named(tmp_path, loaded):
    path = make_run(tmp_path, "m1")
    pixels, labels = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 3
    np.savez(tmp_path / "other.npz", x_train=pixels, y_train=labels, x_test=pixels[:20], y_test=labels[:20])
    with pytest.raises(UserError, match=r"^pt/m1: the model knows 10 classes, the test set of npz:.* has 3$"):
        gather([path], loaded, data=DataConfig(name=f"npz:{tmp_path / 'other.npz'}"), costs=False)


def test_retrained_parameters_make_kept_predictions_stale(tmp_path, loaded):
    path = make_run(tmp_path, "m1")
    gather([path], loaded, costs=False)
    summary = json.loads((path / "summary.json").read_text())
    path.joinpath("summary.json").write_text(json.dumps({**summary, "params_sha256": "f" * 64}))
    assert gather([path], loaded, costs=False).fresh == [True]


def test_runs_whose_images_are_gone_are_still_compared(tmp_path, loaded, caplog):
    path = make_run(tmp_path, "m1")
    gather([path], loaded, costs=False)
    path.joinpath("config.yaml").write_text(dump_config(Config(technique="pt").replace(**{"data.name": "folder:gone"})))
    gathered = gather([path], loaded, costs=False)
    assert gathered.test is None
    assert "no images are shown" in caplog.text
    assert compare(gathered.candidates, resamples=100).entries[0].score >= 0


def test_test_images_that_have_changed_are_not_shown(tmp_path, loaded, caplog):
    path = make_run(tmp_path, "m1")
    gather([path], loaded, costs=False)
    file = path / "benchmark" / "predictions.npz"
    kept = Predictions.load(file)
    labels = (kept.labels + 1) % 10
    digest = digest_of_test_set(kept.ids, labels, kept.class_names)
    dataclasses.replace(kept, labels=labels.astype(np.int32), test_digest=digest).save(file)
    assert gather([path], loaded, costs=False).test is None
    assert "has changed since" in caplog.text


def save_npz(path, *, test=20, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    pixels, labels = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % classes
    held = {"x_test": pixels[:test], "y_test": labels[:test]} if test else {}
    np.savez(path, x_train=pixels, y_train=labels, **held)
    return f"npz:{path}"


def test_runs_are_grouped_by_test_set_and_what_is_left_out_is_named(tmp_path, loaded, caplog):
    npz = save_npz(tmp_path / "npz.npz")
    alone = make_run(tmp_path, "a0", **{"data.name": npz})
    digits = [make_run(tmp_path, f"m{i}", seed=i) for i in range(2)]
    untested = make_run(tmp_path, "t1", **{"data.name": save_npz(tmp_path / "no_test.npz", test=0)})
    gone = make_run(tmp_path, "g1", **{"data.name": "folder:gone"})
    broken = make_run(tmp_path, "x1")
    (broken / "summary.json").write_text("{")
    paths = [untested, alone, gone, *digits, broken]
    assert by_test_set(paths) == [digits, [alone]]
    assert not loaded.given
    assert not list(tmp_path.rglob("predictions.npz"))
    for path, reason in ((untested, "has no test images"), (gone, "gone"), (broken, "is not a sound summary of a run")):
        assert sum(str(path) in line and "left out" in line and reason in line for line in caplog.messages) == 1
    with pytest.raises(UserError, match="no finished run has a test set"):
        by_test_set([untested, gone])
    data = DataConfig(name=save_npz(tmp_path / "other.npz", seed=1))
    assert by_test_set([untested, *digits], data) == [[untested, *digits]]


def test_test_sets_that_differ_are_found_before_anything_is_computed(tmp_path, loaded):
    paths = [make_run(tmp_path, "m1"), make_run(tmp_path, "m2", **{"data.name": save_npz(tmp_path / "npz.npz")})]
    with pytest.raises(UserError, match=r"pt/m2 .* has another test set than pt/m1 .*--data.name"):
        gather(paths, loaded)
    assert not loaded.given
    assert not list(tmp_path.rglob("predictions.npz"))


def test_kept_predictions_that_are_damaged_are_computed_again(tmp_path, loaded, caplog):
    path = make_run(tmp_path, "m1")
    whole = gather([path], loaded, costs=False)
    (path / "benchmark" / "predictions.npz").write_bytes(b"no archive")
    again = gather([path], loaded, costs=False)
    assert again.fresh == [True]
    assert np.array_equal(again.candidates[0].predictions.logits, whole.candidates[0].predictions.logits)
    assert "computed again" in caplog.text


def test_a_link_to_elsewhere_is_not_written_through(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = make_run(tmp_path, "run-0")
    (path / "benchmark").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="run-0/benchmark is a link"):
        read_run(path)


def test_recipes_are_the_config_without_seed_and_place(tmp_path):
    def recipe(name, **options):
        return read_run(make_run(tmp_path, name, **options)).recipe

    base = recipe("a0", seed=0)
    assert recipe("a1", seed=1, **{"tracking.enabled": False, "data.workers": 3}) == base
    assert recipe("a2", **{"optimizer.learning_rate": 0.5}) != base
    assert recipe("a3", **{"data.split_seed": 1}) != base


def test_finished_runs_are_found(tmp_path):
    with pytest.raises(UserError, match="runs holds no finished run"):
        finished_runs()
    paths = [make_run(tmp_path, f"m{i}") for i in range(2)]
    (tmp_path / "runs" / "pt" / "unfinished").mkdir()
    (tmp_path / "runs" / "pt" / "unfinished" / "config.yaml").write_text("")
    assert [path.resolve() for path in finished_runs()] == paths


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "summary.json").unlink(), "m1: the run is not finished: .*summary.json is missing"),
        (lambda path: [(path / name).unlink() for name in ("summary.json", "config.yaml")], "no run is there"),
        (lambda path: (path / "summary.json").write_text("{"), "is not a sound summary of a run"),
        (lambda path: (path / "summary.json").write_text("{}"), "params_sha256"),
        (lambda path: (path / "summary.json").write_text("[]"), "not a JSON object"),
    ],
)
def test_what_is_no_finished_run_is_named(tmp_path, damage, message):
    path = make_run(tmp_path, "m1")
    damage(path)
    with pytest.raises(UserError, match=message):
        read_run(path)


def test_runs_of_one_name_are_told_apart(tmp_path, loaded):
    paths = [make_run(tmp_path / part, "m1") for part in "ab"]
    assert [candidate.name for candidate in gather(paths, loaded, costs=False).candidates] == [str(p) for p in paths]
    assert [c.name for c in gather(paths, loaded, costs=False, names=["x", "y"]).candidates] == ["x", "y"]


class FakeTracker:
    started: list = []  # noqa: RUF012

    @classmethod
    def start(cls, config, **arguments):
        tracker = cls()
        tracker.arguments, tracker.metrics, tracker.paths = arguments, {}, []
        cls.started.append(tracker)
        return tracker

    def log_input(self, *arguments):
        pass

    def log(self, step, metrics):
        self.metrics |= metrics

    def artifact(self, path):
        assert path.is_file()
        self.paths.append(path.name)

    def finish(self, status):
        return TrackerReport("sqlite:///x", f"id {1 + self.started.index(self)}", 0, None)


def test_each_model_and_the_report_are_runs_in_benchmark(tmp_path, loaded, monkeypatch):
    FakeTracker.started = []
    for user in ("evaluate", "runs"):
        monkeypatch.setattr(f"jaxtrain.evaluation.{user}.Tracker", FakeTracker)
    gathered = gather([make_run(tmp_path, f"m{i}", seed=i) for i in range(2)], loaded)
    comparison = compare(gathered.candidates, resamples=100)
    ids = track(gathered, comparison, TrackingConfig())
    assert ids == ["id 1", "id 2"]
    first = FakeTracker.started[0]
    assert first.arguments["experiment"] == "Benchmark"
    assert first.arguments["run_name"] == "pt-m0"
    assert first.arguments["tags"]["source_run_id"] == "run m0"
    assert first.metrics["test/accuracy"] == comparison.entry("pt/m0").score
    assert first.metrics["cost/latency_ms_p50"] > 0
    assert {"predictions.npz", "metrics.json", "per_class.csv", "confusion_matrix.png"} <= set(first.paths)

    report = Report(comparison, gathered.test.images, gathered.test.dataset, looks=gathered.looks)
    folder = report.save(numbered_folder(Path("runs/benchmark"), "digits"))
    assert folder.as_posix() == "runs/benchmark/digits-1"
    assert numbered_folder(Path("runs/benchmark"), "digits").name == "digits-2"
    assert track_report(report, folder, TrackingConfig(), ids) == "id 3"
    last = FakeTracker.started[2]
    assert last.paths == list(FILES)
    assert last.arguments["tags"]["kind"] == "comparison"
    assert last.arguments["tags"]["evaluations"] == "id 1 id 2"

    again = gather([run.path for run in gathered.runs], loaded)
    track(again, compare(again.candidates, resamples=100))
    assert FakeTracker.started[3].arguments["run_dir"] == first.arguments["run_dir"]


def test_runs_in_which_nothing_can_be_written_are_compared_all_the_same(tmp_path, loaded, caplog):
    paths = [make_run(tmp_path, f"m{i}", seed=i) for i in range(2)]
    for path in paths:
        (path / "benchmark").write_text("as good as a folder that is read-only")
    gathered = gather(paths, loaded)
    assert gathered.fresh == [True, True]
    assert all(candidate.costs["latency_ms_p50"] > 0 for candidate in gathered.candidates)
    assert track(gathered, compare(gathered.candidates, resamples=100), TrackingConfig(enabled=False)) == [None, None]
    assert str(paths[0] / "benchmark" / "predictions.npz") in caplog.text


def test_costs_are_measured_once_for_runs_that_predict_in_one_way(tmp_path, loaded, monkeypatch):
    measured = []
    monkeypatch.setattr(
        "jaxtrain.evaluation.runs.measure_costs", lambda model, _: measured.append(model) or {"latency_ms_p50": 1.0}
    )
    rates = [{"optimizer.learning_rate": rate} for rate in (0.1, 0.2, 0.3)]
    paths = [make_run(tmp_path, f"m{i}", seed=i, **rate) for i, rate in enumerate(rates)]
    other = make_run(tmp_path, "m3", seed=3, **{"model.name": "mlp_tiny"})
    gathered = gather([*paths, other], loaded)
    assert [candidate.costs["latency_ms_p50"] for candidate in gathered.candidates] == [1.0] * 4
    assert len(measured) == 2
    assert all((path / "benchmark" / "costs.json").is_file() for path in paths)
