"""Several labels per image, under every technique, strategy and head."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tests.classifiers.labels_on_devices import FT, HEADS, WAYS, data


@pytest.fixture(scope="module")
def results():
    command = [sys.executable, str(Path(__file__).with_name("labels_on_devices.py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["pt", *FT, *(f"fe {head}" for head in HEADS)])
def test_every_technique_strategy_and_head(results, what, way):
    if what == "fe xgboost" and not importlib.util.find_spec("xgboost"):
        pytest.skip("xgboost is not installed")
    here, one, (_, truth) = results[what][way], results[what]["one"], data()[1]
    assert here["mAP"] == pytest.approx(average_precision_score(truth, here["logits"]), abs=1e-6)
    assert here["mAP"] > truth.mean()
    assert len(here["thresholds"]) == 3
    assert len(here["losses"]) == (0 if what.startswith("fe") else 5)
    np.testing.assert_allclose(here["losses"], one["losses"], rtol=1e-4)
    np.testing.assert_allclose(here["logits"], one["logits"], rtol=1e-2, atol=2e-3)
