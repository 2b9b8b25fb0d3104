"""A script without the `__main__` guard, which every process that it starts runs again."""

import os
import subprocess
import sys
from multiprocessing import current_process
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtrain import PTClassifier, UserError, benchmark
from jaxtrain.data.base import ArraySource
from jaxtrain.data.stream import eval_batches
from tests.faults.small_run import IMAGES, LABELS, fit, merged

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import numpy as np
from jaxtrain import PTClassifier
options = dict(quiet=True, tracking={"enabled": False}, augment={"policy": "none"})
images, labels = np.zeros((40, 8, 8), "uint8") + 99, np.arange(40) % 2
PTClassifier(model={"name": "linear"}, train={"steps": 2}, **options).fit(images, labels)
print("begun", flush=True)
data = {"name": "folder:images", "loader": "stream", "workers": 2, "image_size": 8}
PTClassifier(model={"name": "linear"}, train={"steps": 2, "batch_size": 4}, data=data, **options).fit()
"""


@pytest.mark.slow
def test_input_workers_do_nothing_of_the_script_that_started_them(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8 + number, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    (tmp_path / "script.py").write_text(SCRIPT)
    command, environment = [sys.executable, "script.py"], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == "begun\n"
    assert '`if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert done.stderr.count("Traceback") == 1  # the workers have none
    assert len(list((tmp_path / "runs" / "pt").iterdir())) == 2


@pytest.mark.parametrize("worker", [True, False])
def test_what_makes_something_is_refused_while_a_process_starts(tmp_path, monkeypatch, worker):
    trained = fit(tmp_path / "trained", train={"steps": 1})
    source = ArraySource(IMAGES[..., None], LABELS.astype(np.int32))
    monkeypatch.setattr(current_process(), "_inheriting", True, raising=False)
    monkeypatch.setattr(current_process(), "_name", "grain-process-prefetch-3" if worker else "Process-1")
    doings = [
        lambda: PTClassifier(**merged({}), run_dir=tmp_path / "run").fit(IMAGES, LABELS),
        lambda: benchmark([trained], (IMAGES, LABELS)),
        lambda: eval_batches(source, batch_size=8, image_size=4, channels=1),
    ]
    for do in doings:
        with pytest.raises(SystemExit if worker else UserError) as caught:
            do()
        assert not worker or caught.value.code
    assert not (tmp_path / "run").exists()
