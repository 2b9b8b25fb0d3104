from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

from jaxtrain.data.base import ArraySource, Dataset
from jaxtrain.data.digest import digest_of_test_set
from jaxtrain.evaluation.comparison import Candidate, compare
from jaxtrain.evaluation.content import rival_of
from jaxtrain.evaluation.near_duplicates import NearDuplicate
from jaxtrain.evaluation.report import FILES, Report
from tests.evaluation.made_up import NAMES, candidate, ids_of, predictions
from tests.marks import mostly_slow

COSTS = {"params": 1000.0, "train_seconds": 37.0, "flops_per_image": 2e6, "latency_ms_p50": 0.5, "latency_ms_p95": 0.6}
CURVES = [{"step": s, "time": 0.0, "val/accuracy": s / 100, "train/loss": 1 / s} for s in range(10, 100, 10)]


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 10, 3), dtype=np.uint8)


def make_report(candidates=None, **more):
    candidates = candidates or [
        Candidate("ft", predictions(0.9, seed=1), COSTS, seed=0, curves=CURVES),
        Candidate("fe", predictions(0.85, seed=2, technique="fe"), {**COSTS, "train_seconds": 1.0}, seed=0),
        Candidate("pt", predictions(0.6, seed=3)),
    ]
    comparison = compare(candidates, resamples=200)
    labels = comparison.predictions.labels
    test, train = ArraySource(pixels(len(labels)), labels), ArraySource(pixels(30, 1), labels[:30])
    dataset = Dataset("pets", NAMES, train, None, lambda: test, 3, (12, 10))
    return Report(comparison, test, dataset, **more)


@pytest.fixture(scope="module")
def report():
    return make_report(
        duplicates={"training": [(3, 5)], "validation": []},
        near={"training": [NearDuplicate(7, 2, 3, 0.99)]},
        looks=23,
        columns={"light": ["day", "night"] * 200},
        robustness={"ft": {"fog": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]}},
    )


def test_what_is_saved_agrees_with_itself(report, tmp_path):
    folder = report.save(tmp_path / "new" / "report")
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    results = json.loads((folder / "results.json").read_text())
    table = report.to_pandas()
    rows = list(csv.DictReader((folder / "leaderboard.csv").open()))
    assert [row["model"] for row in rows] == list(table["model"]) == ["ft", "fe", "pt"]
    for row, model in zip(rows, results["models"], strict=True):
        assert float(row["accuracy"]) == model["accuracy"]
        assert float(row["accuracy_low"]) < model["accuracy"] < float(row["accuracy_high"])
        assert np.sum(model["confusion"]) == 400
    assert float(rows[0]["train_seconds"]) == 37
    pairs = list(csv.DictReader((folder / "pairs.csv").open()))
    assert [(pair["first"], pair["second"]) for pair in pairs] == [("ft", "fe"), ("ft", "pt"), ("fe", "pt")]
    assert [pair["verdict"] for pair in pairs] == [pair["verdict"] for pair in results["pairs"]]
    classes = list(csv.DictReader((folder / "per_class.csv").open()))
    assert len(classes) == 3 * len(NAMES)
    assert results["looks"] == 23
    assert results["duplicates"] == {"training": [[3, 5]], "validation": []}
    assert results["near_duplicates"]["training"][0]["test"] == 7
    assert results["likely_label_errors"][0]["image"].startswith("array image ")
    assert {part["column"] for part in results["slices"]} == {"class", "light"}
    markdown = (folder / "report.md").read_text()
    assert markdown.startswith("# pets: 400 test images")
    assert "| ft | 90.0% [" in markdown
    assert all(line in markdown for line in (*report.advice, *report.verdicts, *report.warnings))


def test_warnings_say_what_speaks_against_the_figures(report):
    text = "\n".join(report.warnings)
    assert "1 of 400 test images are also in the training set" in text
    assert "23 models were measured on this test set" in text
    assert "fewer than ten mistakes" not in text
    small = make_report([candidate("a", 0.95, images=80)])
    assert [line.split(":")[0] for line in small.warnings] == [
        "fewer than ten mistakes of a",
        "80 test images can hardly tell models apart",
    ]


def test_galleries_compare_the_best_with_its_best_rival(report):
    assert [(one.name, other.name) for one, other, _ in report.disagreements] == [("ft", "fe"), ("fe", "ft")]
    seeds = [candidate(f"cnn-{i}", 0.9 - i / 100, seed=i, recipe="r") for i in range(3)] + [
        candidate("mlp", 0.7, seed=9)
    ]
    assert rival_of(compare(seeds, resamples=100)).name == "mlp"
    assert rival_of(compare(seeds[:2], resamples=100)).name == "cnn-1"
    assert rival_of(compare(seeds[:1], resamples=100)) is None


def test_a_notebook_shows_leaderboard_and_advice(report):
    shown = report._repr_html_()
    assert shown.count("<tr") == 4
    assert "<li>fe is 5.0 points below ft" in shown
    assert 'src="data:image/svg+xml;base64,' in shown
    evil = make_report([candidate("<script>alert(1)</script>", 0.9), candidate("b", 0.7, seed=1)])
    assert "<script" not in evil._repr_html_()
    assert "fe is 5.0 points below ft" in repr(report)
    assert len(repr(report)) < 5000


def test_the_page_holds_everything_and_asks_for_nothing(report):
    page = report.to_html()
    for heading in (
        "Leaderboard",
        "Who beats whom",
        "Accuracy and cost",
        "Calibration",
        "Classes and slices",
        "Images",
    ):
        assert f">{heading}</h2>" in page
    for text in ("Worst mistakes", "Right by ft alone", "Labels that may be wrong", "Learning curves", "Robustness"):
        assert text in page
    assert "23 models were measured on it so far" in page
    assert "1 test image looks like one of the training set" in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    assert not re.search(r"<script|<link|<iframe|javascript:|\son\w+=", page, re.IGNORECASE)
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', page))
    assert "default-src 'none'" in page
    assert len(page) < 3e6


def test_names_are_escaped_everywhere():
    evil = "</td><script>alert('x')</script>&\"'"
    names = ("<img src=x onerror=alert(1)>", "dog", "fox", "owl")
    one = Candidate(evil, predictions(0.8, seed=1, names=names), COSTS, curves=CURVES)
    other = Candidate("b", predictions(0.6, seed=2, names=names), COSTS)
    page = make_report([one, other], columns={evil: [evil, "b"] * 200}).to_html()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;img src=x" in page


@pytest.mark.parametrize(
    "case", mostly_slow(["one model", "perfect", "two classes", "no images", "no costs"], {"one model", "no images"})
)
def test_pages_of_nearly_nothing(case):
    if case == "one model":
        page = make_report([candidate("a", 0.8)]).to_html()
        assert "Who beats whom" not in page
    elif case == "perfect":
        page = make_report([candidate("a", 1.0, val=False), candidate("b", 1.0, seed=1, val=False)]).to_html()
        assert "No model made a mistake" in page
    elif case == "two classes":
        page = make_report(
            [candidate("a", 0.8, names=("x", "y")), candidate("b", 0.7, seed=1, names=("x", "y"))]
        ).to_html()
    elif case == "no images":
        page = Report(make_report().comparison).to_html()
        assert "data:image/png;" not in page
    else:
        page = make_report([candidate("a", 0.8), candidate("b", 0.7, seed=1)]).to_html()
        assert "No costs were measured" in page
    assert "</html>" in page


@pytest.mark.slow
def test_many_models_and_classes_stay_small():
    images, classes = 3000, 1000
    rng = np.random.default_rng(0)
    labels, names = (np.arange(images) % classes).astype(np.int32), tuple(f"class {i}" for i in range(classes))
    digest = digest_of_test_set(ids_of(images), labels, names)
    many = []
    for number in range(20):
        logits = rng.normal(size=(images, classes)).astype(np.float32)
        logits[np.arange(images), labels] += 1 + number / 5
        one = predictions(0.5)
        made = one.__class__(ids_of(images), labels, logits, names, digest, f"{number:064x}", "pt", "mlp", "many")
        many.append(Candidate(f"model {number}", made, COSTS))
    comparison = compare(many, resamples=100)
    test = ArraySource(np.random.default_rng(0).integers(0, 256, (images, 80, 80, 3), dtype=np.uint8), labels)
    assert len(Report(comparison, test).to_html()) < 10e6
