"""Commands and programs of README.md and of the pages that it leads to run as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "jaxtrain").glob("*/README.md"))]
INSTALLS = "python3 -m venv"  # two lines, which `.ci/run` takes from here


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


@pytest.fixture
def project(tmp_path):
    """A folder with what the commands name, so that runs land elsewhere; `jaxtrain` there is that of this clone."""
    program = tmp_path / "bin" / "jaxtrain"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jaxtrain "$@"\n')
    program.chmod(0o755)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "photo.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.parent.name)
def test_python_programs(project, page):
    program = "\n".join(blocks(page, "python"))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"^(?:\[[\d ]+\] )?([01]\.\d+)$", done.stdout, re.M)[1]
    assert float(accuracy) > 0.9  # of the images of other writers


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands(project):
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    lines = [line.rpartition("&& .venv/bin/")[2] for line in dict.fromkeys(lines)]
    commands = [line for line in lines if line != "pytest"]
    assert len(commands) >= 12
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        done = subprocess.run(
            command,
            shell=True,
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    accuracies = re.findall(
        r'"test_accuracy": ([0-9.]+)', (project / "runs/pt/digits-cnn_small-1/summary.json").read_text()
    )
    assert float(accuracies[0]) >= 0.985


def test_links_lead_somewhere():
    links = [
        (page, one or other)
        for page in PAGES
        for one, other in re.findall(r'\]\(([^)#]+)\)|src="([^"]+)"', page.read_text())
    ]
    assert len(links) > 10
    local = [(page, link) for page, link in links if not link.startswith("https://")]
    assert [f"{page}: {link}" for page, link in local if not (page.parent / link).exists()] == []


def test_the_readme_is_short_and_installs_in_two_lines():
    text = PAGES[0].read_text()
    assert text.count("\n") <= 200
    first = blocks(PAGES[0], "bash")[0].splitlines()
    assert [line.startswith(INSTALLS) for line in first] == [True, True]
