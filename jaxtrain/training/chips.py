"""Accelerators that programs can be compiled for without having one, and what they can do.

Figures of TPUs are Google's (cloud.google.com/tpu/docs/system-architecture); clocks follow from them: peak FLOPs
per second over those of all matrix units in one cycle. Those of GPUs are from NVIDIA's data sheets and CUDA's limits.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from jaxtrain.errors import UserError, nearest


@dataclass(frozen=True)
class Chip:
    """One kind of chip."""

    tflops: float
    """Peak of dense bfloat16 products."""
    gb_per_second: float
    """Of its memory."""
    gibibytes: float
    """Of its memory."""
    ghz: float
    shapes: tuple[str, ...]
    """How many can be had, as they are connected; of GPUs 1 x hosts x GPUs of each."""
    cores: int = 1
    """By which Google counts in names such as v4-8; 1 where it counts chips."""
    gpu: str = ""
    """What XLA has to know of a GPU to compile for it, besides `_EVERY_GPU`; empty: it is a TPU."""

    @property
    def usable(self) -> float:
        """Bytes that a program may have: TPUs keep a little for their runtime, JAX takes 75% of a GPU unless told."""
        return self.gibibytes * 2**30 * (0.75 if self.gpu else 0.97)


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
_HOSTS = ("1x1x1", "1x1x2", "1x1x4", *(f"1x{hosts}x8" for hosts in (1, 2, 4, 8, 16, 32)))
_EVERY_GPU = """
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048 shared_memory_per_block: 49152
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
"""
_AMPERE = """
  cuda_compute_capability { major: 8 } core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41
  shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 l2_cache_size: 41943040
"""
_HOPPER = """
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 l2_cache_size: 52428800
"""
CHIPS = {
    "v4": Chip(275, 1228, 32, 1.05, _CUBES, cores=2),
    "v5e": Chip(197, 819, 16, 1.5, _FLAT),
    "v5p": Chip(459, 2765, 95, 1.75, _CUBES, cores=2),
    "v6e": Chip(918, 1640, 32, 1.75, _FLAT),
    "a100": Chip(312, 2039, 79.2, 1.41, _HOSTS, gpu=_AMPERE),  # of 80 GB
    "h100": Chip(989.4, 3352, 79.1, 1.98, _HOSTS, gpu=_HOPPER),  # SXM, as the next
    "h200": Chip(989.4, 4800, 141.0, 1.98, _HOSTS, gpu=_HOPPER),
}

PEAK_TFLOPS = {
    **{"TPU v2": 22.5, "TPU v3": 61.5},  # a core, which is what JAX calls a device there
    **{"TPU v4": CHIPS["v4"].tflops, "TPU v5 lite": CHIPS["v5e"].tflops, "TPU v5": CHIPS["v5p"].tflops},
    **{"TPU v5p": CHIPS["v5p"].tflops, "TPU v6 lite": CHIPS["v6e"].tflops, "TPU v6e": CHIPS["v6e"].tflops},
    **{"NVIDIA A100": CHIPS["a100"].tflops, "NVIDIA H100 80GB HBM3": CHIPS["h100"].tflops},
    **{"NVIDIA H100 PCIe": 756, "NVIDIA H100 NVL": 835},
    **{
        "NVIDIA H200": CHIPS["h200"].tflops,
        "NVIDIA GH200": 989.4,
        "NVIDIA B200": 2250,
        "NVIDIA L4": 121,
        "NVIDIA L40S": 362,
    },
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

    @property
    def chip(self) -> Chip:
        """What each can do."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """How many."""
        return _chips(self.shape)

    @property
    def platform(self) -> str:
        """As JAX calls it."""
        return "gpu" if self.chip.gpu else "tpu"

    @property
    def compiler_options(self) -> dict[str, Any]:
        """Kernels cannot be tried out on a GPU that is not there."""
        return {"xla_gpu_autotune_level": 0} if self.chip.gpu else {}

    def devices(self) -> list[jax.Device]:
        """To compile for; they cannot run anything. Raises UserError without the compiler."""
        from jax.experimental import topologies

        if self.chip.gpu:
            try:
                return list(topologies.get_topology_desc(self.shape, "cuda", **self._gpu_options()).devices)
            except NotImplementedError:  # JAX asked the driver before it could be told not to
                raise UserError("JAX found no CUDA: restart Python with JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1") from None
        if importlib.util.find_spec("libtpu") is None:
            raise UserError("compiling for TPUs needs libtpu: pip install 'jaxtrain[tpu]' (no TPU is needed)")
        # It would look for a TPU otherwise, and two processes could not compile at a time.
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        options = {"chips_per_host_bounds": (1, 1, 1)} if self.shape == "1x1" else {}
        found = topologies.get_topology_desc(topology_name=f"{self.kind}:{self.shape}", platform="tpu", **options)
        if len(found.devices) != self.chips:  # as JAX does not use them, and its meshes refuse
            near = f"v5p-{self.chips * self.chip.cores}"
            raise UserError(f"{self.kind}: this libtpu compiles for single cores, not for chips; nearest: {near}")
        return list(found.devices)

    def _gpu_options(self) -> dict[str, str]:
        if not any(importlib.util.find_spec(f"jax_cuda{major}_plugin") for major in (12, 13)):
            raise UserError(
                "compiling for GPUs needs JAX's CUDA plugin: pip install 'jaxtrain[cuda]' (no GPU is needed)"
            )
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # it asks the driver, which need not be here
        chip = self.chip
        memory, speed = int(chip.gibibytes * 2**30), int(chip.gb_per_second * 1e9)
        own = f"device_memory_size: {memory} memory_bandwidth: {speed}"
        return {"target_config": f"{_EVERY_GPU}{chip.gpu}{own}\n}}", "topology": self.shape}


def target(name: str, option: str = "--for") -> Target:
    """`v5e-16`, `v5e:4x4`, `v4-8` (which counts cores, as Google does), `h100`, `h100-8`.

    Raises UserError naming the nearest one.

    >>> target("v5e-16")
    Target(kind='v5e', shape='4x4')
    """
    names = {f"{kind}:{shape}": Target(kind, shape) for kind, chip in CHIPS.items() for shape in chip.shapes}
    counted = {f"{each.kind}-{_chips(each.shape) * each.chip.cores}": each for each in names.values()}
    single = {kind: Target(kind, chip.shapes[0]) for kind, chip in CHIPS.items() if chip.gpu}
    known = single | counted | names
    if name in known:
        return known[name]
    kind, _, size = name.partition("-")
    if kind in CHIPS and size.isdigit():
        sizes = [int(each.partition("-")[2]) for each in counted if each.startswith(f"{kind}-")]
        near = f"{kind}-{min(sizes, key=lambda each: (abs(each - int(size)), each))}"
        raise UserError(f"{option}: there is no {name}; nearest: {near}")
    raise UserError(f"{option}: there is no {name}; {nearest(name, list(known))}")


def _chips(shape: str) -> int:
    return math.prod(int(side) for side in re.findall(r"\d+", shape))
