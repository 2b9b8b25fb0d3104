"""A sweep of seconds: a tiny network on the digits."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "sweep.py"
FILE = """
base:
  technique: pt
  model: {name: mlp_tiny}
  train: {steps: STEPS, batch_size: 64}
  checkpoint: {every_steps: 20}
  tracking: {enabled: false}
axes:
  optimizer.learning_rate: [0.001, 0.003, 0.01]
seeds: 2
workers: 1
"""


def write(folder, *, steps=30, more=""):
    path = folder / "tiny.yaml"
    path.write_text(FILE.replace("STEPS", str(steps)) + more)
    return path


def start(path, *arguments):
    """The command, started in the folder of its file."""
    paths = [str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        [sys.executable, SCRIPT, path, *arguments], cwd=path.parent, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    """Its output; the command has to end well."""
    output, _ = process.communicate(timeout=550)
    assert process.returncode == 0, output
    return output


def summaries(folder):
    """Of all runs of the sweep, by name."""
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("runs/sweeps/tiny/*/summary.json")}
