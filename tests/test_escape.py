"""Names that strangers chose, on their way to the terminal, CSV, Markdown and HTML."""

import csv
import html
import pickle
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
from markdown_it import MarkdownIt

import jaxtrain
from jaxtrain.cli.main import run
from jaxtrain.errors import DamagedError, RunError, UserError
from jaxtrain.escape import csv_cell, markdown, plain
from jaxtrain.files import write_csv
from jaxtrain.tasks import Multiclass
from tests.evaluation.made_up import predictions
from tests.evaluation.test_report import Candidate, make_report

HOSTILE = [
    "\x1b[2J\x1b[31mcat",
    "cat\nother.png\tdog\t1.0000",
    "\u202egnp.exe",
    "\x9b31m",
    "=HYPERLINK('http://evil')",
    "+1+cmd|'/c calc'!A0",
    "@SUM(1)",
    "-2+3",
    "\t=1",
    "\r=1",
    "\uff1d1+1",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "[x]: http://evil",
    "![i](http://evil/x.png)",
    "`code` *b* _i_ __b__ ~~s~~ $x$",
    "a|b|c",
    "# heading",
    "1. list",
    "> quote",
    "&lt;b&gt;",
    "http://evil.example www.evil.example me@evil.example",
    "\\",
]
RENDER = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def read_as(text):
    """What a reader of this Markdown sees; only paragraphs may come of it."""
    shown = RENDER.render(text).strip()
    assert re.fullmatch(r"<p>[^<>]*</p>", shown), shown
    return html.unescape(shown[3:-4])


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_is_read_as_the_text(name):
    assert read_as(f"model {markdown(name)}") == f"model {plain(name)}".rstrip()
    assert read_as(markdown(name)) == plain(name).strip()
    assert not re.search(r"(?<!\\)\||://|www\.|\w@", markdown(name))  # cells of tables, addresses that become links


def test_random_markdown_is_read_as_the_text():
    source = random.Random(0)
    for _ in range(2000):
        text = "".join(source.choices("ab1 _*`[]()<>!#&|\\~:/.-+=", k=12)).strip()
        assert read_as(f"x{markdown(text)}x") == f"x{text}x", text


def test_ordinary_names_and_figures_stay_readable():
    text = "ft-resnet18 and vit_tiny cannot be told apart: 1.0 points apart, interval [-0.1, +2.1] (p = 0.5)"
    assert markdown(text) == text


@pytest.mark.parametrize("name", HOSTILE)
def test_no_cell_of_a_csv_file_is_a_formula(name, tmp_path):
    path = write_csv(tmp_path / "a.csv", [{name: name, "difference": -0.5, "axis": "-1e-3", "other": None}, {"x": 1}])
    head, first, second = csv.reader(path.open(newline=""))
    assert not re.match(r"[=+\-@\t\r\uff1d]", first[0])
    assert head[0] == first[0] == csv_cell(name)
    assert first[0].removeprefix("'") == name.replace("\r", " ")
    assert first[1:] == ["-0.5", "-1e-3", "", ""]
    assert second == ["", "", "", "", "1"]


def test_predictions_are_one_plain_line_for_each_image(tmp_path, monkeypatch, capsys):
    def stream(source, bad_images, *, embedding):
        bad_images.reasons[source.describe(2)] = "no \x1b[2Jimage"
        yield {"logits": np.eye(3, dtype=np.float32)}

    model = SimpleNamespace(
        class_names=tuple(HOSTILE[:3]),
        thresholds=None,
        fitted=SimpleNamespace(predictor=SimpleNamespace(stream=stream), task=Multiclass()),
    )
    monkeypatch.setattr(jaxtrain, "load", lambda path, **_: model, raising=False)
    files = [
        str(tmp_path / name) for name in ("a\x1b[1m.png", "b\n\u202e.png", "c\ud8ff.png".replace("\ud8ff", "\udcff"))
    ]
    with pytest.raises(jaxtrain.errors.RunError, match="1 of 3"):
        run(["predict", "somewhere", *files])
    lines = capsys.readouterr().out.splitlines()
    assert [len(line.split("\t")) for line in lines] == [3, 3, 2]
    assert all(char.isprintable() or char == "\t" for line in lines for char in line)


def test_a_report_of_hostile_names(tmp_path):
    names = ("<b>one", "=two", "three|x", "[four](x)")
    models = [
        Candidate("=<img src=x>|[a](http://evil)\n# b", predictions(0.9, seed=1, names=names), {}, seed=0),
        Candidate("b", predictions(0.8, seed=2, names=names), {}, seed=0),
    ]
    folder = make_report(models).save(tmp_path / "report")
    text = (folder / "report.md").read_text()
    page = RENDER.render(text)
    assert "<img" not in page
    assert "<a " not in page
    assert {len(re.findall(r"<t[dh]>", row)) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)} == {11}
    for file in folder.glob("*.csv"):
        assert not [cell for row in csv.reader(file.open()) for cell in row if re.match(r"[=@]", cell)], file


@pytest.mark.parametrize("kind", [UserError, DamagedError, RunError])
def test_an_error_is_one_line_whatever_a_file_names_its_parts(kind):
    assert str(kind("d.npz lacks x; it holds: \nx\x1b[2J, y\u202e")) == "d.npz lacks x; it holds:  x?[2J, y?"
    assert str(kind(f"a {'9' * 5000} b")) == f"a {'9' * 1498} ... {'9' * 398} b"
    assert str(pickle.loads(pickle.dumps(kind("a\nb")))) == "a b"
