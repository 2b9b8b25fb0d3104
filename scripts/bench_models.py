"""Train steps and embedding passes of our networks against the same networks of timm in PyTorch, on CPU.

    python scripts/bench_models.py --peer-python PATH [--models NAME ...] [--sizes PIXELS ...] [--batch N]
        [--work train embed] [--rounds N] [--json FILE]

Float32; a train step is forward, backward and AdamW on a batch that lies ready. Each round times both in turn, so that
a busy machine slows both alike; medians. torch: the better of its two memory layouts.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

PEER = Path(__file__).with_name("bench_peers.py")
SECONDS = 1.0
"""Of each measurement, at least; one call more where that is less."""


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="an interpreter with torch and timm")
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64, 96])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--work", nargs="+", choices=("train", "embed"), default=["train", "embed"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = []
    for name in arguments.models:
        for size in arguments.sizes:
            for work in arguments.work:
                given = [name, str(arguments.batch), str(size), work]
                commands = {"jaxtrain": [sys.executable, __file__, "--ours", *given]}
                if arguments.peer_python:
                    for layout in ("channels-last", "channels-first"):
                        commands[f"torch {layout}"] = [arguments.peer_python, str(PEER), "timm", *given, layout]
                times = interleaved(commands, arguments.rounds, arguments.seconds)
                medians = {label: median(values) for label, values in times.items()}
                peers = [value for label, value in medians.items() if label != "jaxtrain"]
                ratio = f"{medians['jaxtrain'] / min(peers):6.2f} x torch" if peers else ""
                print(f"{name:24} {size:4} px {work:6}", *(f"{k} {v:.1f} ms " for k, v in medians.items()), ratio)
                found.append({"model": name, "size": size, "work": work, "batch": arguments.batch, "ms": times})
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


def interleaved(commands: dict[str, list[str]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds per call of each process in each round; a process measures once for each line it gets."""
    running = {
        label: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for label, command in commands.items()
    }
    times: dict[str, list[float]] = {label: [] for label in commands}
    for _ in range(rounds):
        for label, process in running.items():
            assert process.stdin is not None
            assert process.stdout is not None
            print(seconds, file=process.stdin, flush=True)
            times[label].append(float(process.stdout.readline()))
    for process in running.values():
        process.communicate()
    return times


def measure(call: Callable[[], Any]) -> None:
    """Time `call` for as many seconds as each line of standard input says."""
    for _ in range(2):
        call()
    for line in sys.stdin:
        start, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - start < float(line):
            call()
            calls += 1
        print((time.perf_counter() - start) / calls * 1e3, flush=True)


def ours(name: str, batch: int, size: int, work: str) -> Callable[[], Any]:
    """A train step, or an embedding pass, of a new network."""
    import jax
    import numpy as np
    import optax
    from flax import nnx

    from jaxtrain import create_model
    from jaxtrain.config import ParallelConfig
    from jaxtrain.training.network import Network
    from jaxtrain.training.parallel import make_strategy
    from jaxtrain.training.state import Batch
    from jaxtrain.training.step import train_step

    make_strategy(ParallelConfig())  # as a run does: it keeps freed memory
    images = np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)
    given = Batch(jax.device_put(images), jax.nn.one_hot(np.arange(batch) % 10, 10))

    def make() -> Any:
        return create_model(name, num_classes=10, image_size=size)

    # Under jit: made op by op, a network takes longer than all measurements.
    arrays = jax.jit(lambda: nnx.to_pure_dict(nnx.state(make())))()
    model = nnx.merge(nnx.graphdef(nnx.eval_shape(make)), arrays)
    if work == "train":
        step, state = train_step(model, optax.adamw(1e-4))
        compiled = jax.jit(step, donate_argnums=0)

        def call() -> None:
            nonlocal state
            state, metrics = compiled(state, given)
            jax.block_until_ready((state, metrics))

        return call
    network = Network(lambda: model, lambda path, value: False)
    weights = network.weights(model)
    embed = jax.jit(lambda weights, images: network.bind(*weights).embed(images))
    return lambda: jax.block_until_ready(embed(weights, given.image))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ours"]:
        measure(ours(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))
    else:
        main()
