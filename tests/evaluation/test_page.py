from __future__ import annotations

import base64
import html
import re
import shutil
import subprocess
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from jaxtrain.data.base import ArraySource, FileSource
from jaxtrain.evaluation import comparison_plots as pictures
from jaxtrain.evaluation.gallery import thumbnail
from tests.evaluation.test_report import make_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_frontier_is_what_nothing_beats():
    costs, accuracy = np.array([1.0, 2.0, 2.0, 3.0, 3.0, 5.0]), np.array([0.5, 0.7, 0.6, 0.7, 0.7, 0.9])
    assert pictures.frontier(costs, accuracy).tolist() == [True, True, False, False, False, True]
    assert pictures.frontier(np.ones(3), np.ones(3)).tolist() == [True] * 3


def test_pictures_are_sound_take_the_colour_of_the_page_and_repeat_themselves():
    comparison = make_report().comparison
    for draw in (pictures.leaderboard, pictures.pareto, pictures.calibration, pictures.per_class):
        with pictures.inked():
            one, other = (pictures.to_svg(draw(comparison)) for _ in range(2))
        assert one == other
        ElementTree.fromstring(one)
        assert b"currentColor" in one
        assert pictures.INK.encode() not in one
        assert b"prefers-color-scheme:dark" in one


def test_figures_show_the_figures():
    comparison = make_report().comparison
    axes = pictures.leaderboard(comparison).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ft", "fe", "pt"]
    assert axes.lines[0].get_xdata().tolist() == pytest.approx(
        [100 * bound for bound in comparison.entries[0].measured.intervals["accuracy"]]
    )
    panels = pictures.pareto(comparison).axes
    assert [panel.get_xlabel() for panel in panels] == [
        "training time, s", "operations per image", "latency of one image, ms",
    ]  # fmt: skip
    assert {text.get_text() for text in panels[0].texts} == {"ft", "fe"}
    curves = pictures.learning_curves(
        [(one.name, one.candidate.curves) for one in comparison.entries], "accuracy"
    ).axes[0]
    assert curves.lines[0].get_ydata().tolist() == pytest.approx(list(range(10, 100, 10)))
    assert pictures.robustness({}) is None


def test_thumbnails_keep_small_images_and_shrink_large_ones(tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (1, 9, 7, 1), dtype=np.uint8)
    uri = thumbnail(ArraySource(small, np.zeros(1, np.int32)), 0)
    (tmp_path / "small.png").write_bytes(base64.b64decode(uri.removeprefix("data:image/png;base64,")))
    assert (np.asarray(Image.open(tmp_path / "small.png"))[..., :1] == small[0]).all()
    Image.fromarray(np.zeros((300, 600, 3), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    files = FileSource([tmp_path / "large.png", tmp_path / "broken.png"], np.zeros(2, np.int32))
    uri = thumbnail(files, 0)
    (tmp_path / "large.jpg").write_bytes(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))
    assert Image.open(tmp_path / "large.jpg").size == (112, 56)
    assert thumbnail(files, 1) is None


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.slow
def test_a_browser_shows_the_page_and_nothing_fails_to_load(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(make_report(columns={"<b>&": ["x", "y"] * 200}).to_html(), encoding="utf-8")
    # A script of our own, which the page's own policy would forbid, counts what was loaded.
    probe = """<script>addEventListener("load", () => {
      const images = [...document.images], broken = images.filter(i => !i.complete || !i.naturalWidth).length;
      const style = getComputedStyle(document.querySelector("td.better")).backgroundColor;
      document.title = JSON.stringify([images.length, broken, style, document.documentElement.scrollWidth]);
    })</script>"""
    policy = re.search(r'content="(default-src[^"]*)"', page.read_text()).group(1)
    allowed = (
        page.read_text().replace(policy, f"{policy}; script-src 'unsafe-inline'").replace("</head>", f"{probe}</head>")
    )
    probed = tmp_path / "probed.html"
    probed.write_text(allowed, encoding="utf-8")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=500,900",
        f"--user-data-dir={tmp_path}/p",
    ]
    shown = subprocess.run(
        [CHROMIUM, *options, "--enable-logging=stderr", "--dump-dom", f"file://{probed}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    images, broken, style, width = eval(html.unescape(re.search(r"<title>(.*?)</title>", shown.stdout).group(1)))
    assert images == page.read_text().count("<img ")
    assert broken == 0
    assert style not in ("rgba(0, 0, 0, 0)", "")  # the style sheet was applied
    assert width <= 500  # nothing but tables and pictures scrolls sideways
    complaints = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
