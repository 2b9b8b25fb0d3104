"""Run on two virtual devices: networks of one's own end alike under every strategy, with dropout off."""

import sys

import numpy as np
from flax import linen, nnx
from sklearn.datasets import load_digits

from jaxtrain import PTClassifier
from tests.classifiers.own_networks import Documented, Linen


class Still(Documented):
    def __init__(self, num_classes, rngs):
        super().__init__(num_classes, rngs)
        self.drop = nnx.Dropout(0.0, rngs=rngs)


class StillLinen(linen.Module):
    num_classes: int

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.BatchNorm(use_running_average=not train)(linen.Conv(4, (3, 3))(x))
        return linen.Dense(self.num_classes)(linen.relu(x).reshape(len(x), -1))


def main(folder):
    bunch = load_digits()
    images, labels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:300], bunch.target[:300]
    for network in (Still, StillLinen):
        ends = {}
        for strategy, devices in (("jit", 1), ("jit", 2), ("pmap", 2), ("fsdp", 2)):
            model = PTClassifier(
                network=network, run_dir=f"{folder}/{network.__name__}-{strategy}-{devices}", quiet=True,
                train={"steps": 6, "batch_size": 32}, optimizer={"name": "sgd", "learning_rate": 0.01},
                augment={"policy": "none"}, tracking={"enabled": False},
                parallel={"cpu_devices": 2, "strategy": strategy, "devices": devices},
            )  # fmt: skip
            ends[strategy, devices] = model.fit(images, labels).predict_logits(images[:50])
        first = ends["jit", 1]
        for how, logits in ends.items():
            np.testing.assert_allclose(logits, first, atol=2e-3, err_msg=f"{network.__name__} {how}")
    dropped = PTClassifier(
        network=Linen, run_dir=f"{folder}/dropped", quiet=True, train={"steps": 2, "batch_size": 32},
        tracking={"enabled": False}, parallel={"cpu_devices": 2, "strategy": "pmap"},
    )  # fmt: skip
    dropped.fit(images, labels)


if __name__ == "__main__":
    main(sys.argv[1])
