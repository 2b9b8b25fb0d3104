"""Options without effect under a technique are refused; which ones those are is checked against what runs read."""

import sys

import numpy as np
import pytest

from jaxtrain import FEClassifier, FTClassifier, PTClassifier, UserError
from jaxtrain.cli.main import run
from jaxtrain.cli.train import Train
from jaxtrain.config import TECHNIQUES, Config, Section
from jaxtrain.config_io import dump_config, load_config, option_paths
from jaxtrain.runs.directory import RunDirectory

SECTIONS = {field.annotation: name for name, field in Config.model_fields.items()}
EVERYWHERE = {"technique", "name", "run_dir", "seed", "quiet", "data", "model", "parallel", "tracking", "own"}
EVERYWHERE |= {"train", "loss", "decision"}
ACTING = {
    "pt": EVERYWHERE | {"augment", "optimizer", "schedule", "checkpoint"},
    "ft": EVERYWHERE | {"augment", "optimizer", "schedule", "checkpoint", "finetune"},
    "fe": EVERYWHERE | {"features", "head"},
}
"""Sections of which something acts."""
IDLE = {
    "pt": {"data.draws"},
    "ft": {"data.draws"},
    "fe": {"data.loader", "data.device_budget_mb", "data.sampling", "data.sampling_beta"}
    | {"model.drop_rate", "model.drop_path_rate", "model.remat"}
    | {"own.loss", "own.optimizer"}
    | {path for path in option_paths() if path.startswith("train.")} - {"train.class_weights", "train.pos_weight"},
}
"""Of those sections, what does not."""


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_which_options_act(technique):
    config = Config(technique=technique)
    acting = {path for path in option_paths() if path.partition(".")[0] in ACTING[technique]} - IDLE[technique]
    assert {path for path in option_paths() if config.acts(path)} == acting
    views = Config(technique="fe", features={"views": 2})
    of_views = {path for path in option_paths() if views.acts(path)} - {
        p for p in option_paths() if Config(technique="fe").acts(p)
    }
    assert {"augment.policy", "augment.hflip"} < of_views
    assert not {"augment.mixup", "augment.cutmix", "augment.test_flips"} & of_views


@pytest.mark.parametrize(
    ("technique", "option", "value"),
    [
        ("fe", "train.epochs", "3"),
        ("fe", "train.ema_decay", "0.9"),
        ("fe", "optimizer.learning_rate", "0.1"),
        ("fe", "optimizer.name", "sgd"),
        ("fe", "schedule.name", "wsd"),
        ("fe", "checkpoint.every_seconds", "5"),
        ("fe", "augment.mixup", "0.2"),
        ("fe", "augment.hflip", "0.5"),
        ("fe", "augment.test_flips", "h"),
        ("fe", "model.drop_rate", "0.1"),
        ("fe", "data.loader", "stream"),
        ("fe", "own.optimizer", "a:b"),
        ("fe", "finetune.l2_sp", "0.1"),
        ("ft", "head.name", "knn"),
        ("ft", "features.views", "3"),
        ("pt", "finetune.l2_sp", "0.1"),
        ("pt", "features.batch_size", "8"),
    ],
)
def test_an_option_without_effect_is_refused_by_name(technique, option, value):
    with pytest.raises(UserError, match=option) as caught:
        Train.parse(["--technique", technique, f"--{option}", value])
    assert technique in str(caught.value)
    section, name = option.split(".")
    classifier = {"fe": FEClassifier, "ft": FTClassifier, "pt": PTClassifier}[technique]
    with pytest.raises(UserError, match=option):
        classifier(**{section: {name: value}})


def test_what_is_off_all_the_same_may_be_turned_off():
    """So that one section serves for all techniques."""
    assert FEClassifier(augment={"policy": "none", "mixup": 0.0, "hflip": 0}).config.augment.policy == "none"


def test_a_config_of_fe_that_older_versions_filled_in_loads(tmp_path):
    """They wrote length, optimizer, schedule and augmentation for every run; what a person adds is refused all the
    same."""
    file = tmp_path / "config.yaml"
    chosen = {"train.epochs": 150, "train.steps_per_call": 1, "train.select": "last", "augment.mixup": 0.2}
    chosen |= {"augment.hflip": 0.0, "model.drop_rate": 0.2, "optimizer.learning_rate": 1e-3}
    chosen |= {"optimizer.weight_decay": 0.05, "schedule.warmup_epochs": 7.5}
    text = dump_config(Config(technique="pt", seed=3).replace(**chosen)).replace("technique: pt", "technique: fe")
    file.write_text(text)
    assert load_config(file) == Config(technique="fe", seed=3)
    with pytest.raises(UserError, match=r"train\.epochs"):
        Train.parse(["--run-dir", str(tmp_path), "--train.epochs", "5"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["benchmark", "x", "--data.val-fraction", "0.2"], "data.name"),
        (["benchmark", "x", "--data.name", "digits", "--data.shots", "2"], "data.shots"),
        (["benchmark", "x", "--tracking.log-model", "False"], "--tracking.log-model"),
        (["benchmark", "x", "--skip-costs", "--costs-again"], "--skip-costs"),
        (["train", "--technique", "pt", "--data.dir", "/tmp"], "data.dir"),
        (["train", "--technique", "pt", "--schedule.decay-fraction", "0.5"], "schedule.decay_fraction"),
        (["train", "--technique", "pt", "--schedule.name", "constant", "--schedule.final-ratio", "0.5"], "final_ratio"),
        (["train", "--technique", "pt", "--schedule.name", "one_cycle", "--schedule.warmup-epochs", "1"], "warmup"),
    ],
)
def test_other_options_without_effect_are_refused(words, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=named):
        run(words)


NOT_READ = {
    # Read before the run directory is there, as are the next; train.profile by another name.
    *("technique", "name", "run_dir", "train.epochs", "train.profile", "data.split"),
    *(
        "data.dir",
        "tracking.tensorboard_dir",
        "data.split_seed",
        "data.val_fraction",
        "data.test_fraction",
        "data.max_train_images",
    ),
    *("data.device_budget_mb", "data.layout", "parallel.cpu_devices"),
    *("data.workers", "data.prefetch", "data.max_pixels", "data.cache_gb"),  # of image files
    *(path for path in option_paths() if path.startswith("data.columns.")),  # of tables
    *("data.value_range", "train.pos_weight"),  # of other numbers; of several labels
    *("data.group", "data.folds", "data.fold"),  # where splits are drawn
    *(path for path in option_paths() if path.startswith("decision.")),  # of several labels per image
    *("data.draws", "optimizer.momentum", "schedule.decay_fraction", "finetune.freeze_statistics"),
    *("finetune.lora_alpha", "model.drop_rate", "model.drop_path_rate", "model.patch_size", "model.pool"),
    *("model.act", "model.registers", "model.stem", "own.classifier"),
    *("data.sampling_beta", "loss.target_threshold", "loss.gamma", "loss.gamma_positive"),
    *("loss.clip", "loss.epsilon", "loss.q"),
    *("parallel.coordinator", "parallel.num_processes", "parallel.process_id", "parallel.connect_seconds"),
    *("tracking.experiment_prefix", "tracking.system_metrics"),
    *(path for path in option_paths() if path.startswith("head.")),
}
"""Options that act, but not in these runs."""
READ_ALL_THE_SAME = {
    "pt": {"features.batch_size"},  # by what all techniques share, where it is always open
    "ft": {"features.batch_size"},
    "fe": {"augment.test_flips", "model.remat", "own.optimizer"},
}


@pytest.fixture
def read(monkeypatch):
    """The options that are read from when the run directory is open; what the config itself does is not counted."""
    paths: set[str] = set()
    begun = False

    def get(self, name):
        kind, by = type(self), sys._getframe(1).f_code.co_filename
        if begun and name in kind.model_fields and not by.endswith("jaxtrain/config.py") and "pydantic" not in by:
            paths.add(f"{SECTIONS[kind]}.{name}" if kind in SECTIONS else name)
        return object.__getattribute__(self, name)

    def check_config(self, *arguments):
        nonlocal begun
        paths.clear()
        result, begun = check(self, *arguments), True
        return result

    check = RunDirectory.check_config
    monkeypatch.setattr(RunDirectory, "check_config", check_config)
    monkeypatch.setattr(Section, "__getattribute__", get, raising=False)
    return paths


@pytest.mark.slow
def test_runs_read_what_acts_and_nothing_else(tmp_path, read):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    labels = np.arange(60) % 3
    weights = {"weights": str(tmp_path / "pt")}
    runs = {
        PTClassifier: {"model": {"name": "mlp_tiny"}, "train": {"steps": 2}},
        FTClassifier: {"model": weights, "train": {"steps": 2}},
        FEClassifier: {"model": weights, "features": {"store": tmp_path / "store"}},
    }
    for kind, options in runs.items():
        technique = kind.technique
        classifier = kind(run_dir=tmp_path / technique, quiet=True, tracking={"enabled": False}, **options)
        config = classifier.fit(images, labels, test=(images, labels)).fitted.config
        found = read & set(option_paths())
        assert {path for path in found if not config.acts(path)} == READ_ALL_THE_SAME[technique]
        acting = {path for path in option_paths() if config.acts(path)}
        assert acting - found <= NOT_READ
