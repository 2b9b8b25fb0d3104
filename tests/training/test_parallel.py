import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.training.parallel import check_batch_size

SCRIPT = Path(__file__).with_name("eight_devices.py")


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_strategy_on_eight_devices_agrees_with_one(accumulate):
    """With batch norm, dropout, augmentation, mixup and a moving average; losses of 20 steps within 1e-4."""
    command = [sys.executable, str(SCRIPT), str(accumulate)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    one = results.pop("one")
    assert len(one["losses"]) == 20
    assert one["losses"][-1] < one["losses"][0]
    for name, other in results.items():
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-4, err_msg=name)
        assert other["accuracies"] == one["accuracies"], name
        np.testing.assert_allclose(other["logits"], one["logits"], rtol=1e-2, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("batch", "devices", "accumulate", "pairs", "near"),
    [(101, 8, 1, False, 104), (97, 8, 1, False, 96), (3, 8, 1, False, 8), (130, 4, 2, True, 128)],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_does(batch, devices, accumulate, pairs, near):
    with pytest.raises(UserError, match=f"nearest that does: {near}$"):
        check_batch_size(batch, devices=devices, accumulate=accumulate, pairs=pairs)
    check_batch_size(near, devices=devices, accumulate=accumulate, pairs=pairs)
