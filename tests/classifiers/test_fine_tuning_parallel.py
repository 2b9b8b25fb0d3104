import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("eight_devices.py")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", ["vit", pytest.param("cnn", marks=pytest.mark.slow)])
def test_fine_tuning_on_eight_devices_agrees_with_one(case):
    done = subprocess.run([sys.executable, str(SCRIPT), case], capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    one = results.pop("one")
    assert len(one["losses"]) == 12
    assert np.mean(one["losses"][-3:]) < one["losses"][0]
    for name, other in results.items():
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(other["logits"], one["logits"], rtol=1e-2, atol=1e-3, err_msg=name)
        assert other["trained"] == one["trained"]
