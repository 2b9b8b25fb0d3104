"""What the compiler says of a program: memory, work, cycles, and what goes between devices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax

COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")


_OPERATION = re.compile(r"(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<type>.*?) (?P<kind>[a-z][\w\-]*)\((?P<given>[^)]*)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_PARTIAL = ("gather", "dynamic-slice", "slice")
"""Operations that read a part of their first operand."""
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call", "conditional"),
    *("all-reduce-done", "all-gather-done", "copy-done", "async-start", "async-update", "async-done"),
)
"""Operations that move nothing, or whose bodies count."""

_KERNEL = re.compile(r'"cost_estimate":\{"flops":"(\d+)","transcendentals":"\d+","bytes_accessed":"(\d+)"')
_VECTOR_FLOPS = 3300
"""Of a TPU's vector unit in a cycle: four operations on 1,024 values, of which the compiler's schedule of
`depthwise_tpu` reaches 0.81."""
_BYTES = 222
"""In a cycle, by the estimates that the compiler makes of copies on v5e."""


@dataclass(frozen=True)
class Compiled:
    """Figures of one device."""

    memory: int
    """Bytes that it needs at once: arguments, results and what lies between, once where they share it."""
    temporary: int
    """Bytes of those that are neither arguments nor results: activations."""
    touched: float
    """Bytes that its operations read and write."""
    cycles: int
    """The TPU compiler's estimate; 0 from others."""
    collectives: dict[str, tuple[int, int]] = field(default_factory=dict)
    """How often each kind runs, and the bytes of its results."""

    @classmethod
    def of(cls, executable: Any) -> Compiled:
        """From what `jax.stages.Lowered.compile` returns."""
        memory, text = executable.memory_analysis(), executable.as_text()
        cost = executable.cost_analysis() or {}  # of GPUs that are not there it is None
        need = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        collectives: dict[str, tuple[int, int]] = {}
        total = 0
        for operation, times in executed(text):
            total += cycles(operation) * times
            if found := COLLECTIVE.search(operation):
                number, size = collectives.get(found[1], (0, 0))
                collectives[found[1]] = number + times, size + times * _bytes(operation[: found.start()])
        return cls(
            memory=need - memory.alias_size_in_bytes,
            temporary=memory.temp_size_in_bytes,
            touched=float(cost["bytes accessed"]) if "bytes accessed" in cost else float(touched(text)),
            cycles=total,
            collectives=collectives,
        )


def flops(function: Callable[..., Any], *given: Any) -> float:
    """Floating-point operations of one call on arrays of these shapes, all devices together.

    The compiler's count before it optimises: afterwards it does not see into a GPU's libraries, and of loops it counts
    one round either way. Raises RuntimeError where JAX may not use the CPU (JAX_PLATFORMS), which counts.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        cost: Any = jax.jit(function).lower(*given).cost_analysis()
        return float(cost["flops"])


def touched(text: str) -> int:
    """Bytes that the operations of a compiled program read and write; of what is gathered from, what is taken."""
    bodies, _ = _bodies(text)
    sizes: dict[str, int] = {}
    parsed: dict[str, re.Match[str]] = {}
    for operation in (each for body in bodies.values() for each in body):
        if found := _OPERATION.match(operation):
            sizes[found["name"]], parsed[operation] = _bytes(found["type"]), found

    def taken(body: list[str], name: str) -> int | None:
        """Bytes that are gathered from an array in a fusion; None where it is read whole."""
        readers = [parsed[each] for each in body if each in parsed and name in _NAME.findall(parsed[each]["given"])]
        part = all(each["kind"] in _PARTIAL and _NAME.findall(each["given"])[0] == name for each in readers)
        return sum(sizes[each["name"]] for each in readers) if part else None

    def read(operation: str, found: re.Match[str]) -> int:
        given = _NAME.findall(found["given"])
        if found["kind"] in _PARTIAL:
            return sizes[found["name"]] + sum(sizes.get(name, 0) for name in given[1:])
        called = re.search(r"calls=%?([\w.\-]+)", operation) if found["kind"] == "fusion" else None
        body = bodies.get(called[1], []) if called else []
        inside = {m[2]: m[1] for each in body if (m := re.match(r"%([\w.\-]+) = .* parameter\((\d+)\)", each))}
        parts = [taken(body, inside[str(i)]) if str(i) in inside else None for i in range(len(given))]
        return sum(sizes.get(name, 0) if part is None else part for name, part in zip(given, parts, strict=True))

    moved = ((each, parsed[each], times) for each, times in executed(text) if each in parsed)
    return sum(
        times * (sizes[found["name"]] + read(each, found)) for each, found, times in moved if found["kind"] not in _FREE
    )


def _bytes(types: str) -> int:
    """Of the arrays that `types` names, such as `(f32[2,3], bf16[4])`."""
    total = 0
    for kind, bits, sides in _ARRAY.findall(types):
        count = 1
        for side in filter(None, sides.split(",")):
            count *= int(side)
        total += count * (1 if kind == "pred" else max(int(bits) // 8, 1))
    return total


def cycles(operation: str) -> int:
    """The TPU compiler's estimate, for a kernel of ours that from its work and bytes; 0 where there is neither."""
    if found := re.search(r'"estimated_cycles":"(\d+)"', operation):
        return int(found[1])
    if found := _KERNEL.search(operation):
        return max(int(found[1]) // _VECTOR_FLOPS, int(found[2]) // _BYTES)
    return 0


def executed(text: str) -> Iterator[tuple[str, int]]:
    """(operation, how often it runs): loops are entered, fusions are not."""
    bodies, entry = _bodies(text)

    def walk(name: str, times: int) -> Iterator[tuple[str, int]]:
        for operation in bodies.get(name, ()):
            yield operation, times
            inside: list[str] = []
            count = 1
            if " while(" in operation:
                count = _rounds(operation, bodies)
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


def _rounds(loop: str, bodies: dict[str, list[str]]) -> int:
    """How often the body of a loop runs; once where that is not said, and does not follow from its condition."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop)
    body = bodies.get(condition[1], []) if condition else []
    limits = {m[1]: int(m[2]) for each in body if (m := re.match(r"%([\w.\-]+) = s32\[\]\S* constant\((\d+)\)", each))}
    for each in body:
        if found := re.search(r" compare\(%[\w.\-]+, %([\w.\-]+)\), direction=LT", each):
            return limits.get(found[1], 1)
    return 1


def _bodies(text: str) -> tuple[dict[str, list[str]], str]:
    """The operations of each computation by its name, and the name of the one that is run."""
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
    return bodies, entry
