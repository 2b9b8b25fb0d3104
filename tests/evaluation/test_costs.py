from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from jaxtrain.config import Config
from jaxtrain.data.base import ArraySource
from jaxtrain.evaluation import costs
from jaxtrain.evaluation.costs import (
    ForwardPass,
    costs_of_training,
    folder_megabytes,
    kept_costs,
    measure_costs,
    training_seconds,
)

FEATURES, CLASSES = 12 * 12 * 3, 7


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(costs, "SECONDS", 0.05)
    monkeypatch.setattr(costs, "BATCHES", (1, 4, 16))


class Linear:
    config = Config().replace(
        **{"data.image_size": 12, "data.channels": 3, "data.crop_pct": 1.0, "data.interpolation": "bilinear"}
    )

    def forward_pass(self):
        def network(weights, images):
            return images.reshape(len(images), -1).astype(np.float32) @ weights["kernel"]

        return ForwardPass(network, {"kernel": np.ones((FEATURES, CLASSES), np.float32)}, self.config)


def test_operations_memory_and_times_of_a_linear_model():
    found = measure_costs(Linear())
    assert found["flops_per_image"] == pytest.approx(2 * FEATURES * CLASSES, rel=0.3)
    assert 0 < found["latency_ms_p50"] <= found["latency_ms_p95"] <= found["latency_ms_p99"]
    assert found["best_batch"] in (1, 4, 16)
    weights, inputs = 4 * FEATURES * CLASSES, found["best_batch"] * FEATURES
    assert found["memory_mb"] >= (weights + inputs) / 1e6
    assert "decode_images_per_second" not in found


def test_a_head_on_the_host_counts():
    def slow(vectors):
        assert vectors.shape[1] == CLASSES
        time.sleep(0.01)
        return vectors

    class Slow(Linear):
        def forward_pass(self):
            return replace(super().forward_pass(), head=slow, head_flops=1e6)

    found = measure_costs(Slow())
    assert found["latency_ms_p50"] >= 10
    assert found["flops_per_image"] > 1e6
    assert found["best_batch"] == 16


def test_decoding_is_told_apart():
    pixels = np.zeros((5, 20, 16, 3), np.uint8)
    found = measure_costs(Linear(), ArraySource(pixels, np.zeros(5, np.int32)))
    assert found["decode_images_per_second"] > 0


def test_costs_of_training_are_those_of_the_summary():
    summary = {"params": 9, "trainable_params": 4, "wall_seconds": 20.0, "images_per_second": 51.3, "steps": 3}
    assert costs_of_training(summary) == {
        **{"params": 9, "trainable_params": 4, "train_seconds": 20},
        "images_seen": 1026,
    }
    assert costs_of_training({**summary, "images_seen": 1024})["images_seen"] == 1024
    assert costs_of_training({}) == {}


def test_training_time_is_that_of_the_whole_chain_of_runs(tmp_path):
    def summary(name, technique, seconds, **more):
        (tmp_path / name).mkdir()
        content = {"technique": technique, "wall_seconds": seconds, "images_per_second": 1.0, **more}
        (tmp_path / name / "summary.json").write_text(json.dumps(content))
        return content

    summary("pt", "pt", 100.0)
    assert training_seconds(tmp_path / "pt") == training_seconds(tmp_path / "pt" / "model") == 100
    fe = summary("fe", "fe", 2.0, pretraining_seconds=training_seconds(tmp_path / "pt"))
    assert costs_of_training(fe)["train_seconds"] == 102
    assert training_seconds(tmp_path / "fe") == 102
    assert "pretraining_unknown" not in costs_of_training(fe)
    for unknown in (summary("hub", "ft", 3.0, pretraining_seconds=None), summary("old", "ft", 3.0)):
        assert costs_of_training(unknown)["train_seconds"] == 3
        assert costs_of_training(unknown)["pretraining_unknown"] == 1
    assert training_seconds(tmp_path / "hub") is training_seconds(tmp_path / "nowhere") is None


def test_costs_are_measured_once_a_model_and_device(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"latency_ms_p50": 1.5}

    path = tmp_path / "costs.json"
    assert [kept_costs(path, key, measure) for key in "aab"] == [{"latency_ms_p50": 1.5}] * 3
    assert len(calls) == 2
    for damage in ("", "[]", json.dumps({**json.loads(path.read_text()), "device": "another"})):
        path.write_text(damage)
        kept_costs(path, "b", measure)
    assert len(calls) == 5


def test_size_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(1500))
    (tmp_path / "c").write_bytes(bytes(500))
    assert folder_megabytes(tmp_path) == 0.002
