"""The README's commands and programs run as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


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
def test_python_programs(project):
    program = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.S))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.partition("] ")[2].split()[0]) > 0.9  # of the images of other writers
    assert len(list((project / "runs" / "pt").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands(project):
    lines = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.splitlines()]
    commands = [line for line in lines if not line.startswith(("pip ", "pytest"))]
    assert len(commands) >= 6
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
