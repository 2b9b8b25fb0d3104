from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.slow
def test_counts_are_equal_for_every_batch_size_and_number_of_devices():
    script = Path(__file__).with_name("eight_devices.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=280)
    found = json.loads(done.stdout)
    assert len(found) == 16
    first = next(iter(found.values()))
    assert first["images"] == np.sum(first["confusion"]) == 101
    for name, one in found.items():
        assert one["confusion"] == first["confusion"], name
        assert (one["images"], one["unique"]) == (101, first["unique"]), name
        assert one["logits"] == pytest.approx(first["logits"], rel=1e-5), name
