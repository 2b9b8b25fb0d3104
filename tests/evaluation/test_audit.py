"""What an audit finds, beside what was planted; and its page and table, whatever images and classes are called."""

import csv

import numpy as np
from sklearn.neighbors import NearestNeighbors

from jaxtrain.data.base import ArraySource
from jaxtrain.evaluation import audit as module
from jaxtrain.evaluation.audit import Audit, Finding, Overlap, Place, find_near_duplicates, find_outliers
from jaxtrain.evaluation.audit_page import write_audit
from tests.evaluation.test_near_duplicates import jpeg, picture, source


def test_outliers_are_far_from_their_nearest_as_scikit_learn_measures_it(monkeypatch):
    rng = np.random.default_rng(0)
    x = np.concatenate([c + rng.normal(size=(60, 8)) for c in 20 * np.eye(8)[:3]]).astype(np.float32)
    x[17], x[80] = -20, (20, 0, 20, -20, 0, 0, 0, 20)
    monkeypatch.setattr(module, "_BLOCK", 50)
    centred = x - x.mean(axis=0)
    nearest = NearestNeighbors(n_neighbors=11, metric="cosine").fit(centred).kneighbors(centred)[0][:, 1:]
    np.testing.assert_allclose(module.neighbour_distances(x, seed=0), nearest.mean(axis=1), atol=1e-5)
    found = find_outliers([Place("train", i) for i in range(len(x))], x, seed=0)
    assert {one.place.number for one in found} == {17, 80}
    monkeypatch.setattr(module, "_REFERENCE", 100)
    found = find_outliers([Place("train", i) for i in range(len(x))], x, seed=0)
    assert {17, 80} <= {one.place.number for one in found}


def test_near_duplicates_within_and_across_splits_each_once():
    train = [*(picture(seed) for seed in range(10)), jpeg(picture(4), 40)]
    test = [picture(50), jpeg(picture(7), 40)]
    found = find_near_duplicates({"train": source(train), "test": source(test)}, 10**6)
    pairs = [(one.place, one.other) for one in found]
    assert pairs == [(Place("test", 1), Place("train", 7)), (Place("train", 10), Place("train", 4))]


def test_page_and_table_take_any_name_for_text(tmp_path):
    images = ArraySource(np.zeros((3, 8, 8, 3), np.uint8), np.array([0, 1, 1], np.int32), origin="=cmd()")
    error = Finding("label error", Place("train", 1), 0.9, suggested=0)
    near = Finding("near duplicate", Place("train", 2), 0.99, other=Place("train", 0))
    bad = "<script>alert(1)</script>"
    overlap = Overlap(1, 0, 1, 0.5)
    found = Audit(bad, (bad, "=1+1"), {"train": images}, 3, 0.5, [error], [overlap], [near], [], {bad: "x"})
    write_audit(found, tmp_path / "new" / "folder")
    page = (tmp_path / "new" / "folder" / "audit.html").read_text()
    assert "<script" not in page
    assert page.count('src="data:image/png') == 3
    with open(tmp_path / "new" / "folder" / "suggestions.csv", newline="") as file:
        one, two, three = csv.DictReader(file)
    assert (one["label"], one["suggested_label"], one["index"], one["image"][0]) == ("'=1+1", bad, "1", "'")
    assert (two["other_label"], two["other_index"]) == (bad, "0")
    assert (three["issue"], three["reason"]) == ("unreadable", "x")


def test_nothing_found_is_a_page_too(tmp_path):
    images = ArraySource(np.zeros((3, 8, 8, 3), np.uint8), np.array([0, 1, 1], np.int32))
    write_audit(Audit("clean", ("a", "b"), {"train": images}, 3, 1.0, [], [], None, []), tmp_path)
    assert "too many images" in (tmp_path / "audit.html").read_text()
    assert (tmp_path / "suggestions.csv").read_text() == 'issue\n""\n'
