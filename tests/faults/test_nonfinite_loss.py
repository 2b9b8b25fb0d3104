"""The loss becomes NaN or infinite."""

import json
import re

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jaxtrain.data.order import Order
from jaxtrain.errors import RunError
from tests.faults.poison import BATCH, IMAGES, POISONED, STEPS, Poisonable, data, train
from tests.marks import mostly_slow


def poisoned_steps():
    order = Order(IMAGES, BATCH, seed=0).steps(0, STEPS)
    return (np.flatnonzero((order == POISONED).any(axis=1)) + 1).tolist()


BAD = poisoned_steps()[0]


def saved_steps(run_dir):
    return [int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit()]


def test_it_stops_in_time_and_names_step_layer_and_checkpoint(tmp_path):
    with pytest.raises(RunError) as caught:
        train(tmp_path / "run")
    told = str(caught.value)
    last = (BAD - 1) // 3 * 3
    assert told.startswith(f"the loss became nan at step {BAD}; it began in the output of root (Root) (step {BAD}); ")
    assert f"the last good checkpoint is that of step {last};" in told
    assert "\n" not in told
    assert max(saved_steps(tmp_path / "run")) == last
    assert not (tmp_path / "run" / "summary.json").exists()


def by_hand(skipped):
    """Parameters of the head after 40 steps of SGD with Nesterov momentum in NumPy, some steps left out."""
    images, labels = data()
    order = Order(len(images), 8, seed=0).steps(0, STEPS)
    x = images.reshape(len(images), -1) / 255.0
    with np.errstate(invalid="ignore"):
        x = x * np.sqrt(0.9 - x.mean(axis=1, keepdims=True))
    head = nnx.Linear(16, 4, rngs=nnx.Rngs(0))
    params = {"kernel": np.asarray(head.kernel[...], np.float64), "bias": np.zeros(4)}
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    for number, batch in enumerate(order, start=1):
        if number in skipped:
            continue
        logits = x[batch] @ params["kernel"] + params["bias"]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        delta = (p - np.eye(4)[labels[batch]]) / len(batch)
        gradient = {"kernel": x[batch].T @ delta, "bias": delta.sum(axis=0)}
        for name in params:
            velocity[name] = 0.9 * velocity[name] + gradient[name]
            params[name] -= 0.01 * (0.9 * velocity[name] + gradient[name])
    return params


class Counting(Poisonable):
    """Counts the steps that were really computed."""

    done = 0

    def inputs(self, batch, keys):
        def count(_):
            Counting.done += 1

        jax.debug.callback(count, batch.label[0])
        return super().inputs(batch, keys)


@pytest.mark.parametrize("log_every", [1, 4, 10])
def test_it_stops_within_the_logging_interval(tmp_path, log_every, monkeypatch):
    monkeypatch.setattr("jaxtrain.runs.recovery.find_origin", lambda *_: None)
    Counting.done = 0
    images, labels = (np.concatenate([part] * 10) for part in data(()))  # one epoch, whose end would hide being late
    images[Order(len(images), BATCH, seed=0).steps(0, 6)[5, 0]] = 255
    with pytest.raises(RunError, match="nan at step 6;"):
        train(tmp_path / "run", (images, labels), Counting, {"every_seconds": 1e6}, log_every=log_every)
    jax.effects_barrier()
    assert 6 <= Counting.done <= 6 + max(log_every - 1, 1)


class Exploding(Poisonable):
    """The update is infinite in step 6, while losses are finite until then."""

    def make_optimizer(self, schedule):
        rate = optax.scale_by_schedule(lambda step: jax.numpy.where(step == 5, jax.numpy.inf, -0.01))
        return rate


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(RunError) as caught:
        train(tmp_path / "run", images=data(()), classifier=Exploding, checkpoint={"every_steps": 1, "keep": 30})
    assert re.match(
        r"params/head/\w+ became NaN or infinite at step 6; it began in the update of head", str(caught.value)
    )
    assert "the last good checkpoint is that of step 5" in str(caught.value)
    assert max(saved_steps(tmp_path / "run")) == 5


def test_before_the_first_checkpoint_the_layer_is_found_too(tmp_path):
    with pytest.raises(RunError, match=r"it began in the output of root .* no checkpoint was saved before"):
        train(tmp_path / "run", checkpoint={"every_seconds": 1e6})


def test_skip_leaves_out_just_that_step(tmp_path, caplog):
    model = train(tmp_path / "run", on_nonfinite="skip")
    hits = poisoned_steps()
    assert model.summary["skipped_steps"] == len(hits)
    assert f"step {hits[0]} changes nothing: the loss is nan" in caplog.messages
    np.testing.assert_allclose(
        model.fitted.weights["params"]["head/kernel"], by_hand(skipped=hits)["kernel"], rtol=1e-4, atol=1e-6
    )
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["train/loss"]) for record in records if "train/loss" in record)
    assert max(record.get("train/skipped_steps", 0) for record in records) == len(hits)


def test_rollback_goes_back_to_the_checkpoint_and_past_the_batch(tmp_path):
    model = train(tmp_path / "run", on_nonfinite="rollback")
    hits = poisoned_steps()
    assert model.summary["rollbacks"] == len(hits)
    left_out = {step for hit in hits for step in range((hit - 1) // 3 * 3 + 1, hit + 1)}
    np.testing.assert_allclose(
        model.fitted.weights["params"]["head/kernel"], by_hand(skipped=left_out)["kernel"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("policy", mostly_slow(["skip", "rollback"], {"skip"}))
def test_both_give_up_in_the_end(tmp_path, policy):
    images = data(tuple(range(0, 64, 2)))  # nearly every batch
    with pytest.raises(RunError, match=r"not finite, the last at step|loss became nan at step"):
        train(tmp_path / "run", images=images, on_nonfinite=policy, nonfinite_limit=3)


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_with_another_policy(tmp_path):
    with pytest.raises(RunError):
        train(tmp_path / "run")
    model = train(tmp_path / "run", on_nonfinite="skip")
    again = train(tmp_path / "whole", on_nonfinite="skip")
    assert model.summary["params_sha256"] == again.summary["params_sha256"]
