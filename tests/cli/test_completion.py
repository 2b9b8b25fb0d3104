"""What Tab offers."""

import os
import shutil
import subprocess
import sys

import pytest

from jaxtrain.cli.main import run
from tests.cli.test_main import ENVIRONMENT


def offered(capsys, *words):
    run(["--complete", *words])
    return capsys.readouterr().out.split()


def test_commands_options_and_values(capsys):
    assert {"train", "benchmark", "--help"} <= set(offered(capsys, "tr"))
    assert offered(capsys, "embed", "li")[0] == "list"
    assert {"--technique", "--optimizer.learning-rate"} <= set(offered(capsys, "train", "--opt"))
    assert offered(capsys, "train", "--technique", "") == ["fe", "ft", "pt"]
    assert offered(capsys, "train", "--quiet", "") == ["True", "False"]
    assert "pt/digits" in offered(capsys, "train", "--config", "pt/")
    assert "sweeps/pt_digits" in offered(capsys, "sweep", "sw")
    assert offered(capsys, "train", "--name", "x") == offered(capsys, "nonsense", "x") == []


@pytest.fixture
def environment(tmp_path):
    """Where the command is this package."""
    program = tmp_path / "jaxtrain"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jaxtrain "$@"\n')
    program.chmod(0o755)
    return {**ENVIRONMENT, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_script_for_bash_completes(environment):
    script = """eval "$(jaxtrain completion bash)"
COMP_WORDS=(jaxtrain train --parallel.strategy f) COMP_CWORD=3
_jaxtrain
echo "${COMPREPLY[@]}"
COMP_WORDS=(jaxtrain bench) COMP_CWORD=1
_jaxtrain
echo "${COMPREPLY[@]}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.splitlines() == ["fsdp", "benchmark"], done.stderr


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_the_script_for_zsh_completes(environment):
    script = """autoload() { }; compinit() { }; compdef() { completes=$1 }; _files() { print files }
compadd() { print -l "${(@P)2}"; (( ${#${(P)2}} )) }
eval "$(jaxtrain completion zsh)"
words=(jaxtrain train --parallel.strategy f) CURRENT=4; $completes
words=(jaxtrain predict no/such) CURRENT=3; $completes
"""
    done = subprocess.run(["zsh", "-f", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert "fsdp" in done.stdout.splitlines(), done.stderr
    assert done.stdout.splitlines()[-1] == "files"


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_the_script_for_fish_completes(environment):
    script = """jaxtrain completion fish | source
complete -C "jaxtrain train --parallel.strategy f"
complete -C "jaxtrain bench"
"""
    done = subprocess.run(["fish", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["fsdp", "benchmark"], done.stderr
