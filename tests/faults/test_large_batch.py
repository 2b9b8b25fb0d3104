"""A batch that the device's memory does not hold."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain import PTClassifier
from jaxtrain.config_io import load_config
from jaxtrain.errors import RunError
from jaxtrain.training import lanes
from jaxtrain.training.memory import accumulations
from tests.faults.poison import RUN, data

BATCH = 64


class Wide(nnx.Module):
    """Many activations, few parameters."""

    def __init__(self) -> None:
        self.head = nnx.Linear(16, 4, rngs=nnx.Rngs(0))

    def __call__(self, x, *, train=False, key=None):
        matrix = np.random.default_rng(0).normal(size=(1, 1024)).astype(np.float32)
        hidden = jnp.tanh(x.reshape(len(x), 16, 1) @ matrix)
        return self.head((hidden @ matrix.T)[..., 0] / 1024)


class WideClassifier(PTClassifier):
    """Trains `Wide`."""

    def build_model(self, *, num_classes, axis_name):
        return Wide()


class SmallDevice:
    """Runs out of memory as XLA does, where a step takes more than so many bytes by the compiler's own account.

    Parts of a batch are computed in a loop, as on accelerators: unrolled ones would all be in memory at once.
    """

    def __init__(self, monkeypatch, limit=None):
        self.limit = limit
        self.needs = []
        real = lanes.compile_step

        def compile_step(*args):
            compiled = real(*args)

            def call(*inputs):
                self.needs.append(compiled.lower(*inputs).compile().memory_analysis().temp_size_in_bytes)
                if self.limit is not None and self.needs[-1] > self.limit:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")
                return compiled(*inputs)

            call.lower = compiled.lower
            return call

        scan = jax.lax.scan
        monkeypatch.setattr(jax.lax, "scan", lambda *args, unroll=1, **kwargs: scan(*args, **kwargs))
        for module in ("jaxtrain.training.lanes", "jaxtrain.runs.recovery"):
            monkeypatch.setattr(f"{module}.compile_step", compile_step)


def train(run_dir, **options):
    model = WideClassifier(**RUN, run_dir=run_dir, train={"steps": 6, "batch_size": BATCH, **options})
    return model.fit(*data(()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with room for all, and the memory that its step takes."""
    with pytest.MonkeyPatch.context() as patch:
        device = SmallDevice(patch)
        model = train(tmp_path_factory.mktemp("whole") / "run")
    return model, device.needs[0]


def test_without_auto_the_error_has_the_estimate_and_the_remedy(tmp_path, whole, monkeypatch):
    SmallDevice(monkeypatch, limit=whole[1] * 0.8)
    with pytest.raises(RunError) as caught:
        train(tmp_path / "run")
    told = str(caught.value)
    assert told.startswith("64 images at once do not fit in the memory of cpu: a step needs about ")
    assert "GiB; give --train.microbatch auto" in told
    assert "\n" not in told


@pytest.mark.slow
def test_auto_halves_until_it_fits_and_learns_the_same(tmp_path, whole, monkeypatch, caplog):
    device = SmallDevice(monkeypatch, limit=whole[1] * 0.4)
    with caplog.at_level(logging.WARNING):
        model = train(tmp_path / "run", microbatch="auto")
    parts = model.summary["accumulate"]
    assert parts in (4, 8)
    assert f"gradients are summed over {parts} parts of {BATCH // parts}" in caplog.text
    assert device.needs[: parts.bit_length()] == sorted(device.needs[: parts.bit_length()], reverse=True)
    assert load_config(tmp_path / "run" / "config.yaml").train.accumulate == parts  # a resumed run goes on with it
    kernels = [m.fitted.weights["params"]["head/kernel"] for m in (model, whole[0])]
    np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-6)


def test_auto_leaves_a_batch_that_fits_alone(tmp_path, whole):
    model = train(tmp_path / "run", microbatch="auto")
    assert model.summary["accumulate"] == 1
    assert model.summary["params_sha256"] == whole[0].summary["params_sha256"]


@pytest.mark.slow
def test_where_nothing_fits_it_says_so(tmp_path, whole, monkeypatch):
    SmallDevice(monkeypatch, limit=0)
    with pytest.raises(RunError, match="even 64 parts of a batch do not fit"):
        train(tmp_path / "run", microbatch="auto")


def test_parts_are_whole_on_every_device():
    assert list(accumulations(96, 2, 1)) == [1, 2, 4, 8, 16]
    assert list(accumulations(64, 8, 2)) == [2, 4, 8]
