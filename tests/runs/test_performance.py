"""What a run says of its speed, and the trace that it makes of some steps."""

import gzip
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest

from jaxtrain import PTClassifier, UserError
from jaxtrain.config_io import load_config
from jaxtrain.runs.callbacks import Profiling
from jaxtrain.training import chips, meter
from jaxtrain.training.chips import peak_flops
from jaxtrain.training.compiled import flops
from jaxtrain.training.meter import Meter, PackedMetrics
from jaxtrain.training.progress import Progress, Timetable
from tests.faults.small_run import fit

PEAK = 0.5
"""TFLOP/s that are claimed of the CPU."""


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """A run of four calls of two steps each, of which steps 4 to 6 are traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(chips.PEAK_TFLOPS, "cpu", PEAK)
        train = {"steps": 8, "steps_per_call": 2, "log_every": 2, "profile": "4:6"}
        return fit(tmp_path_factory.mktemp("profiled") / "run", train=train).run_dir


def speeds(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "train/loss" in record]


def traces(run_dir):
    return sorted(path.relative_to(run_dir) for path in run_dir.rglob("*.xplane.pb"))


def test_each_record_of_training_has_time_wait_and_utilisation(profiled, tmp_path, monkeypatch):
    rows = speeds(profiled)
    assert len(rows) == 4
    for row in rows:
        assert row["perf/step_ms"] == pytest.approx(1000 * 16 / row["images_per_second"])
        assert 0 <= row["perf/data_wait"] <= 1
    monkeypatch.setitem(chips.PEAK_TFLOPS, "cpu", PEAK)
    rows += speeds(fit(tmp_path / "run", train={"steps": 2, "accumulate": 2}, parallel={"strategy": "pmap"}).run_dir)
    work = [row["perf/mfu"] * row["perf/step_ms"] for row in rows]
    assert work == pytest.approx([work[0]] * 5)  # also of a batch in two parts, and of a replica's step
    assert work[0] * PEAK * 1e9 > 2 * 2 * 16 * 16 * 4  # two products of 16 images, 16 pixels and 4 classes


def test_times_are_those_of_the_interval(monkeypatch):
    now, rows = [0.0], []
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    table, progress = Timetable(total_steps=12, steps_per_epoch=4, batch_size=10, log_every=2), Progress()
    measured = Meter(table, progress, lambda step, row: rows.append(row), at_peak=0.1)
    for step in range(1, 13):
        now[0], progress.step = now[0] + 0.5, step
        measured.add(step, PackedMetrics(("loss",), jnp.ones((1, 1))), waited=0.2)
    for row in rows[1:]:  # the first interval is fetched late and began with the first step
        assert [row[f"perf/{name}"] for name in ("step_ms", "data_wait", "mfu")] == pytest.approx([500, 0.4, 0.2])
    assert len(rows) == 5
    assert "perf/mfu" not in Meter(table, progress, lambda step, row: None)._measured(1.0, 1)  # of what has no peak


def test_flops_are_counted_as_the_compiler_counts():
    a, b = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 16), jnp.float32)
    assert flops(jnp.matmul, a, b) == 2 * 64 * 32 * 16


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),  # no L4
        ("TPU v5 lite", 197e12),  # no v5
        ("TPU v5", 459e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_peaks_of_devices(kind, peak):
    assert peak_flops(kind) == (None if peak is None else pytest.approx(peak))


def test_a_profile_holds_its_steps_and_opens_in_perfetto(profiled):
    (trace,) = traces(profiled)
    assert trace.parts[:2] == ("profile", "4-6")
    (events,) = profiled.rglob("*.trace.json.gz")
    found = json.loads(gzip.decompress(events.read_bytes()))["traceEvents"]
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in found if e.get("name") == "PjitFunction(many)")
    calls = [span for span in spans if not any(a <= span[0] and span[1] <= b for a, b in spans if (a, b) != span)]
    assert len(calls) == 2  # of two steps each: 3 to 6


def test_a_trace_ends_with_training_and_goes_to_mlflow(tmp_path):
    class Recorder:
        artifacts: ClassVar[list] = []

        def artifact(self, path, folder):
            assert traces(path)  # it is whole
            self.artifacts.append((path, folder))

    for number in range(2):  # the second could not begin if the first had not ended
        folder = tmp_path / str(number)
        with Profiling((3, 9), 0, 1, folder, Recorder()) as tracing:
            tracing.step(2, {"loss": 1.0}, None)
        assert Recorder.artifacts[number:] == [(folder, "profile")]


@pytest.mark.parametrize(("profile", "made"), [("4:6", []), ("7:8", [])])
def test_a_run_that_goes_on_behind_the_range_makes_no_profile(profile, made, profiled):
    (profiled / "summary.json").unlink(missing_ok=True)
    before = traces(profiled)
    fit(profiled, train={"steps": 8, "steps_per_call": 2, "log_every": 2, "profile": profile})
    assert traces(profiled) == [*before, *made]


@pytest.mark.parametrize("profile", ["6:4", "0:3", "3", "a:b", "3:4:5", "-1:3", 1225])
def test_ranges_that_cannot_be_are_one_line(profile):
    with pytest.raises(UserError, match=r"train\.profile.*20:25") as refused:
        PTClassifier(train={"profile": profile})
    assert "\n" not in str(refused.value)


def test_a_range_without_quotes_is_explained(tmp_path):
    (tmp_path / "config.yaml").write_text("train:\n  profile: 20:25\n")
    with pytest.raises(UserError, match="quotes"):
        load_config(tmp_path / "config.yaml")


def test_a_range_behind_the_last_step_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"train\.profile.* 8$"):
        fit(tmp_path / "run", train={"steps": 8, "profile": "5:9"})
    assert not (tmp_path / "run" / "config.yaml").exists()
