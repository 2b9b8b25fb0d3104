from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrain.tracking.provenance import git_tags, process_identity, process_is_gone


def _changed(identity: str, **fields: object) -> str:
    return json.dumps({**json.loads(identity), **fields})


def test_a_living_process_is_not_gone_and_a_dead_one_is() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(process.pid)
    assert not process_is_gone(identity)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process_is_gone(identity)  # a zombie
    process.wait()
    assert process_is_gone(identity)


def test_a_number_that_was_given_to_another_process_is_gone() -> None:
    mine = process_identity(os.getpid())
    started = json.loads(mine)["started"]
    assert process_is_gone(_changed(mine, started=started - 100))
    assert not process_is_gone(_changed(mine, started=started - 1))  # the clock was corrected


def test_a_boot_later_it_is_gone_but_other_machines_and_containers_are_left_alone() -> None:
    dead = _changed(process_identity(os.getpid()), started=0.0)
    assert process_is_gone(dead)
    assert not process_is_gone(_changed(dead, host="another"))
    assert not process_is_gone(_changed(dead, machine="another"))
    assert not process_is_gone(_changed(dead, namespace="pid:[1]"))
    rebooted = _changed(process_identity(os.getpid()), boot="an earlier one")
    assert process_is_gone(rebooted) == bool(json.loads(rebooted)["machine"])


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json", '{"host": 1}'])
def test_what_is_not_an_identity_is_not_gone(text: str) -> None:
    assert not process_is_gone(text)


def test_git_tags(tmp_path: Path) -> None:
    assert git_tags(tmp_path / "missing") == {}

    def git(*arguments: str) -> str:
        command = [
            "git",
            "-c",
            "user.name=n",
            "-c",
            "user.email=e@example.org",
            "-C",
            str(tmp_path),
            *arguments,
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert git_tags(tmp_path) == {}
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert git_tags(tmp_path) == {"mlflow.source.git.commit": commit, "jaxtrain.git_dirty": "false"}
    (tmp_path / "file").write_text("b")
    assert git_tags(tmp_path)["jaxtrain.git_dirty"] == "true"


def test_without_git_there_are_no_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_tags(Path(__file__).parent) == {}
