from __future__ import annotations

import json
import logging
import multiprocessing
import os

import pytest

from jaxtrain.evaluation.looks import count_look


def test_counts_different_models_for_each_test_set(tmp_path):
    path = tmp_path / "runs" / "looks.json"
    assert [count_look(path, "set a", model, "digits") for model in ("m1", "m2", "m2", "m1", "m3")] == [
        *(1, 2, 2, 2, 3)
    ]
    assert count_look(path, "set b", "m1", "mnist") == 1
    assert count_look(path, "set a", "m4", "digits") == 4
    assert json.loads(path.read_text())["set b"] == {"dataset": "mnist", "params_sha256": ["m1"]}


def _look(path, model):
    count_look(path, "set", model, "digits")


def test_runs_that_end_at_once_are_all_counted(tmp_path):
    path = tmp_path / "looks.json"
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used JAX may hang
    runs = [context.Process(target=_look, args=(path, f"model {i}")) for i in range(6)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert count_look(path, "set", "last", "digits") == 7


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"set": 3}', '{"set": {"params_sha256": 2}}', "\xff"])
def test_a_damaged_file_is_set_aside(tmp_path, caplog, content):
    path = tmp_path / "looks.json"
    path.write_text(content, encoding="latin-1")
    assert count_look(path, "set", "model", "digits") == 1
    assert "was damaged" in caplog.text
    assert (tmp_path / "looks.json.damaged").read_text(encoding="latin-1") == content


def test_a_folder_that_cannot_be_written_costs_only_the_count(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert count_look(tmp_path / "file" / "looks.json", "set", "model", "digits") is None
    assert "not counted" in caplog.text


def test_nothing_but_the_count_and_its_lock_stays(tmp_path):
    count_look(tmp_path / ".looks.json", "set", "model", "digits")
    assert sorted(os.listdir(tmp_path)) == [".looks.json", ".looks.json.lock"]
