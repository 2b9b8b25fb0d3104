from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from jaxtrain.evaluation import plots


def records():
    rows = [{"step": s, "train/loss": 2 - s / 100, "learning_rate": 0.1, "time": 0.0} for s in range(10, 101, 10)]
    accuracy = {20: 0.5, 40: 0.9, 60: 0.7, 80: 0.9, 100: float("nan")}
    return rows + [{"step": s, "val/loss": 1.0, "val/accuracy": value} for s, value in accuracy.items()]


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes}


def test_curves_show_the_logged_values_and_mark_the_step_that_is_kept():
    drawn = panels(plots.learning_curves(records(), 80))
    assert list(drawn) == ["loss", "accuracy", "learning rate"]
    lines = {line.get_label(): line for line in drawn["loss"].lines}
    assert lines["training"].get_xydata().tolist() == [[s, 2 - s / 100] for s in range(10, 101, 10)]
    assert list(lines["kept: step 80"].get_xdata()) == [80, 80]
    assert [line.get_label() for line in drawn["accuracy"].lines] == ["validation", "kept: step 80"]


def test_the_last_value_of_a_repeated_step_counts():
    twice = [*records(), {"step": 100, "train/loss": 0.25}]
    drawn = panels(plots.learning_curves(twice))["loss"]
    assert drawn.lines[0].get_ydata()[-1] == 0.25


def test_many_noisy_points_get_a_running_mean_over_the_same_steps():
    rng = np.random.default_rng(0)
    rows = [{"step": s, "train/loss": 1 + rng.normal(0, 0.1)} for s in range(1, 2001)]
    raw, mean = panels(plots.learning_curves(rows))["loss"].lines
    assert len(raw.get_xdata()) == 2000
    assert np.std(mean.get_ydata()) < 0.3 * np.std(raw.get_ydata())
    assert mean.get_xdata()[0] >= 1
    assert mean.get_xdata()[-1] <= 2000
    assert len(mean.get_xdata()) == len(mean.get_ydata())
    window = 50
    assert mean.get_ydata()[10] == pytest.approx(np.mean(raw.get_ydata()[10 : 10 + window]))


@pytest.mark.parametrize("rows", [[], [{"step": 1, "time": 0.0}], [{"step": 1, "val/accuracy": float("nan")}]])
def test_curves_of_nearly_nothing(rows, tmp_path):
    plots.save(lambda: plots.learning_curves(rows), tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 0


def test_confusion_matrix_shows_counts_and_names():
    matrix = np.array([[50, 0, 1], [2, 40, 3], [0, 0, 0]])
    axes = plots.confusion_matrix(matrix, ["cat", "dog", "fox"]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["50", "", "1", "2", "40", "3", "", "", ""]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "fox"]
    assert axes.get_title() == "93.75% of 96 images right"
    shares = axes.images[0].get_array()
    assert shares[0].tolist() == pytest.approx([50 / 51, 0, 1 / 51])
    assert shares[2].tolist() == [0, 0, 0]


def test_many_classes_are_thinned_and_a_single_mistake_still_shows():
    matrix = np.eye(1000, dtype=np.int64) * 50
    matrix[700, 13] = 50
    axes = plots.confusion_matrix(matrix, [f"class {i}" for i in range(1000)]).axes[0]
    assert not axes.texts
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [f"class {i}" for i in range(0, 1000, 25)]
    assert axes.get_xticks().tolist() == list(range(0, 1000, 25))
    cells = axes.images[0].get_array()
    assert cells.shape == (250, 250)
    assert cells[175, 3] == 0.5
    assert np.count_nonzero(cells) == 251


@pytest.mark.parametrize("classes", [2, 251])
def test_any_class_name_is_drawn_without_a_warning(tmp_path, classes):
    names = (["$x_{1$ \\frac", "猫", "a" * 80, "\t", ""] * classes)[:classes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save(lambda: plots.confusion_matrix(np.eye(classes, dtype=np.int64), names), tmp_path / "matrix.png")
    picture = np.asarray(Image.open(tmp_path / "matrix.png").convert("L"))
    assert picture.std() > 10


def test_a_picture_that_fails_is_one_warning(tmp_path, caplog):
    assert plots.save(lambda: 1 / 0, tmp_path / "broken.png") == []
    assert plots.save(lambda: None, tmp_path / "nothing.png") == []
    (line,) = caplog.messages
    assert "broken.png" in line
    assert "ZeroDivisionError" in line
    assert not list(tmp_path.iterdir())


def test_pyplot_is_never_loaded():
    code = (
        "import sys, numpy, jaxtrain.evaluation.plots as p; assert 'matplotlib' not in sys.modules;"
        "p.confusion_matrix(numpy.eye(2, dtype=int), ['a', 'b']); p.learning_curves([]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
