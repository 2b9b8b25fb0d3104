"""What the TPU compiler says of our steps, beside bare steps of the same networks in plain Flax Linen; no TPU needed.

    python scripts/bench_compile.py --models vit_small_patch16_224 resnet50 [--targets v5e:2x2 ...] [--json FILE]

Needs the extra `.[tpu]`. Every model is compiled for each kind of work (train: the step of a run without augmentation;
embed; forward: to logits) and each topology, in bfloat16. The figures are the compiler's own: cycles (the sum of its
estimates, loops as often as they run), bytes touched, temporary memory of one chip. They do not depend on this machine.
`--depth 2` keeps so many blocks (of each stage), which compiles in a fraction of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import jax.numpy as jnp
import numpy as np
from bench_bare import BARE
from jax.experimental import topologies

from jaxtrain import Config, PTClassifier
from jaxtrain.data.base import ArraySource, Dataset
from jaxtrain.models import registry
from jaxtrain.runs.program import Program
from jaxtrain.runs.resolve import resolve
from jaxtrain.training.parallel import JitStrategy
from jaxtrain.training.state import Batch
from jaxtrain.training.technique import Binding

CLASSES, IMAGES = 1000, 1_281_167


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
    jax.default_backend = lambda: "tpu"  # networks ask for it while they are traced
    rows = []
    for target in arguments.targets:
        devices = list(topologies.get_topology_desc(topology_name=target, platform="tpu").devices)
        strategy = JitStrategy(devices)
        for name in arguments.models:
            if arguments.depth:
                shorten(name, arguments.depth)
            for work in arguments.work:
                function, given = ours(name, work, strategy, arguments)
                row = {"model": name, "work": work, "target": target, **compiled(function, given, arguments, "ours")}
                family = registry.model_spec(name).family
                row["bare"] = None
                if work == "train" and family in BARE and not arguments.no_bare:
                    row["bare"] = compiled(*bare(name, strategy, given[1]), arguments, "bare")
                rows.append(row)
                print(line(row), flush=True)
    if arguments.json:
        versions = {name: version(name) for name in ("jax", "libtpu", "flax")}
        arguments.json.write_text(json.dumps({"versions": versions, "rows": rows}, indent=2))


def line(row: dict[str, Any]) -> str:
    """A row of the table."""

    def figures(row: dict[str, Any]) -> str:
        return f"{row['cycles'] / 1e6:7.1f} M cycles {row['bytes'] / 1e9:6.1f} GB {row['temp_bytes'] / 2**30:5.2f} GiB"

    text = f"{row['model']:24} {row['work']:8} {row['target']:8} {figures(row)}"
    if row["bare"]:
        text += f"   bare {figures(row['bare'])}   {row['cycles'] / row['bare']['cycles']:.2f}"
    return text


def shorten(name: str, depth: int) -> None:
    """Give the registered model at most so many blocks in each stage."""
    spec = registry.model_spec(name)
    kwargs = dict(spec.kwargs)
    if "depths" in kwargs:
        kwargs["depths"] = tuple(min(blocks, depth) for blocks in kwargs["depths"])
    elif spec.family == "vit":
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
    given = Batch(rows((batch, size, size, 3), jnp.uint8, strategy), rows((batch,), jnp.int32, strategy))
    if work == "train":
        return strategy.compile_steps(program.step), (placed(program._initial_state, strategy, {}), given)
    output = {"embed": "embed", "forward": "logits"}[work]
    weights = jax.tree.map(lambda leaf: whole(leaf, strategy), program.inference.network.shapes)
    return program.inference.compiled(output), (weights, given)


def bare(name: str, strategy: JitStrategy, given: Batch) -> tuple[Any, tuple[Any, ...]]:
    """The bare step of that network, and shapes of what it is given."""
    spec = registry.model_spec(name)
    initial, step = BARE[spec.family](CLASSES, **spec.kwargs)
    state = placed(initial, strategy, jax.ShapeDtypeStruct((1, *given.image.shape[1:]), jnp.float32))
    return strategy.compile_steps(step), (state, given.image, given.label)


def rows(shape: tuple[int, ...], dtype: Any, strategy: JitStrategy) -> jax.ShapeDtypeStruct:
    """A batch over the chips."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=strategy._rows)


def whole(leaf: Any, strategy: JitStrategy) -> jax.ShapeDtypeStruct:
    """An array on every chip."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=strategy._whole)


def placed(initial: Callable[..., Any], strategy: JitStrategy, *given: Any) -> Any:
    """Shapes of an initial state on every chip."""
    return jax.tree.map(lambda leaf: whole(leaf, strategy), jax.eval_shape(initial, *given))


def compiled(function: Any, given: tuple[Any, ...], arguments: Any, label: str) -> dict[str, Any]:
    """The compiler's figures."""
    executable = function.lower(*given).compile()
    text, memory, cost = executable.as_text(), executable.memory_analysis(), executable.cost_analysis()
    if arguments.hlo:
        arguments.hlo.mkdir(parents=True, exist_ok=True)
        (arguments.hlo / f"{label}.txt").write_text(text)
    operations = list(executed(text))
    return {
        "cycles": sum(cycles(operation) * times for operation, times in operations),
        "bytes": cost["bytes accessed"],
        "flops": cost["flops"],
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "collectives": sum(times for operation, times in operations if COLLECTIVE.search(operation)),
        "host_transfers": sum(
            1 for operation, _ in operations if re.search(r"\b(infeed|outfeed|send|recv)\(", operation)
        ),
    }


COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(")


def cycles(operation: str) -> int:
    """The compiler's estimate; 0 where it has none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', operation)
    return int(found[1]) if found else 0


def executed(text: str) -> Iterator[tuple[str, int]]:
    """(operation, how often it runs): loops are entered, fusions are not."""
    bodies: dict[str, list[str]] = {}
    entry = current = ""
    for each in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", each)
        if head:
            current = head[2]
            bodies[current] = []
            entry = current if head[1] else entry
        elif " = " in each and each[:1].isspace():
            bodies[current].append(each.strip())

    def walk(name: str, times: int) -> Iterator[tuple[str, int]]:
        for operation in bodies.get(name, ()):
            yield operation, times
            inside: list[str] = []
            count = 1
            if " while(" in operation:
                known = re.search(r'"known_trip_count":\{"n":"(\d+)"', operation)
                count = int(known[1]) if known else 1
                inside = re.findall(r"(?:body|condition)=%?([\w.\-]+)", operation)
            elif " call(" in operation:
                inside = re.findall(r"to_apply=%?([\w.\-]+)", operation)
            elif " conditional(" in operation:
                inside = re.findall(
                    r"%?([\w.\-]+)", (re.search(r"branch_computations=\{([^}]*)", operation) or [""])[-1]
                )
            elif " async-start(" in operation:
                inside = re.findall(r"calls=%?([\w.\-]+)", operation)
            for body in inside:
                yield from walk(body, times * count)

    return walk(entry, 1)


if __name__ == "__main__":
    main()
