"""The program as it is started: its commands, help, exit codes, and the recipes that it finds."""

import errno
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxtrain import __version__
from jaxtrain.cli.command import Group, options_of
from jaxtrain.cli.help import find
from jaxtrain.cli.main import guard, run
from jaxtrain.cli.program import PROGRAM
from jaxtrain.cli.train import Train
from jaxtrain.config_io import recipe_names
from jaxtrain.errors import UserError
from tests.marks import mostly_slow

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
HEAVY = {"jax", "flax", "numpy", "mlflow", "sklearn", "cv2", "rich"}
DOORS = {"train": "train", "predict": "predict", "benchmark": "benchmark", "sweep": "sweep", "embed": "embed"}
DOORS |= {"sync_mlflow": "sync"}


def program(*words, cwd=ROOT, **options):
    command = [sys.executable, "-m", "jaxtrain", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, check=False, **options)


def commands(what=PROGRAM, path=()):
    if not isinstance(what, Group):
        return [(list(path), what)]
    return [found for name, below in what.commands.items() for found in commands(below, (*path, name))]


def shown(capsys, words):
    with pytest.raises(SystemExit) as ended:
        run(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_command_with_a_line(capsys):
    text = shown(capsys, ["--help"])
    for name in PROGRAM.commands:
        assert any(line.startswith(f"  {name} ") and len(line) > 30 for line in text.splitlines())


@pytest.mark.parametrize(("path", "command"), [pytest.param(*found, id="-".join(found[0])) for found in commands()])
def test_help_of_a_command_lists_its_options_with_their_meaning(path, command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = shown(capsys, [*path, "--help", "all"])
    assert f"{' '.join(path)} " in text.splitlines()[0]
    words = " ".join(text.split())
    for option in options_of(command):
        assert f"  {option.shown}" in text
        assert " ".join(option.field.description.split()) in words


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom jaxtrain.cli.main import run\n"
        f"for words in {[path for path, _ in commands()]}:\n"
        "    try: run([*words, '--help'])\n"
        "    except SystemExit: pass\n"
        f"print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "near"), [(["trian"], "'train'"), ([], "predict"), (["--verison"], "train"), (["embed", "lst"], "'list'")]
)
def test_an_unknown_command_is_one_line_with_the_nearest(words, near):
    with pytest.raises(UserError) as caught:
        run(words)
    assert near in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_program_ends_with_an_exit_code(tmp_path):
    version = program("--version", cwd=tmp_path)
    assert (version.returncode, version.stdout) == (0, f"jaxtrain {__version__}\n")
    wrong = program("trian", cwd=tmp_path)
    assert (wrong.returncode, len(wrong.stderr.splitlines()), wrong.stdout) == (2, 1, "")
    assert program("train", "--help", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("script", mostly_slow(DOORS, {"train"}))
def test_a_script_is_a_door_to_the_command(script):
    command = [sys.executable, f"scripts/{script}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    usage, *rest = done.stdout.splitlines()
    assert f"scripts/{script}.py " in usage
    named = program(DOORS[script], "--help").stdout.splitlines()
    told = re.compile(r"COMMAND|^  \S.*(?:train|train\.py) --")  # lines with the program's own name
    assert [line for line in rest if not told.search(line)] == [line for line in named[1:] if not told.search(line)]


def test_recipes_are_listed(capsys):
    run(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    files = (ROOT / "configs").glob("*/*.yaml")
    assert sorted(f"{file.parent.name}/{file.stem}" for file in files) == recipe_names()
    assert all(len(line.split()) > 3 for line in lines)


def test_a_sweep_takes_a_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(["sweep", "sweeps/pt_digits", "--plan"])
    assert "pt_digits" in capsys.readouterr().out
    with pytest.raises(UserError, match="'sweeps/pt_digits'"):
        run(["sweep", "sweeps/pt_digit", "--plan"])


@pytest.mark.slow
@pytest.mark.parametrize("started", ["-m jaxtrain train", "scripts/train.py"])
def test_the_commands_that_are_printed_work(started, tmp_path):
    """Of a run that is interrupted: to continue; of one that has ended: to label an image and to compare."""
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    options = "--technique pt --model.name linear --tracking.enabled False --train.steps 4000 --run-dir 'a run'"
    command = [sys.executable, *started.split(), *shlex.split(options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path, "env": ENVIRONMENT}
    process = subprocess.Popen(command, **pipes)
    journal = tmp_path / "a run" / "metrics.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.05)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    again = output.partition("continue with: ")[2].splitlines()[0]
    assert started.removeprefix("-m ") in again
    done = subprocess.run(again, shell=True, check=False, **pipes)
    assert done.returncode == 0, done.stdout
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if "'a run'" in line]
    predict, compare = (next(rest for name, *rest in lines if name == key)[0] for key in ("predict", "compare"))
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "IMAGE", format="PNG")
    labelled = subprocess.run(predict, shell=True, check=False, **pipes)
    assert labelled.returncode == 0, labelled.stdout
    refused = subprocess.run(compare, shell=True, check=False, **pipes)
    assert (refused.returncode, "OTHER_RUN: no run is there" in refused.stdout) == (2, True), refused.stdout


def test_what_the_file_system_refuses_is_one_line(tmp_path, capsys):
    def too_large():
        raise OSError(errno.EFBIG, "File too large")

    (tmp_path / "page").mkdir()
    (tmp_path / "file").touch()
    for body, cause in (
        (lambda: (tmp_path / "page").write_text("x"), f"{tmp_path}/page: Is a directory"),
        (lambda: os.replace(tmp_path / "file", tmp_path / "page"), f"{tmp_path}/page: Is a directory"),
        (too_large, "File too large"),
    ):
        with pytest.raises(SystemExit) as ended:
            guard(body)
        assert ended.value.code == 1
        assert " ".join(capsys.readouterr().err.split()) == f"error: {cause}"


@pytest.mark.parametrize("allowed", [0, 1, 20])
def test_few_threads_are_one_line(allowed):
    code = f"""
import threading
start, begun = threading.Thread.start, []
def limited(thread):
    begun.append(thread)
    if len(begun) > {allowed}:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = limited
from jaxtrain.cli.main import main
main()
"""
    words = [sys.executable, "-c", code, "--help"]
    ended = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "ulimit -u" in ended.stderr


def test_help_of_a_technique_shows_what_acts_under_it(capsys):
    texts = {name: shown(capsys, ["train", "--technique", name, "--help", "all"]) for name in ("fe", "ft", "pt")}
    everything = shown(capsys, ["train", "--help", "all"])
    for option, where in {"--head.name": "fe", "--finetune.strategy": "ft", "--train.epochs": "ft pt"}.items():
        assert option in everything
        assert [name for name, text in texts.items() if f"  {option} " in text] == where.split()
    for text in texts.values():
        assert "--run-dir" in text
        assert "--print-config" in text


def test_help_begins_with_the_options_that_matter(capsys):
    text = shown(capsys, ["train", "--help"])
    assert len(text.splitlines()) < 120
    inside = [line.split()[0] for line in text.splitlines() if re.match(r"  --\w+\.", line)]
    assert inside == [option.shown for option in options_of(Train) if option.path in Train.important]
    section = shown(capsys, ["train", "--help", "optimizer"])
    assert set(re.findall(r"^  --(\w+)\.", section, re.MULTILINE)) == {"optimizer"}
    with pytest.raises(UserError, match="'optimizer'"):
        run(["train", "--help", "optimiser"])


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*one, id=one[0][0]) for one in commands() if one[1].examples]
)
def test_examples_of_help_are_valid(path, command, capsys):
    text = shown(capsys, [*path, "--help"])
    for example in command.examples:
        words = shlex.split(example)
        assert words[: len(path)] == path
        assert {word for word in words if word.startswith("--")} <= {option.shown for option in options_of(command)}
        assert f" {shlex.join(words[1:])}\n" in text


@pytest.mark.parametrize(("word", "value"), [("yes", True), ("no", False), ("on", True), ("off", False)])
def test_switches_take_what_yaml_takes(word, value):
    command = find(PROGRAM, ["train", "--technique", "pt", "--quiet", word, "--seed", "3"])
    assert (command.quiet, command.seed) == (value, 3)
