"""`jaxtrain report` over runs that finished, that did not, and that are damaged."""

import json
import re
import shutil

import pytest

from jaxtrain import PTClassifier
from jaxtrain.cli.main import run
from jaxtrain.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`long` and `short`, finished; `cut`, that has no result; `hostile` of a stranger."""
    folder = tmp_path_factory.mktemp("report")
    for name, steps in (("long", 20), ("short", 10)):
        PTClassifier(
            run_dir=folder / "runs" / "pt" / name,
            quiet=True,
            tracking={"enabled": False},
            model={"name": "linear"},
            train={"steps": steps, "batch_size": 64, "eval_every": 0.25},
        ).fit()
    cut = shutil.copytree(folder / "runs" / "pt" / "short", folder / "runs" / "pt" / "cut")
    (cut / "summary.json").unlink()
    (cut / "benchmark" / "metrics.json").unlink()
    return folder


@pytest.fixture
def page(runs, monkeypatch):
    def written(*arguments):
        monkeypatch.chdir(runs)
        run(["report", *arguments, "--out", "page.html"])
        return (runs / "page.html").read_text(encoding="utf-8")

    return written


def cells(text, run_name):
    row = next(row for row in re.findall("<tr>.*?</tr>", text, re.DOTALL) if f'"name">{run_name}<' in row)
    return [re.sub("<[^>]*>", " ", cell).split() for cell in re.findall("<td.*?</td>", row, re.DOTALL)]


@pytest.mark.slow
def test_finished_and_unfinished_runs_and_what_differs(runs, page):
    text = page()
    tested = json.loads((runs / "runs/pt/long/benchmark/metrics.json").read_text())
    shown = cells(text, "pt/long")
    assert shown[1] == ["finished"]
    low, high = tested["test/accuracy_low"], tested["test/accuracy_high"]
    assert shown[3] == [
        f"{100 * tested['test/accuracy']:.1f}%",
        f"{100 * low:.1f}%",
        "to",
        f"{100 * high:.1f}%,",
        "360",
        "images",
    ]
    unfinished = cells(text, "pt/cut")
    assert unfinished[1][:2] == ["not", "finished"]
    assert unfinished[3] == ["-"]
    assert unfinished[5] == ["10"]
    differing = re.search('id="options".*?</table>', text, re.DOTALL).group()
    assert "train.steps" in differing
    assert "train.batch_size" not in differing
    assert "jaxtrain train --technique pt --run-dir runs/pt/cut" in text
    assert "jaxtrain predict runs/pt/long IMAGE" in text


def test_one_run_has_its_pictures_and_options(page):
    text = page("runs/pt/long")
    assert text.count("<img") >= 2
    assert "<details>" not in text
    assert "batch_size: 64" in text


def test_what_a_run_says_is_text(runs, page, tmp_path):
    hostile = shutil.copytree(runs / "runs" / "pt" / "short", tmp_path / "<script>alert(1)</script>"[:8])
    summary = json.loads((hostile / "summary.json").read_text())
    (hostile / "summary.json").write_text(json.dumps({**summary, "model": "<img src=x onerror=alert(1)>"}))
    text = page(str(hostile))
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text


def test_a_damaged_run_is_named_and_left_out(runs, page, tmp_path, caplog):
    damaged = shutil.copytree(runs / "runs" / "pt" / "short", tmp_path / "damaged")
    (damaged / "summary.json").write_text("[")
    assert "pt/damaged" not in page(str(damaged), "runs/pt/long")
    assert "damaged" in caplog.text
    with pytest.raises(UserError, match="left out"):
        page(str(damaged))


@pytest.mark.parametrize(
    ("arguments", "named"), [(["nowhere"], "nowhere"), (["--out", "no/folder/page.html"], "no/folder")]
)
def test_wrong_input_is_one_line(runs, monkeypatch, arguments, named):
    monkeypatch.chdir(runs)
    with pytest.raises(UserError, match=named):
        run(["report", *arguments])
