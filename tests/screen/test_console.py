from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import pty
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxtrain.screen import console, progress
from jaxtrain.screen.console import Part, Plan, Result, print_error, print_line, show_plan, show_result, show_table
from jaxtrain.screen.progress import Progress
from jaxtrain.screen.terminal import clock

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
RECORD = {"train/loss": 0.5, "train/accuracy": 0.75, "learning_rate": 1e-3, "images_per_second": 12345.6}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


class Terminal:
    """A pseudo-terminal that remembers what was written to it."""

    def __enter__(self):
        self._master, slave = pty.openpty()
        self.file = open(slave, "w")
        self._chunks = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def _read(self):
        while True:
            try:
                self._chunks.append(os.read(self._master, 65536))
            except OSError:
                return

    def __exit__(self, *_):
        self.file.close()
        self._reader.join()
        os.close(self._master)
        self.written = b"".join(self._chunks).decode()
        self.lines = re.split(r"[\r\n]+", CONTROL.sub("", self.written))


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def fake_clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=fake))
    return fake


def train(file, fake_clock, *, steps=1000, seconds_a_step=0.1, until=None):
    with Progress(steps, 100, file=file) as bar:
        for step in range(10, (until or steps) + 1, 10):
            fake_clock.now += 10 * seconds_a_step
            bar.update(step, RECORD)
            if step % 100 == 0:
                bar.evaluated(step, {"val/accuracy": step / 2000, "val/loss": 1.0})


# -- progress, not a terminal ---------------------------------------------------


@pytest.mark.parametrize("force", [None, "1"])
def test_plain_lines_hold_no_control_characters(monkeypatch, fake_clock, force):
    if force:
        monkeypatch.setenv("FORCE_COLOR", force)
    out = io.StringIO()
    train(out, fake_clock)
    lines = out.getvalue().splitlines()
    assert all(char.isprintable() for line in lines for char in line)
    assert lines[0].startswith("epoch 1/10  10/1,000  loss 0.5000  acc 75.00%  lr 1.0e-03  12,346 img/s")
    assert lines[-1].startswith("epoch 10/10  1,000/1,000")
    assert "val acc 50.00%" in lines[-1]
    assert lines[-1].endswith("0:01:40 in all")


def test_in_a_notebook_one_line_moves(fake_clock):
    cell = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    train(cell, fake_clock)
    written = cell.getvalue()
    assert written.count("\n") == 1
    first, *lines = written.removesuffix("\n").split("\r")
    assert first == ""
    assert len(lines) >= 100
    assert all(len(line) >= len(before.rstrip()) for before, line in itertools.pairwise(lines))
    assert lines[-1].rstrip().endswith("0:01:40 in all")


def test_plain_lines_come_with_evaluations_and_else_every_ten_seconds(fake_clock):
    out = io.StringIO()
    train(out, fake_clock)  # 100 s, an evaluation every 10 s
    assert 11 <= len(out.getvalue().splitlines()) <= 21
    out = io.StringIO()
    train(out, fake_clock, seconds_a_step=0.001)  # 1 s, an evaluation every 0.1 s
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/10", "10/10"]


def test_images_are_counted_under_a_title(fake_clock):
    out = io.StringIO()
    with Progress(title="embedding train", file=out) as bar:
        for done in range(200, 1001, 100):  # 200 were there before; 5 s for 100
            bar.count(done, 1000)
            fake_clock.now += 5.0
    first, *_, last = out.getvalue().splitlines()
    assert first.startswith("embedding train  200/1,000")
    assert last == "embedding train  1,000/1,000  20 img/s  0:00:40 in all"
    out = io.StringIO()
    with Progress(title="embedding train", quiet=True, file=out) as bar:
        bar.count(1, 1)
    with Progress(title="never begun", file=out):
        pass
    assert out.getvalue() == ""


def test_time_left_follows_the_pace(fake_clock):
    out = io.StringIO()
    train(out, fake_clock, until=400)
    line = next(line for line in out.getvalue().splitlines() if "  400/1,000" in line)
    assert line.endswith("0:01:00 left")


def test_a_resumed_run_is_not_faster_than_it_is(fake_clock):
    out = io.StringIO()
    with Progress(1000, 100, start_step=900, file=out) as bar:
        for step in (910, 920, 930):
            fake_clock.now += 20
            bar.update(step, RECORD)
    assert out.getvalue().splitlines()[-1].endswith("0:02:20 left")


def test_a_resumed_run_remembers_its_best():
    out = io.StringIO()
    with Progress(1000, 100, start_step=900, best=0.93, file=out) as bar:
        bar.update(910, RECORD)
        bar.evaluated(910, {"val/accuracy": 0.91})
    assert "val acc 91.00%  best 93.00%" in out.getvalue()


@pytest.mark.parametrize(
    ("total", "per_epoch", "steps", "epochs"),
    [
        (25, 8.4, (0, 1, 9, 10, 17, 18, 25), ("1/3", "1/3", "1/3", "2/3", "2/3", "3/3", "3/3")),
        (610, 1300 / 128, (11, 12, 610), ("1/60", "2/60", "60/60")),  # 60 epochs are 609.4 steps
        (30, 10, (10, 11, 20, 30), ("1/3", "2/3", "2/3", "3/3")),
        (3, 1.0, (1, 2, 3), ("1/3", "2/3", "3/3")),
        (210, 0.7 * 100, (70, 71, 140, 141), ("1/3", "2/3", "2/3", "3/3")),
    ],
)
def test_epochs_need_not_be_whole_steps(total, per_epoch, steps, epochs):
    with Progress(total, per_epoch, file=io.StringIO()) as bar:
        seen = []
        for step in steps:
            bar.update(step, RECORD)
            seen.append(bar._fields()[0][1].removeprefix("epoch "))
    assert tuple(seen) == epochs


def test_a_run_that_did_nothing_says_nothing():
    out = io.StringIO()
    with Progress(10, 5, start_step=10, file=out):
        pass
    assert out.getvalue() == ""


class Closed(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_output_that_fails_never_costs_the_run():
    with Progress(10, 5, file=Closed()) as bar:
        for step in range(10):
            bar.update(step, RECORD)
            bar.evaluated(step, {"val/accuracy": 0.5})
            bar.message("hello")


def test_a_reader_that_goes_away_never_costs_the_run():
    code = (
        "import sys\nfrom jaxtrain.screen.progress import Progress\n"
        "with Progress(9, 5) as bar:\n"
        "    for i in range(3000): bar.message('x' * 100)\n"
        "sys.stderr.write('finished')\n"
        "import os; os._exit(0)\n"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1 > {os.devnull}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == "finished"


# -- progress, on a terminal ------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "shown", "dropped"),
    [
        (120, ["500/1,000", "acc 75.00%", "lr 1.0e-03", "12,346 img/s", "val acc 25.00%", " left"], ["best"]),
        (80, ["acc 75.00%", "val acc 25.00%", " left"], ["lr ", "img/s"]),
        (50, ["loss 0.5000", "0:00:50 left"], ["acc", "lr ", "img/s"]),
        (20, ["epoch 5/10"], ["acc", "left"]),
    ],
)
def test_the_bar_fits_the_window(monkeypatch, fake_clock, columns, shown, dropped):
    monkeypatch.setenv("COLUMNS", str(columns))
    with Terminal() as terminal:
        train(terminal.file, fake_clock, until=500)
    assert max(map(len, terminal.lines)) <= columns
    last = [line for line in terminal.lines if "epoch" in line][-1]
    assert "\u2501" in last
    for text in shown:
        assert text in last
    for text in dropped:
        assert text not in last


def test_before_the_first_step_the_bar_says_why():
    with Terminal() as terminal, Progress(10, 5, file=terminal.file):
        pass
    assert "compiling" in terminal.lines[0]


def test_redraws_are_few(fake_clock):
    with Terminal() as terminal:
        train(terminal.file, fake_clock, steps=10_000, seconds_a_step=0.001)  # 10 s, 1,000 updates
    drawn = sum("epoch" in line for line in terminal.lines)
    assert 20 <= drawn <= 55


def test_no_color_has_no_colors(monkeypatch, fake_clock):
    with Terminal() as terminal:
        train(terminal.file, fake_clock, until=100)
    assert re.search(r"\x1b\[[0-9;]*m", terminal.written)
    monkeypatch.setenv("NO_COLOR", "1")
    with Terminal() as terminal:
        train(terminal.file, fake_clock, until=100)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][0-9;]*m", terminal.written)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch, fake_clock):
    monkeypatch.setenv("TERM", "dumb")
    with Terminal() as terminal:
        train(terminal.file, fake_clock, until=200)
    assert "\x1b" not in terminal.written
    assert len(re.findall("loss 0.5000", terminal.written)) >= 3


def test_the_cursor_stays_visible_so_that_a_kill_leaves_it():
    with Terminal() as terminal, Progress(10, 5, file=terminal.file) as bar:
        bar.update(1, RECORD)
        os.write(terminal.file.fileno(), b"<killed here>")
    before = terminal.written.split("<killed here>")[0]
    assert before.rfind("\x1b[?25h") > before.rfind("\x1b[?25l")


def test_messages_prints_and_log_records_stand_above_the_bar(monkeypatch):
    with Terminal() as terminal:
        monkeypatch.setattr(sys, "stdout", terminal.file)
        monkeypatch.setattr(sys, "stderr", terminal.file)
        logger = logging.getLogger("jaxtrain")
        before = logger.handlers, logger.propagate, logger.level
        try:
            console.log_to_stderr()
            with Progress(10, 5) as bar:
                bar.update(1, RECORD)
                bar.message("a message [bold]")
                print("a print")
                logging.getLogger("jaxtrain.data").warning("a warning")
                bar.update(10, RECORD)
        finally:
            logger.handlers, logger.propagate = before[:2]
            logger.setLevel(before[2])
        monkeypatch.undo()
    for text in ("a message [bold]", "a print", "warning: a warning"):
        assert text in terminal.lines
    assert [line for line in terminal.lines if line][-1].startswith("epoch 2/2")


def test_stderr_that_goes_to_a_file_stays_there(monkeypatch):
    errors = io.StringIO()
    with Terminal() as terminal:
        monkeypatch.setattr(sys, "stdout", terminal.file)
        monkeypatch.setattr(sys, "stderr", errors)
        with Progress(10, 5):
            print("for the log file", file=sys.stderr)
        monkeypatch.undo()
    assert errors.getvalue() == "for the log file\n"
    assert "for the log file" not in terminal.written


# -- plan, result, errors ---------------------------------------------------------


def plan(classes=3, **changes):
    names = [f"class {i}" for i in range(classes)]
    values = {
        "title": "pt: cnn_small on digits",
        "parts": [Part("stem", "14x14x32", 320), Part("head", "10", 1_234_567)],
        "parameters": 1_234_887,
        "trainable": 1_234_887,
        "class_names": names,
        "images": {"train": [100 + i for i in range(classes)], "val": [10] * classes},
        "settings": {"optimizer": "adamw, learning rate 1e-03"},
        "run_dir": Path("runs/pt/a run"),
        "look": "mlflow server --backend-store-uri sqlite:///mlflow.db",
    }
    return Plan(**{**values, **changes})


def shown(function, *arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        function(*arguments)
    assert all(char.isprintable() or char == "\n" for char in out.getvalue())
    return out.getvalue()


def test_plan_shows_parts_classes_settings_and_where_to_look():
    text = shown(show_plan, plan())
    for words in (
        "stem 14x14x32 320",
        "head 10 1,234,567",
        "class 2 102 10",
        "parameters 1,234,887, all trained",
    ):
        assert re.search(r"\s+".join(map(re.escape, words.split())), text), words
    assert "303 train, 30 val" in text
    assert "adamw, learning rate 1e-03" in text
    assert "runs/pt/a run" in text
    assert "mlflow server --backend-store-uri sqlite:///mlflow.db" in text


def test_many_classes_are_cut_but_their_range_is_told():
    text = shown(show_plan, plan(classes=1000))
    assert "class 9 " in text
    assert "class 10 " not in text
    assert re.search(r"\.\.\. 990 more\s+598,455\s+9,900", text)
    assert "100 (class 0) to 1,099 (class 999)" in text


def test_plan_without_mlflow_shapes_or_images():
    text = shown(show_plan, plan(look=None, parts=[Part("all", "", 7)], trainable=7, images={}, classes=0))
    assert "off" in text
    assert "7 of them trained" in text
    assert "output" not in text


def test_names_are_shown_as_they_are_but_for_control_characters():
    names = ["[red]apple[/red]", ":smile:", "two\nlines\x1b[31m"]
    text = shown(show_plan, plan(class_names=names))
    for name in ("[red]apple[/red]", ":smile:", "two lines?[31m"):
        assert name in text


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_plan_and_result_fit_the_window_but_never_break_paths_and_commands(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    long = "runs/pt/" + "x" * 120
    words = "adamw, learning rate 1e-03, weight decay 0.05, cosine over 3,000 steps with a warmup of 150 steps"
    text = shown(show_plan, plan(settings={"optimizer": words}, run_dir=Path(long), look=f"mlflow {long}"))
    text += shown(show_result, Result("t", 10, 1.0, Path(long), commands={"predict": ["python", "p.py", long]}))
    wide = [line for line in text.splitlines() if len(line) > columns]
    assert len(wide) == 4
    assert all(long in line for line in wide)
    assert words in re.sub(r"\s+", " ", text)


def test_result_says_what_is_known_and_quotes_commands():
    result = Result(
        "pt: cnn_small on digits",
        steps=3000,
        seconds=61.4,
        run_dir=Path("runs/pt/a run"),
        images_per_second=23456.7,
        val_figure=0.9912,
        best_step=2500,
        test_figure=0.98895,
        test_loss=0.03451,
        test_interval=(0.97123, 0.99456),
        test_images=360,
        looks=3,
        curves=Path("runs/pt/a run/learning_curves.png"),
        commands={
            "look": "mlflow server",
            "predict": ["python", "scripts/predict.py", "runs/pt/a run", "$x.png"],
        },
    )
    text = shown(show_result, result)
    assert "98.89%, loss 0.0345 (model 3 measured on this test set)" in text
    assert "97.12% to 99.46%, from 360 test images" in text
    assert "99.12% at step 2,500" in text
    assert "runs/pt/a run/learning_curves.png\n" in text
    assert "3,000 steps in 0:01:01, 23,457 images/s" in text
    assert "python scripts/predict.py 'runs/pt/a run' '$x.png'\n" in text
    bare = shown(show_result, Result("t", 10, 1.0, Path("r")))
    assert "accuracy" not in bare
    assert "Next" not in bare


def test_an_error_is_one_line(capsys):
    print_error("config.yaml: no option 'lr'\ndid you mean 'learning_rate'? " + "x" * 300)
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith("error: config.yaml: no option 'lr' did you mean")
    assert out.err.count("\n") == 1
    print_error("bad [thing]")
    assert capsys.readouterr().err == "error: bad [thing]\n"


def test_a_terminal_without_unicode_gets_question_marks():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    with contextlib.redirect_stdout(out):
        show_plan(plan(class_names=["猫", "b", "c"]))
    with Progress(10, 5, file=out) as bar:
        bar.message("猫")
    out.flush()
    assert b"?" in raw.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (360_000, "100:00:00"), (float("nan"), "-:--:--")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_import_is_cheap():
    code = "import sys, jaxtrain.screen.console; assert not {'rich', 'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_narrow_table_keeps_its_first_column_and_its_numbers_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    rows = [{"key": "0123456789ab", "model": "m" * 60, "size": size} for size in ("5 B", "123.4 GB")]
    text = shown(show_table, rows, {"size"})
    lines = text.splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert lines[0].split() == ["key", "model", "size"]
    assert [line.split()[0] for line in lines if line[:1] == "0"] == ["0123456789ab"] * 2
    assert [line.rstrip()[-8:] for line in lines if line[:1] == "0"] == ["     5 B", "123.4 GB"]
    assert text.count("m") == 1 + 2 * 60
    assert shown(show_table, []) == ""


def test_where_all_else_is_numbers_the_first_column_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    name, number = "pt/" + "n" * 40, "98.76543"
    lines = shown(show_table, [{"model": name, "one": number, "two": number}], {"one", "two"}).splitlines()
    assert all(len(line) <= 50 for line in lines)
    assert "".join(line.split()[0] for line in lines[2:]) == name
    assert lines[2].split()[1:] == [number, number]


def test_a_line_is_not_broken_or_taken_for_markup(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert shown(print_line, "[red]" + "x" * 50 + "\x1b\n") == "[red]" + "x" * 50 + "? \n"
