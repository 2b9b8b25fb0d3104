"""Speed of the training loop against a bare loop over the same step, Keras and Lightning; figures are ratios.

    python scripts/bench.py [--peer-python PATH] [--cpu-devices N] [--models NAME ...] [--json FILE]

Rounds are interleaved, so that a busy machine slows all alike; medians, with the smallest and largest round. Ours runs
with logging, MLflow, checkpoints, validation (5% of the images) and input on; compilation is apart. On an accelerator
also: several steps per call against one batch per call from the host. "- validation" is the rounds without the time
that validating took, which a bare loop does not do. Each round is an epoch with one validation and one save, so short
rounds overstate what these cost. Input: see bench_input.py.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import jax
from bench_loop import Bench

PEERS = {"cnn_small": "keras-cnn", "linear": "lightning-linear"}


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="an interpreter with keras, jax, torch and lightning")
    parser.add_argument("--models", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--cpu-devices", type=int, help="as parallel.cpu_devices")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cnn-steps", type=int, default=200)
    parser.add_argument("--linear-steps", type=int, default=10000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.cpu_devices:
        jax.config.update("jax_num_cpu_devices", arguments.cpu_devices)
    times: dict[str, list[float]] = {}
    steps = {"cnn_small": arguments.cnn_steps, "linear": arguments.linear_steps}
    benches = {name: Bench(name, steps[name]) for name in arguments.models}
    for _ in range(arguments.rounds):
        for name, bench in benches.items():
            for variant, milliseconds in bench.round().items():
                times.setdefault(f"{name} {variant}", []).append(milliseconds)
            if arguments.peer_python:
                script = str(Path(__file__).with_name("bench_peers.py"))
                command = [arguments.peer_python, script, PEERS[name], str(min(steps[name], 500)), "1"]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                times.setdefault(f"{name} {PEERS[name]}", []).extend(json.loads(output.splitlines()[-1]))
    for bench in benches.values():
        bench.close()
    for name, values in times.items():
        model = name.split()[0]
        ratio = median(values) / median(times[f"{model} bare"])
        spread = f"{min(values):.3f} .. {max(values):.3f}"
        print(f"{name:28} {median(values):9.3f} ms per step  ({spread})  {ratio:6.2f} x bare")
    if arguments.json:
        arguments.json.write_text(json.dumps({"milliseconds_a_step": times, "python": sys.version}, indent=2))


if __name__ == "__main__":
    main()
