import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrain.cli.main import run
from jaxtrain.cli.train import Train
from jaxtrain.config_io import dump_config, load_config, option_paths
from jaxtrain.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PT = ["--technique", "pt"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def script(*arguments, cwd=ROOT, name="train.py"):
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False, env=ENVIRONMENT)


def test_help_lists_every_option_with_its_meaning():
    done = script("--help", "all")
    assert done.returncode == 0
    for path in option_paths():
        assert f"--{path.replace('_', '-')} " in done.stdout, path
    assert "Peak learning rate" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*PT, "--optimiser.name", "adamw"], ["--optimiser.name", "--optimizer.name"]),
        ([*PT, "--train.epoch=3"], ["--train.epoch", "--train.epochs"]),
        ([*PT, "--train.epochs", "three"], ["train.epochs", "number", "three"]),
        ([*PT, "--optimizer.learning-rate", "-1"], ["optimizer.learning_rate", "greater than 0", "-1"]),
        ([*PT, "--optimizer.name", "adam"], ["optimizer.name", "adam", "adamw"]),
        ([*PT, "--train.epochs", "3", "--train.steps", "4"], ["epochs or steps, not both"]),
        ([*PT, "--train.epochs"], ["--train.epochs", "missing"]),
        ([*PT, "-x"], ["-x", "two dashes"]),
        ([*PT, "--lr", "1"], ["--lr", "--optimizer.learning-rate"]),
        ([*PT, "--seed", "1", "2"], ["2"]),
        ([*PT, "--seed", "None"], ["seed", "None"]),
        ([*PT, "stray"], ["stray"]),
        ([*PT, "--data.channels", "17"], ["data.channels", "16", "17"]),
        ([*PT, "--model.remat", "maybe"], ["maybe"]),
        ([*PT, "--augment.scale", "0.1"], ["augment.scale"]),
        ([], ["--technique", "pt"]),
        (["--technique", "ptt"], ["technique", "pt"]),
        ([*PT, "--config", "no.yaml"], ["no.yaml"]),
        (["--config", "pt/digit"], ["pt/digit", "'pt/digits'"]),
        (["--config", "configs/pt/digit.yaml"], ["configs/pt/digit.yaml", "'pt/digits'"]),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        Train.parse(arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["--model.name", "resnet81"], "resnet18"),
        pytest.param(["--data.name", "digit"], "digits", marks=pytest.mark.slow),
        (["--optimiser.name", "sgd"], "--optimizer.name"),
    ],
)
def test_a_misspelt_name_exits_with_2_and_names_the_nearest(arguments, near, tmp_path):
    done = script(*PT, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert near in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_options_come_from_the_file_and_then_the_command_line(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("technique: pt\ntrain: {epochs: 3, batch_size: 32}\nseed: 5\n")
    config = Train.parse(["--config", str(file), "--train.batch-size", "16"]).options
    assert (config.train.epochs, config.train.batch_size, config.seed) == (3, 16, 5)


def test_values_of_every_kind():
    words = [*PT, "--quiet", "--augment.scale", "0.5", "1", "--augment.ratio=None", "--data.channels", "3", "--name=-1"]
    words += ["--tracking.enabled", "False", "--data.dir", "~/x", "--data.split_seed", "-3", "--model.remat"]
    with pytest.raises(UserError, match="name"):
        Train.parse(words)  # a name begins with a letter or digit
    config = Train.parse([*words, "--name", "1.5"]).options
    assert (config.quiet, config.augment.scale, config.augment.ratio, config.data.channels) == (True, (0.5, 1), None, 3)
    assert (config.tracking.enabled, config.data.dir, config.data.split_seed) == (False, Path("~/x"), -3)
    assert (config.model.remat, config.name) == (True, "1.5")


def test_only_what_is_given_counts_as_set():
    given = Train.parse([*PT, "--train.steps", "3"]).options.model_dump(exclude_unset=True)
    assert given == {"technique": "pt", "train": {"steps": 3}}


def test_a_recipe_is_found_from_any_folder_and_a_file_of_that_path_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pt/digits", "pt/digits.yaml"):
        assert Train.parse(["--config", name]).options == load_config(ROOT / "configs" / "pt" / "digits.yaml")
    (tmp_path / "pt" / "digits").mkdir(parents=True)
    assert Train.parse(["--config", "pt/digits"]).options.train.epochs == 150
    (tmp_path / "pt" / "digits.yaml").write_text("technique: pt\nseed: 7\n")
    assert Train.parse(["--config", "pt/digits.yaml"]).options.seed == 7


def test_a_run_directory_gives_the_options_that_are_not_named_again(tmp_path):
    config = Train.parse([*PT, "--train.batch_size", "32", "--seed", "7"]).options
    (tmp_path / "config.yaml").write_text(dump_config(config))
    again = Train.parse([*PT, "--run-dir", str(tmp_path)]).options
    assert again.replace(run_dir=None) == config


def test_a_run_directory_under_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("technique: pt\nseed: 7\n")
    assert Train.parse(["--run-dir=~/run"]).seed == 7  # as where no shell expands it


def test_actions_stand_alone_or_with_their_value_and_one_at_a_time():
    for given in (["--smoke"], ["--smoke", "True"], ["--smoke", "--tracking.enabled", "False"]):
        assert Train.parse([*PT, *given]).smoke
    assert not Train.parse([*PT, "--debug", "False"]).debug
    assert Train.parse([*PT, "--debug"]).debug
    with pytest.raises(UserError, match="--smoke and --debug"):
        Train.parse([*PT, "--smoke", "--debug"])


def test_printed_config_is_resolved_and_reads_back(tmp_path):
    done = script(*PT, "--print-config", "--train.steps", "3")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "c.yaml"
    file.write_text(done.stdout)
    config = load_config(file)
    assert config.train.steps == 3
    assert config.data.image_size == 8
    assert config.augment.hflip == 0
    assert config.optimizer.learning_rate == 1e-3


@pytest.mark.slow
def test_another_run_from_the_options_and_weights_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = ["--quiet", "--tracking.enabled", "False"]
    run(["train", "--technique", "pt", "--model.name", "linear", "--train.epochs", "1", "--run-dir", "one", *quiet])
    run(["train", "--from", "one", "--run-dir", "two", "--train.steps", "3", *quiet])
    one, two = (load_config(tmp_path / name / "config.yaml") for name in ("one", "two"))
    assert (two.model.name, two.model.weights, two.train.steps, two.train.epochs) == ("linear", "one", 3, None)
    assert two.optimizer == one.optimizer
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["weights"] == "one"
    with pytest.raises(UserError, match=r"--from: nothing.*config\.yaml"):
        run(["train", "--from", "nothing"])


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} scripts/train.py --technique pt --print-config | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, check=False, env=ENVIRONMENT)
    assert done.stdout == "technique: pt\n"
    assert "Traceback" not in done.stderr
