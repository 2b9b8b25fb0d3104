"""Accelerators that programs can be compiled for without having one, and what they can do.

Figures of the chips are Google's (cloud.google.com/tpu/docs/system-architecture); clocks follow from them: peak FLOPs
per second over those of all matrix units in one cycle.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import ClassVar

import jax

from jaxtrain.errors import UserError, nearest


@dataclass(frozen=True)
class Chip:
    """One kind of chip."""

    tflops: float
    """Peak of bfloat16 products."""
    gb_per_second: float
    """Of its memory."""
    gibibytes: float
    """Of its memory."""
    ghz: float
    cores: int
    """By which Google counts in names such as v4-8; 1 where it counts chips."""
    shapes: tuple[str, ...]
    """Topologies that can be had."""


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
CHIPS = {
    "v4": Chip(275, 1228, 32, 1.05, 2, _CUBES),
    "v5e": Chip(197, 819, 16, 1.5, 1, _FLAT),
    "v5p": Chip(459, 2765, 95, 1.75, 2, _CUBES),
    "v6e": Chip(918, 1640, 32, 1.75, 1, _FLAT),
}

PEAK_TFLOPS = {
    **{"TPU v2": 22.5, "TPU v3": 61.5},  # a core, which is what JAX calls a device there
    **{"TPU v4": CHIPS["v4"].tflops, "TPU v5 lite": CHIPS["v5e"].tflops, "TPU v5": CHIPS["v5p"].tflops},
    **{"TPU v5p": CHIPS["v5p"].tflops, "TPU v6 lite": CHIPS["v6e"].tflops, "TPU v6e": CHIPS["v6e"].tflops},
    **{"NVIDIA A100": 312, "NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H100 PCIe": 756, "NVIDIA H100 NVL": 835},
    **{"NVIDIA H200": 989.4, "NVIDIA GH200": 989.4, "NVIDIA B200": 2250, "NVIDIA L4": 121, "NVIDIA L40S": 362},
}
"""Peak of dense bfloat16 products by the beginning of JAX's `device_kind`, from Google and NVIDIA's data sheets."""


def peak_flops(device_kind: str) -> float | None:
    """FLOPs per second of a device in bfloat16; None for one that is not known, such as a CPU or a part of a GPU."""
    known = [name for name in PEAK_TFLOPS if re.match(rf"{re.escape(name)}(?!\w)", device_kind)]
    return None if not known or "MIG" in device_kind else PEAK_TFLOPS[max(known, key=len)] * 1e12


@dataclass(frozen=True)
class Target:
    """Some chips of one kind, as they are connected."""

    kind: str
    shape: str
    platform: ClassVar[str] = "tpu"

    @property
    def chip(self) -> Chip:
        """What each can do."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """How many."""
        return _chips(self.shape)

    def devices(self) -> list[jax.Device]:
        """To compile for; they cannot run anything. Raises UserError without the compiler."""
        if importlib.util.find_spec("libtpu") is None:
            raise UserError("compiling for TPUs needs libtpu: pip install 'jaxtrain[tpu]' (no TPU is needed)")
        # It would look for a TPU otherwise, and two processes could not compile at a time.
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        from jax.experimental import topologies

        options = {"chips_per_host_bounds": (1, 1, 1)} if self.shape == "1x1" else {}
        found = topologies.get_topology_desc(topology_name=f"{self.kind}:{self.shape}", platform="tpu", **options)
        return list(found.devices)


def target(name: str) -> Target:
    """`v5e-16`, `v5e:4x4`, `v4-8` (which counts cores, as Google does). Raises UserError naming the nearest one.

    >>> target("v5e-16")
    Target(kind='v5e', shape='4x4')
    """
    names = {f"{kind}:{shape}": Target(kind, shape) for kind, chip in CHIPS.items() for shape in chip.shapes}
    counted = {f"{each.kind}-{_chips(each.shape) * each.chip.cores}": each for each in names.values()}
    known = counted | names
    if name in known:
        return known[name]
    kind, _, size = name.partition("-")
    if kind in CHIPS and size.isdigit():
        sizes = [int(each.partition("-")[2]) for each in counted if each.startswith(f"{kind}-")]
        near = f"{kind}-{min(sizes, key=lambda each: (abs(each - int(size)), each))}"
        raise UserError(f"--for: there is no {name}; nearest: {near}")
    raise UserError(f"--for: there is no {name}; {nearest(name, list(known))}")


def _chips(shape: str) -> int:
    product = 1
    for side in re.findall(r"\d+", shape):
        product *= int(side)
    return product
