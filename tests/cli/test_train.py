import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrain.cli.main import train_command
from jaxtrain.config_io import dump_config, load_config, option_paths
from jaxtrain.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PT = ["--technique", "pt"]


def script(*arguments, cwd=ROOT, name="train.py"):
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def test_help_lists_every_option_with_its_meaning():
    done = script("--help")
    assert done.returncode == 0
    for path in option_paths():
        assert f"--{path.replace('_', '-')} " in done.stdout, path
    assert "Peak learning rate" in done.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['train.py', '--help']\n"
        "from jaxtrain.cli.main import train_command\n"
        "try: train_command(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'jax', 'flax', 'mlflow', 'sklearn', 'cv2'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.strip() == "[]"


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
        ([], ["--technique", "pt"]),
        (["--technique", "ptt"], ["technique", "pt"]),
        ([*PT, "--config", "no.yaml"], ["no.yaml"]),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        train_command(arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["--model.name", "resnet81"], "resnet18"),
        (["--data.name", "digit"], "digits"),
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
    config, action = train_command(["--config", str(file), "--train.batch-size", "16"])
    assert (config.train.epochs, config.train.batch_size, config.seed, action) == (3, 16, 5, None)


def test_a_run_directory_gives_the_options_that_are_not_named_again(tmp_path):
    config, _ = train_command([*PT, "--train.batch_size", "32", "--seed", "7"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    again, _ = train_command([*PT, "--run-dir", str(tmp_path)])
    assert again.replace(run_dir=None) == config


def test_a_run_directory_under_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("technique: pt\nseed: 7\n")
    assert train_command(["--run-dir=~/run"])[0].seed == 7  # as where no shell expands it


def test_actions_stand_alone_or_with_their_value_and_one_at_a_time():
    for given in (["--smoke"], ["--smoke", "True"], ["--smoke", "--tracking.enabled", "False"]):
        assert train_command([*PT, *given])[1] == "smoke"
    assert train_command([*PT, "--debug", "False"])[1] is None
    assert train_command([*PT, "--debug"])[1] == "debug"
    with pytest.raises(UserError, match="--smoke and --debug"):
        train_command([*PT, "--smoke", "--debug"])


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


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} scripts/train.py --technique pt --print-config | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "technique: pt\n"
    assert "Traceback" not in done.stderr
