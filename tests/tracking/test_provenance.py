from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
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
    started, ticks = json.loads(mine)["started"], json.loads(mine)["ticks"]
    assert process_is_gone(_changed(mine, ticks=ticks - 100))
    assert not process_is_gone(_changed(mine, started=started - 3600))  # the clock was set back
    assert process_is_gone(_changed(mine, started=started - 100, ticks=None))  # written by an earlier version
    assert not process_is_gone(_changed(mine, started=started - 1, ticks=None))


def test_a_boot_later_it_is_gone_but_other_machines_and_containers_are_left_alone() -> None:
    dead = _changed(process_identity(os.getpid()), started=0.0, ticks=1)
    assert process_is_gone(dead)
    assert not process_is_gone(_changed(dead, host="another"))
    assert not process_is_gone(_changed(dead, machine="another"))
    assert not process_is_gone(_changed(dead, namespace="pid:[1]"))
    rebooted = _changed(process_identity(os.getpid()), boot="an earlier one")
    assert process_is_gone(rebooted) == bool(json.loads(rebooted)["machine"])


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json", '{"host": 1}'])
def test_what_is_not_an_identity_is_not_gone(text: str) -> None:
    assert not process_is_gone(text)


@pytest.fixture
def git(tmp_path: Path) -> Callable[..., str]:
    """Git itself, in a repository at `repo` with one commit."""

    def call(*arguments: str) -> str:
        user = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "protocol.file.allow=always"]
        command = ["git", *user, "-C", str(tmp_path / "repo"), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "repo" / "sub").mkdir(parents=True)
    (tmp_path / "repo" / "file").write_text("a")
    call("init", "-b", "main")
    call("add", "file")
    call("commit", "-m", "first")
    return call


def _tags(commit: str, branch: str) -> dict[str, str]:
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.branch": branch}


def test_commit_and_branch_are_those_that_git_gives(tmp_path: Path, git: Callable[..., str]) -> None:
    repo, commit = tmp_path / "repo", git("rev-parse", "HEAD")
    assert git_tags(repo) == git_tags(repo / "sub") == _tags(commit, "main")
    git("checkout", "-b", "feature/x")
    git("pack-refs", "--all")
    assert not (repo / ".git/refs/heads/feature/x").exists()
    assert git_tags(repo) == _tags(commit, "feature/x")
    git("commit", "--allow-empty", "-m", "second")  # a loose file, which wins over the packed one
    assert git_tags(repo) == _tags(git("rev-parse", "HEAD"), "feature/x") != _tags(commit, "feature/x")
    git("checkout", "--detach", "main")
    assert git_tags(repo) == {"mlflow.source.git.commit": commit}
    git("worktree", "add", "-b", "aside", "../aside")
    assert git_tags(tmp_path / "aside") == _tags(commit, "aside")
    git("submodule", "add", str(tmp_path / "aside"), "module")
    assert git_tags(repo / "module")["mlflow.source.git.commit"] == commit


def test_without_a_commit_there_are_no_tags(tmp_path: Path) -> None:
    assert git_tags(tmp_path / "missing") == {}
    subprocess.run(["git", "init", str(tmp_path / "empty")], check=True, capture_output=True)
    assert git_tags(tmp_path / "empty") == {}


def test_a_strangers_repository_executes_nothing(tmp_path: Path, git: Callable[..., str]) -> None:
    """`git status` runs all of these."""
    repo, mark = tmp_path / "repo", tmp_path / "executed"
    for option in ("core.fsmonitor", "filter.f.clean", "diff.external", "core.sshCommand", "alias.rev-parse"):
        git("config", option, f"touch {mark}; false")
    (repo / ".gitattributes").write_text("* filter=f\n")
    (repo / "file").write_text("b")
    assert git_tags(repo)["mlflow.source.git.branch"] == "main"
    assert not mark.exists()
    subprocess.run(["git", "-C", str(repo), "status"], capture_output=True, check=False)
    assert mark.exists()  # the trap works


@pytest.mark.parametrize(
    "head",
    ["", "ref: refs/heads/../../../../etc/hostname", "ref: /etc/hostname", "ref: refs/heads/x", "z" * 40, "\0", "\xff"],
)
def test_a_hostile_head_gives_no_tags(tmp_path: Path, git: Callable[..., str], head: str) -> None:
    (tmp_path / "repo/.git/HEAD").write_text(head + "\n", encoding="latin-1")
    assert git_tags(tmp_path / "repo") == {}


def test_a_pipe_is_not_waited_for(tmp_path: Path, git: Callable[..., str]) -> None:
    (tmp_path / "repo/.git/refs/heads/main").unlink()
    os.mkfifo(tmp_path / "repo/.git/refs/heads/main")
    os.mkfifo(tmp_path / "repo/sub/.git")
    assert git_tags(tmp_path / "repo/sub") == {}
