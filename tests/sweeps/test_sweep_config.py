"""The file of a sweep: what it gives, and one line for every mistake in it."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrain.errors import UserError
from jaxtrain.sweeps.config import Range, load_sweep
from jaxtrain.sweeps.settings import axes_of, settings_of

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "sweep.py"
LR = "axes: {optimizer.learning_rate: [0.001]}"
MISTAKES = [
    ("axes: {train.epochs: [1]}", "base is missing"),
    ("base: {}", "axes is missing"),
    ("base: {}\naxes: {}", "axes: must be a mapping from option paths to values"),
    ("base: {}\naxes: {optimizer.lr: [0.1]}", "optimizer.lr: unknown option, did you mean 'optimizer.learning_rate'?"),
    ("base: {}\naxes: {train.epochs: []}", "axes: train.epochs: is empty"),
    ("base: {}\naxes: {train.epochs: 3}", "train.epochs: must be a list of values or {low, high, log, steps}, not 3"),
    ("base: {}\naxes: {optimizer.learning_rate: [-1]}", "optimizer.learning_rate: must be greater than 0, not -1"),
    ("base: {}\naxes: {head.name: [linear, knn]}", "head.name is an option of technique fe, not of pt"),
    (
        "base: {technique: pt}\naxes: {technique: [ft], model.weights: [null]}\nsede: 3",
        "sede: unknown option, did you mean 's",
    ),
    (f"base: {{}}\n{LR}\nseeds: 0", "seeds: there must be at least 1"),
    (f"base: {{}}\n{LR}\nseeds: [1, 1]", "seeds: a seed is given twice"),
    (f"base: {{}}\n{LR}\ncombine: gird", "combine: unknown value 'gird', did you mean 'grid'?"),
    (f"base: {{}}\n{LR}\ncombine: tpe", "budget.trials is missing: combine tpe draws that many settings"),
    (f"base: {{}}\n{LR}\nbudget: {{trails: 3}}", "budget: trails: unknown option, did you mean 'trials'?"),
    ("base: {}\naxes: {seed: [1, 2]}", "axes: seed: is given as seeds"),
    ("base: {}\naxes: {tracking.uri: [a]}", "tracking.uri: decides nothing about what is learned"),
    ("base: {}\naxes: {train.epochs: {low: 1, high: 5}}", "steps is missing: combine grid needs single values"),
    ("base: {}\naxes: {train.epochs: {low: 5, high: 1, steps: 2}}", "low 5 is not below high 1"),
    ("base: {}\naxes: {train.epochs: {low: 1, hihg: 5}}", "hihg: unknown option, did you mean 'high'?"),
    ("base: {}\naxes: {train.epochs: [1, 2], seed.x: [1]}", "seed.x: unknown option"),
    (
        "base: {}\naxes: {train.epochs: [1, 2], train.batch_size: [8]}\ncombine: zip",
        "train.epochs has 2, train.batch_size has 1",
    ),
    ("base: {}\naxes: {'train.epochs, train.batch_size': [[1, 8], [2]]}", "[2] must be a list of 2 values"),
    ("base: {}\naxes: {'train.epochs, train.batch_size': [[1, 8]], train.epochs: [1]}", "train.epochs is on two axes"),
    (
        "base: {train: {epoch: 3}}\naxes: {train.epochs: [1]}",
        "base: train.epoch: unknown option, did you mean 'train.epochs'?",
    ),
    ("base: nowhere.yaml\naxes: {train.epochs: [1]}", "nowhere.yaml: No such file"),
    (
        "base: {}\naxes: {train.epochs: [1, 2, 3]}\nbudget: {trials: 2}",
        "budget.trials: 2, but combine grid makes 3 settings",
    ),
]


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def combined(sweep):
    return settings_of(sweep, axes_of(sweep))


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_one_line(text, message, tmp_path):
    with pytest.raises(UserError) as raised:
        combined(load_sweep(written(tmp_path, text)))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command_says_it_in_one_line_before_anything_is_made(tmp_path):
    path = written(tmp_path, "base: {}\naxes: {optimizer.lr: [0.1]}")
    done = subprocess.run([sys.executable, SCRIPT, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean 'optimizer.learning_rate'?" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.yaml"]


def test_what_a_file_leaves_open(tmp_path):
    sweep = load_sweep(
        written(tmp_path, "base: {train: {epochs: 3}}\naxes: {optimizer.learning_rate: [0.001, 1e-2]}\nseeds: 4")
    )
    assert sweep.name == "mine"
    assert sweep.seeds == (0, 1, 2, 3)
    assert sweep.base.train.epochs == 3
    assert (sweep.combine, sweep.objective, sweep.pruning) == ("grid", "val/accuracy", "none")


def test_a_base_in_a_file_stands_beside_the_sweep(tmp_path):
    (tmp_path / "base.yaml").write_text("train: {epochs: 7}")
    sweep = load_sweep(
        written(tmp_path, "base: base.yaml\naxes: {train.batch_size: {low: 8, high: 64, log: true, steps: 4}}")
    )
    assert sweep.base.train.epochs == 7
    assert sweep.axes["train.batch_size"] == Range(low=8, high=64, log=True, steps=4)
