"""Run on eight virtual devices: what a plan says of memory, beside XLA's own figures of the program that trains."""

import sys
from pathlib import Path

import jax
import numpy as np

from jaxtrain import PTClassifier
from jaxtrain.classifiers.planning import plan
from jaxtrain.data.sources import load_dataset
from jaxtrain.runs.setup import prepare
from jaxtrain.training.chips import Target
from jaxtrain.training.meter import compile_step


class Here(Target):
    """The devices of this machine."""

    platform = "cpu"

    def devices(self):
        return jax.devices()


def main(folder):
    generator, data = np.random.default_rng(0), Path(folder) / "images.npz"
    arrays = {"x_train": generator.integers(0, 256, (640, 16, 16, 3), np.uint8), "y_train": np.arange(640) % 10}
    np.savez(data, **arrays, x_test=arrays["x_train"][:64], y_test=arrays["y_train"][:64])
    jax.config.update("jax_num_cpu_devices", 8)
    options = {"data": {"name": f"npz:{data}"}, "train": {"batch_size": 64, "steps": 2}, "quiet": True}
    for name in ("cnn_tiny", "vit_test"):
        options["model"] = {"name": name}
        ways = plan(PTClassifier(**options), Here("v5e", "2x4"), largest=False).ways
        for way in ways:
            classifier = PTClassifier(**options, parallel={"strategy": way.strategy})
            dataset = load_dataset(classifier.data_config)
            _, setup = prepare(classifier.bind(classifier.resolve(classifier.config, dataset)), dataset)
            step = compile_step(setup.program.step, setup.feed, setup.strategy, 1)
            given = setup.strategy.place(setup.state), *setup.feed.args(0)
            stats = step.lower(*given).compile().memory_analysis()
            need = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
            ratio = way.needs / (need - stats.alias_size_in_bytes)
            held = sum(leaf.addressable_shards[0].data.nbytes for leaf in given[0].params.values())
            print(f"{name} {way.strategy}: {ratio:.4f} of the memory, parameters {way.parameters / held:.4f}")
            assert abs(ratio - 1) < 0.02
            assert way.parameters == held


if __name__ == "__main__":
    main(sys.argv[1])
