"""A run that goes on for longer than it was begun for ends as one that was begun so, to the bit."""

import json

import numpy as np
import pytest

from jaxtrain import PTClassifier, UserError
from jaxtrain.config_io import load_config
from tests.clock import without_clock

RNG = np.random.default_rng(0)
DATA = RNG.integers(0, 256, (80, 8, 8), np.uint8), np.arange(80) % 4
CONSTANT = {"name": "constant"}
WSD = {"name": "wsd", "warmup_epochs": 0.5, "decay_fraction": 0.5}


def classifier(folder, epochs, schedule, **options):
    train = {"epochs": epochs, "batch_size": 16, "log_every": 1, **options}
    return PTClassifier(
        run_dir=folder, train=train, schedule=schedule, model={"name": "mlp_tiny"}, quiet=True,
        tracking={"enabled": False}, checkpoint={"every_steps": 3},
    )  # fmt: skip


def records(folder):
    """The journal without what depends on the clock."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [without_clock(line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "calls"), [(CONSTANT, 1), (WSD, 1), (WSD, 4)])
def test_a_finished_run_goes_on(schedule, calls, tmp_path):
    assert classifier(tmp_path / "run", 4, schedule, steps_per_call=calls).fit(*DATA).summary["steps"] == 18
    longer = classifier(tmp_path / "run", 8, schedule, steps_per_call=calls).fit(*DATA)
    straight = classifier(tmp_path / "straight", 8, schedule, steps_per_call=calls).fit(*DATA)
    assert longer.summary["params_sha256"] == straight.summary["params_sha256"]
    assert records(tmp_path / "run") == records(tmp_path / "straight")
    assert load_config(tmp_path / "run" / "config.yaml").train.epochs == 8
    assert longer.summary["steps"] == 36


def test_an_unfinished_run_goes_on(tmp_path):
    class Stop:
        def step(self, step, metrics, run):
            if step == 7:
                raise RuntimeError("stopped")

    begun = classifier(tmp_path / "run", 4, CONSTANT)
    with pytest.raises(Exception, match="stopped"):
        PTClassifier(begun.config, callbacks=[Stop()]).fit(*DATA)
    longer = classifier(tmp_path / "run", 6, CONSTANT).fit(*DATA)
    straight = classifier(tmp_path / "straight", 6, CONSTANT).fit(*DATA)
    assert longer.summary["params_sha256"] == straight.summary["params_sha256"]


@pytest.mark.parametrize(
    ("schedule", "epochs"),
    [
        ({"name": "cosine"}, 8),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (({"name": "one_cycle"}, 8), (CONSTANT, 2), (WSD, 3))
        ),
    ],
)
def test_where_the_length_shapes_the_steps_so_far_it_is_refused(schedule, epochs, tmp_path):
    classifier(tmp_path / "run", 4, schedule).fit(*DATA)
    before = (tmp_path / "run" / "summary.json").read_bytes()
    with pytest.raises(UserError, match=rf"train\.epochs 4\.0 -> {epochs}.*--from"):
        classifier(tmp_path / "run", epochs, schedule).fit(*DATA)
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_without_the_checkpoint_that_is_shared_it_is_refused_and_the_run_stays(tmp_path):
    classifier(tmp_path / "run", 4, WSD).fit(*DATA)
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert checkpoints[0] == "00000009"  # half of 18 steps
    (tmp_path / "run" / "checkpoints" / checkpoints[0]).rename(tmp_path / "aside")
    with pytest.raises(UserError, match="--from"):
        classifier(tmp_path / "run", 8, WSD).fit(*DATA)
    assert (tmp_path / "run" / "summary.json").exists()
