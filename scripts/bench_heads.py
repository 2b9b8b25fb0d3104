"""Speed of the linear head: many weight decays in one program, against one by one and against scikit-learn.

    python scripts/bench_heads.py [--labels N] [--npz FILE] [--json FILE]

The vectors are made up, correlated and ReLU-like with class structure, or `x` and `y` of a file. scikit-learn has the
loosest of its tolerances that brings it within 0.1% of the optimum. Rounds are interleaved: a busy machine slows
all alike; medians of CPU time, with the smallest and largest round. Compilation is apart. Fits one by one and those of
scikit-learn are timed for every `--every`-th setting and count for all; `--every 1` times each.

`--labels N` asks the same of N labels per image, against `OneVsRestClassifier(LogisticRegression)`.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from jaxtrain.config import HeadConfig
from jaxtrain.heads import FittedHead, Vectors, fit_head
from jaxtrain.heads.several import linear_layer


def embeddings(images: int, features: int, classes: int) -> Vectors:
    """float32[images, features] and int32[images]: sub-clusters of classes in 128 directions, mixed, through a ReLU."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, classes, images)
    centres = 0.3 * (generator.standard_normal((classes, 3, 128)) + generator.standard_normal((classes, 1, 128)))
    spread = (1.0 + np.arange(128)) ** -0.5
    z = (centres[y, generator.integers(0, 3, images)] + generator.standard_normal((images, 128))) * spread
    x = z @ generator.standard_normal((128, features)) / np.sqrt((spread**2).sum())
    x += 0.15 * generator.standard_normal((images, features)) + 0.3 * generator.standard_normal(features) - 0.3
    return Vectors((np.maximum(x, 0) * np.exp(0.5 * generator.standard_normal(features))).astype("f"), y.astype("i"))


def labels(x: np.ndarray, count: int) -> np.ndarray:
    """int8[images, count]: noisy linear functions of the vectors above a threshold; 2% to 40% of the images."""
    generator = np.random.default_rng(1)
    scores = (x - x.mean(0)) / (x.std(0) + 1e-6) @ generator.standard_normal((x.shape[1], count))
    scores = scores / scores.std(0) + 0.5 * generator.standard_normal(scores.shape)
    shares = np.geomspace(0.02, 0.4, count)
    return (scores > [np.quantile(column, 1 - share) for column, share in zip(scores.T, shares, strict=True)]).astype(
        "b"
    )


def objective(kernel: np.ndarray, bias: np.ndarray, data: Vectors, decay: float) -> float:
    """Penalised training loss in float64."""
    logits = data.x.astype(np.float64) @ kernel + bias
    loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), data.y]
    return float(loss.mean() + decay / 2 * (kernel**2).sum())


class Bench:
    """Fits of the same settings by each side."""

    within = 1e-3
    """Of the optimum, as a share of it: what scikit-learn's tolerance has to reach."""

    def __init__(self, train: Vectors, test: Vectors, decays: tuple[float, ...]) -> None:
        self.train, self.test, self.decays = train, test, decays
        self.classes = int(train.y.max()) + 1
        self.tolerance = dict.fromkeys(decays, 1e-4)

    def ours(self, decays: tuple[float, ...]) -> FittedHead:
        """All settings in one program."""
        config = HeadConfig(solver="lbfgs", weight_decay=decays, scaling=("none",))
        return fit_head(config, self.train, self.test, num_classes=self.classes)

    def estimator(self, **options: float) -> ClassifierMixin:
        """scikit-learn's."""
        return LogisticRegression(**options)

    def theirs(self, decay: float) -> ClassifierMixin:
        """One setting by scikit-learn."""
        penalty = 1 / (decay * len(self.train.x))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator = self.estimator(C=penalty, tol=self.tolerance[decay], max_iter=10000)
            return estimator.fit(self.train.x, self.train.y)

    def our_losses(self, head: FittedHead, decay: float) -> np.ndarray:
        """Objectives at what we found, float64[1] or float64[labels]."""
        kernel = head.arrays["kernel"].astype(np.float64)
        return np.array([objective(kernel, head.arrays["bias"] - head.arrays["mean"] @ kernel, self.train, decay)])

    def their_losses(self, other: ClassifierMixin, decay: float) -> np.ndarray:
        """The same of scikit-learn's."""
        return np.array([objective(other.coef_.T.astype(np.float64), other.intercept_, self.train, decay)])

    def right(self, decided: np.ndarray) -> float:
        """Share of right answers on test vectors."""
        return float((decided == self.test.y).mean())

    def compare(self, decay: float) -> dict[str, float]:
        """Optima of one setting by both sides, scikit-learn's tolerance being made fit."""
        head = self.ours((decay,))
        loss = self.our_losses(head, decay)
        while True:
            other = self.theirs(decay)
            their_loss = self.their_losses(other, decay)
            if (their_loss <= loss * (1 + self.within)).all() or self.tolerance[decay] < 1e-7:
                break
            self.tolerance[decay] /= 10
        ours, theirs = self.right(self.decided(head)), self.right(other.predict(self.test.x))
        worst = float((loss / their_loss).max())
        figures = {"tolerance": self.tolerance[decay], "loss_ratio": worst, "accuracy": ours}
        return {"weight_decay": decay, **figures, "accuracy_difference": ours - theirs}

    def decided(self, head: FittedHead) -> np.ndarray:
        """Our answers to the test vectors."""
        return head.logits(self.test.x).argmax(1)


class LabelBench(Bench):
    """Several labels per image."""

    within = 1e-4

    def __init__(self, train: Vectors, test: Vectors, decays: tuple[float, ...]) -> None:
        super().__init__(train, test, decays)
        self.classes = train.y.shape[1]

    def estimator(self, **options: float) -> ClassifierMixin:
        """scikit-learn's."""
        return OneVsRestClassifier(LogisticRegression(**options))

    def our_losses(self, head: FittedHead, decay: float) -> np.ndarray:
        """Of each label."""
        return self.losses(*(array.astype(np.float64) for array in linear_layer(head)), decay)

    def their_losses(self, other: ClassifierMixin, decay: float) -> np.ndarray:
        """Of each label."""
        kernel = np.stack([one.coef_[0] for one in other.estimators_], axis=1).astype(np.float64)
        return self.losses(kernel, np.array([one.intercept_[0] for one in other.estimators_]), decay)

    def losses(self, kernel: np.ndarray, bias: np.ndarray, decay: float) -> np.ndarray:
        """Penalised binary cross-entropy of each label in float64."""
        logits = self.train.x.astype(np.float64) @ kernel + bias
        loss = np.logaddexp(0, logits) - logits * self.train.y
        return loss.mean(axis=0) + decay / 2 * (kernel**2).sum(axis=0)

    def decided(self, head: FittedHead) -> np.ndarray:
        """Our answers to the test vectors."""
        return head.logits(self.test.x) > 0


def seconds(function: Callable[..., object], *arguments: object) -> float:
    """CPU time of a call, in all threads."""
    started = time.process_time()
    function(*arguments)
    return time.process_time() - started


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npz", type=Path, help="x float32[images, features] and y int32[images]")
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--labels", type=int, help="several labels per image, this many")
    parser.add_argument("--settings", type=int, default=64)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.npz:
        with np.load(arguments.npz, allow_pickle=False) as file:
            x, y = file["x"].astype(np.float32), file["y"].astype(np.int32)
    else:
        x, y, _ = embeddings(arguments.images * 6 // 5, arguments.features, arguments.classes)
    if arguments.labels:
        y = labels(x, arguments.labels)
    last = len(x) * 5 // 6
    decays = tuple(np.geomspace(1e-6, 10, arguments.settings).tolist())
    kind = LabelBench if arguments.labels else Bench
    bench = kind(Vectors(x[:last], y[:last]), Vectors(x[last:], y[last:]), decays)
    some = decays[arguments.every // 2 :: arguments.every]
    first = {"grid": seconds(bench.ours, decays), "one": seconds(bench.ours, decays[:1])}
    grid = bench.ours(decays)
    optima = [bench.compare(decay) for decay in some]
    rounds: dict[str, list[float]] = {"grid": [], "one by one": [], "scikit-learn": []}
    for _ in range(arguments.rounds):
        rounds["grid"].append(seconds(bench.ours, decays))
        scale = len(decays) / len(some)
        rounds["one by one"].append(scale * sum(seconds(bench.ours, (decay,)) for decay in some))
        rounds["scikit-learn"].append(scale * sum(seconds(bench.theirs, decay) for decay in some))
    print(
        f"{last} x {x.shape[1]}, {bench.classes} {'labels' if arguments.labels else 'classes'}, {len(decays)} settings"
    )
    for name, values in rounds.items():
        ratio = median(b / a for a, b in zip(rounds["grid"], values, strict=True))
        print(f"{name:14}{median(values):9.2f} s  ({min(values):.2f} .. {max(values):.2f}) {ratio:7.1f} x grid")
    print(f"first call, compilation included: grid {first['grid']:.1f} s, one {first['one']:.1f} s")
    iterations = [entry["iterations"] for entry in grid.curve]
    print(f"iterations: {max(iterations)} at most, {sum(iterations) / len(iterations):.1f} on average")
    print(f"loss over scikit-learn's: {max(one['loss_ratio'] for one in optima) - 1:+.1e} at most")
    print(f"accuracy less scikit-learn's: {min(one['accuracy_difference'] for one in optima):+.4f} at least")
    if arguments.json:
        result = {"seconds": rounds, "first_call_seconds": first, "optima": optima, "iterations": iterations}
        arguments.json.write_text(json.dumps({**result, "python": sys.version}, indent=2))


if __name__ == "__main__":
    main()
