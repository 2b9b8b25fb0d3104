"""What the compiler says of our steps, beside bare steps of the same networks in plain Flax Linen; no device needed.

    python scripts/bench_compile.py --models vit_small_patch16_224 resnet50 [--targets v5e:2x2 h100 ...] [--json FILE]

Needs the extra `.[tpu]`, or `.[cuda]` for `h100`, `a100`, `h200`. Every model is compiled for each kind of work (train:
the step of a run without augmentation; embed; forward: to logits) and each target, in bfloat16. The figures are the
compiler's own, of one chip: cycles (of TPUs: the sum of its estimates, loops as often as they run), bytes touched,
temporary memory, kernels that are started. They do not depend on this machine. `--depth 2` keeps two blocks (of each
stage), which compiles in a fraction of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import types
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}

import jax
import jax.numpy as jnp
import numpy as np
from bench_bare import BARE

from jaxtrain import Config, PTClassifier
from jaxtrain.backend import compiling_for
from jaxtrain.data.base import ArraySource, Dataset
from jaxtrain.models import registry
from jaxtrain.runs.program import Program
from jaxtrain.runs.resolve import resolve
from jaxtrain.training.chips import Target, target
from jaxtrain.training.compiled import Compiled, executed
from jaxtrain.training.parallel import JitStrategy
from jaxtrain.training.state import Batch
from jaxtrain.training.technique import Binding

CLASSES, IMAGES = 1000, 1_281_167
KERNEL = re.compile(r" (fusion|custom-call|copy|reduce|sort|convolution|dot|scatter|all-[a-z-]+)\(")


def main() -> None:
    """Compile, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_small_patch16_224", "resnet50"])
    parser.add_argument("--targets", nargs="+", default=["v5e:2x2"])
    parser.add_argument("--work", nargs="+", choices=("train", "embed", "forward"), default=["train"])
    parser.add_argument("--batch", type=int, default=128, help="images on each chip")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--no-bare", action="store_true", help="without the bare steps")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("OPTION", "VALUE"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--hlo", type=Path, help="folder for the compiled programs as text")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.targets:
        where = target(name, "--targets")
        with compiling_for(where.platform):
            for row in compare(where, arguments):
                rows.append({**row, "target": name})
                print(line(rows[-1]), flush=True)
    if arguments.json:
        installed = {each.name for each in distributions()}
        versions = {name: version(name) for name in ("jax", "flax", "libtpu", "jax-cuda13-plugin") if name in installed}
        arguments.json.write_text(json.dumps({"versions": versions, "rows": rows}, indent=2))


def compare(where: Target, arguments: Any) -> Iterator[dict[str, Any]]:
    """Every model and kind of work on some chips."""
    strategy = JitStrategy(where.devices())
    for name in arguments.models:
        if arguments.depth:
            shorten(name, arguments.depth)
        for work in arguments.work:
            function, given = ours(name, work, strategy, arguments)
            row = {"model": name, "work": work, **compiled(function, given, where, arguments, "ours"), "bare": None}
            family = registry.model_spec(name).family
            if work == "train" and family in BARE and not arguments.no_bare:
                row["bare"] = compiled(*bare(name, strategy, given[1]), where, arguments, "bare")
            yield row


def line(row: dict[str, Any]) -> str:
    """A row of the table."""

    def figures(row: dict[str, Any]) -> str:
        taken = f"{row['cycles'] / 1e6:7.1f} M cycles" if row["cycles"] else f"{row['kernels']:6,} kernels"
        return f"{taken} {row['bytes'] / 1e9:6.1f} GB {row['temp_bytes'] / 2**30:5.2f} GiB"

    text = f"{row['model']:24} {row['work']:8} {row['target']:8} {figures(row)}"
    if bare := row["bare"]:
        ratios = (
            f"{row[name] / bare[name]:.2f} of its {name}" for name in ("cycles", "kernels", "bytes") if bare[name]
        )
        text += f"   bare {figures(bare)}   {', '.join(ratios)}"
    return text


def shorten(name: str, depth: int) -> None:
    """Give the registered model at most this many blocks in each stage."""
    spec = registry.model_spec(name)
    kwargs = dict(spec.kwargs)
    if "depths" in kwargs:
        kwargs["depths"] = tuple(min(blocks, depth) for blocks in kwargs["depths"])
    elif spec.family in ("vit", "eva"):
        kwargs["depth"] = depth
    registry._MODELS[name] = replace(spec, kwargs=types.MappingProxyType(kwargs))


def ours(name: str, work: str, strategy: JitStrategy, arguments: Any) -> tuple[Any, tuple[Any, ...]]:
    """The compiled-to-be function of a run, and shapes of what it is given."""
    size, batch = arguments.size, arguments.batch * len(strategy.devices)
    options: dict[str, Any] = {
        "model.name": name, "model.dtype": "bfloat16", "data.image_size": size, "data.channels": 3, "quiet": True,
        "train.steps": 100_000, "train.batch_size": batch, "augment.policy": "none",
        "optimizer.name": "sgd" if "resnet" in name else "adamw",
    }  # fmt: skip
    options |= {option: json.loads(value) for option, value in arguments.set}

    class Many(ArraySource):
        def __len__(self) -> int:
            return IMAGES

    source = Many(np.zeros((128, 8, 8, 3), np.uint8), np.zeros(128, np.int32))
    names = tuple(map(str, range(CLASSES)))
    dataset = Dataset("many", names, source, None, lambda: source, 3, (size, size))
    config = resolve(Config().replace(**options), dataset)
    technique = PTClassifier(config).bind(config, Binding(CLASSES, None, cropped=True, training=True))
    program = Program(technique, IMAGES, strategy)
    given = Batch(strategy.shaped_rows((batch, size, size, 3), jnp.uint8), strategy.shaped_rows((batch,), jnp.int32))
    if work == "train":
        return strategy.compile_steps(program.step), (strategy.shaped(jax.eval_shape(program.initial_state, {})), given)
    output = {"embed": "embed", "forward": "logits"}[work]
    return program.inference.compiled(output), (strategy.shaped(program.inference.network.shapes), given)


def bare(name: str, strategy: JitStrategy, given: Batch) -> tuple[Any, tuple[Any, ...]]:
    """The bare step of that network, and shapes of what it is given."""
    spec = registry.model_spec(name)
    initial, step = BARE[spec.family](CLASSES, **spec.kwargs)
    state = jax.eval_shape(initial, jax.ShapeDtypeStruct((1, *given.image.shape[1:]), jnp.float32))
    return strategy.compile_steps(step), (strategy.shaped(state), given.image, given.label)


def compiled(function: Any, given: tuple[Any, ...], where: Target, arguments: Any, label: str) -> dict[str, Any]:
    """The compiler's figures."""
    executable = function.lower(*given).compile(where.compiler_options)
    text, memory, found = executable.as_text(), executable.memory_analysis(), Compiled.of(executable)
    if arguments.hlo:
        arguments.hlo.mkdir(parents=True, exist_ok=True)
        (arguments.hlo / f"{label}.txt").write_text(text)
    operations = list(executed(text))
    return {
        "cycles": found.cycles,
        "kernels": sum(times for operation, times in operations if KERNEL.search(operation)),
        "bytes": found.touched,
        "temp_bytes": found.temporary,
        "argument_bytes": memory.argument_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "collectives": sum(number for number, _ in found.collectives.values()),
        "host_transfers": sum(
            1 for operation, _ in operations if re.search(r"\b(infeed|outfeed|send|recv)\(", operation)
        ),
    }


if __name__ == "__main__":
    main()
