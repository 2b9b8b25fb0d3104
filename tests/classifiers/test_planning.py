"""What a run would take on accelerators that are not here."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxtrain import PTClassifier
from jaxtrain.backend import backend, compiling_for
from jaxtrain.classifiers.planning import Embedded, Forecast, Way, plan
from jaxtrain.cli.forecast import _figures, _row
from jaxtrain.cli.plan import Plan
from jaxtrain.cli.train import Train
from jaxtrain.config import Config
from jaxtrain.config_io import find_config, load_config, recipe_names
from jaxtrain.errors import UserError
from jaxtrain.training.chips import CHIPS, target
from jaxtrain.training.compiled import Compiled, executed, touched
from tests.classifiers.plan_on_devices import Here

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "kind", "shape", "chips"),
    [
        ("v5e-16", "v5e", "4x4", 16),
        ("v5e:4x4", "v5e", "4x4", 16),
        ("v5e-1", "v5e", "1x1", 1),
        ("v6e-256", "v6e", "16x16", 256),
        ("v4-8", "v4", "2x2x1", 4),  # names of v4 and v5p count cores, two in a chip
        ("v5p-128", "v5p", "4x4x4", 64),
        ("h100", "h100", "1x1x1", 1),
        ("a100-8", "a100", "1x1x8", 8),
        ("h200-16", "h200", "1x2x8", 16),  # two hosts
    ],
)
def test_names_of_topologies(name, kind, shape, chips):
    found = target(name)
    assert (found.kind, found.shape, found.chips) == (kind, shape, chips)


@pytest.mark.parametrize(
    ("name", "near"), [("v5e-17", "v5e-16"), ("v5e:4x5", "v5e:4x"), ("v9-8", "v"), ("h100-12", "h100-8")]
)
def test_what_there_is_not_names_the_nearest(name, near):
    with pytest.raises(UserError, match=near):
        target(name)


def test_the_clock_is_that_of_the_peak():
    """128 x 128 matrix units, 4 a core; those of v6e are 256 x 256, and 2."""
    for kind, units, side in (("v4", 8, 128), ("v5e", 4, 128), ("v5p", 8, 128), ("v6e", 4, 256)):
        peak = 2 * units * side**2 * CHIPS[kind].ghz * 1e9
        assert peak == pytest.approx(CHIPS[kind].tflops * 1e12, rel=0.01)


def test_figures_of_a_program_are_those_of_its_arrays():
    a, b = jnp.ones((64, 32)), jnp.ones((32, 16))
    found = Compiled.of(jax.jit(lambda a, b: a @ b).lower(a, b).compile())
    assert found.touched == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert found.memory >= 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert found.cycles == 0
    assert found.collectives == {}


def test_bytes_touched_are_those_that_a_compiler_counts():
    def network(x, first, second):
        return jnp.tanh(x @ first) @ second + jnp.sum(x)

    given = [jnp.ones(shape) for shape in ((32, 16), (16, 64), (64, 8))]
    compiled = jax.jit(network).lower(*given).compile()
    assert touched(compiled.as_text()) == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.02)


def test_of_an_array_that_is_gathered_from_what_is_taken_counts():
    text = """
%fused (images: u8[50000,32], index: s32[4]) -> f32[4,32] {
  %images = u8[50000,32]{1,0} parameter(0)
  %index = s32[4]{0} parameter(1)
  %taken = u8[4,32]{1,0} gather(%images, %index), offset_dims={1}
  ROOT %floats = f32[4,32]{1,0} convert(%taken)
}
ENTRY %main (a: u8[50000,32], b: s32[4]) -> f32[4,32] {
  %a = u8[50000,32]{1,0} parameter(0)
  %b = s32[4]{0} parameter(1)
  ROOT %batch = f32[4,32]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused
}
"""
    assert touched(text) == 4 * 32 + 4 * 4 + 4 * 4 * 32


@pytest.mark.parametrize(
    "said",
    [
        'backend_config={"known_trip_count":{"n":"5"}}',
        'metadata={op_name="while"}',  # as the TPU compiler writes it: the condition says how often
    ],
)
def test_collectives_and_cycles_count_as_often_as_they_run(said):
    text = """
%condition (x: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %round = s32[]{:T(128)} get-tuple-element(%x), index=0
  ROOT %lt = pred[]{:T(512)} compare(%round, %limit), direction=LT
}
%body (x: f32[8]) -> f32[8] {
  %all-reduce.1 = (f32[8,2]{1,0}, bf16[3]{0}) all-reduce-start(%x), to_apply=%add
  %all-reduce.2 = f32[8,2]{1,0} all-reduce-done(%all-reduce.1)
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %loop = f32[8] while(%x), condition=%condition, body=%body, SAID
  %dot = f32[8] fusion(%loop), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"70"}
}
""".replace("SAID", said)

    class Executable:
        as_text = staticmethod(lambda: text)
        cost_analysis = staticmethod(lambda: None)

        @staticmethod
        def memory_analysis():
            names = ("argument", "output", "temp", "alias")
            return type("Stats", (), {f"{name}_size_in_bytes": 10 for name in names})

    found = Compiled.of(Executable())
    assert found.collectives == {"all-reduce": (5, 5 * (64 + 6))}
    assert (found.cycles, found.memory) == (70, 20)
    assert sum(times for each, times in executed(text) if "all-reduce-done" in each) == 5


def test_networks_are_traced_for_the_backend_that_is_asked_for():
    assert backend() == jax.default_backend()
    with compiling_for("tpu"):
        assert backend() == "tpu"
    assert backend() == jax.default_backend()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pt/digits"], "--for"),
        (["pt/digits", "--for", "v5e-4", "--images", "100"], "--classes"),
        (["pt/digits", "--for", "v5e-3"], "v5e-4"),
        (["pt/digits", "--for", "v5e-4", "--all", "True"], "--all"),
        (["--for", "v5e-3", "--all", "True"], "v5e-4"),
    ],
)
def test_wrong_plans_are_one_line(words, said):
    with pytest.raises(UserError, match=said) as refused:
        Plan.parse(words).run()
    assert "\n" not in str(refused.value)


def test_train_plans_too():
    with pytest.raises(UserError, match=r"--plan.*h100-8"):
        Train.parse(["--technique", "pt", "--plan", "h100-9"]).run()


def test_a_plan_says_what_embedding_takes_and_what_must_decode(monkeypatch):
    """Four chips embed 1,000 images in 0.1 s, of which a core of this machine of four decodes 100 in a second."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    compiled = Compiled(memory=2**30, temporary=0, touched=1, cycles=150_000_000, collectives={})
    way = Way("jit", 1000, compiled, parameters=0, optimizer=0)
    embedded = Embedded(images=50_000_000, features=512)
    forecast = Forecast(Config(technique="fe"), target("v5e-4"), [way], 1e9, 50_000, 100.0, embedded)
    rows = dict(_row(forecast, way))
    assert rows["images"] == "10,000/s, 2,500/s a chip"
    assert rows["to keep up"] == "100 cores like the 4 here (100 images/s each) must decode: those of 25 such hosts"
    assert rows["whole run"] == "50,000,000 images, 1.39 hours"
    assert rows["embeddings"] == "97,656.2 MiB: 512 numbers an image"
    assert rows["prediction"] == "1.7 minutes for a million images"
    figures = _figures(forecast, way)
    assert (figures["decoding_cores"], figures["decoding_hosts"]) == (100, 25)
    assert figures["embedding_bytes"] == 4 * 512 * 50_000_000
    assert "to keep up" not in dict(_row(replace(forecast, decoded=None), way))


def test_images_that_are_not_here_have_the_size_that_is_known_of_them():
    options = {"data": {"name": "tfds:cifar10"}, "model": {"name": "cnn_tiny"}, "train": {"batch_size": 8}}
    forecast = plan(PTClassifier(**options, quiet=True), Here("v5e", "1x1"), strategies=["jit"], largest=False)
    assert (forecast.config.data.image_size, forecast.config.data.channels) == (32, 3)


@pytest.mark.slow
def test_memory_is_that_of_the_program_that_runs(tmp_path):
    script = [sys.executable, "-m", "tests.classifiers.plan_on_devices", str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


COMPILERS = {"v5e-4": "libtpu", "h100-2": "jax_cuda13_plugin"}


@pytest.mark.slow
@pytest.mark.parametrize("chips", COMPILERS)
def test_a_plan_for_chips_that_are_not_here(chips, tmp_path):
    if importlib.util.find_spec(COMPILERS[chips]) is None:
        pytest.skip("their compiler is not installed")
    words = ["plan", "pt/digits", "--for", chips, "--largest", "False", "--json-file", str(tmp_path / "plan.json")]
    done = subprocess.run([sys.executable, "-m", "jaxtrain", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "yes" in done.stdout
    ways = json.loads((tmp_path / "plan.json").read_text())
    assert [way["strategy"] for way in ways] == ["jit", "fsdp"]
    for way in ways:
        assert (way["cycles"] > 0) == chips.startswith("v")
        assert way["bytes_touched"] > way["parameter_bytes"]
        assert "all-reduce" in way["collectives"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed")
def test_every_recipe_can_be_planned(tmp_path):
    words = ["plan", "--all", "True", "--for", "v5e-4", "--json-file", str(tmp_path / "plans.json")]
    done = subprocess.run([sys.executable, "-m", "jaxtrain", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["recipe"]: row for row in json.loads((tmp_path / "plans.json").read_text())}
    assert set(rows) == {name for name in recipe_names() if not name.startswith("sweeps/")}
    for name, row in rows.items():
        weights = load_config(find_config(name)).model.weights or ""
        assert row.get("fits") or weights.startswith("hf:"), row  # which may not be here
