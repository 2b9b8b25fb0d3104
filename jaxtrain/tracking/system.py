"""Use of the machine: processor, memory, GPU. Named as MLflow names its own system metrics."""

from __future__ import annotations

import contextlib
from typing import Any

MEGABYTE = 1e6


class SystemMonitor:
    """Samples the machine and the process tree of one training process, from outside of it."""

    def __init__(self, pid: int) -> None:
        import psutil

        self._process = psutil.Process(pid)
        self._gpus = _gpus()
        psutil.cpu_percent()  # the first call only starts the measurement

    def sample(self) -> dict[str, float]:
        """One value of each metric; what cannot be read is left out."""
        import psutil

        memory = psutil.virtual_memory()
        values = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
        }
        with contextlib.suppress(psutil.Error):
            family = [self._process, *self._process.children(recursive=True)]
            own = psutil.Process().pid
            values["system/process_memory_megabytes"] = (
                sum(_resident(process) for process in family if process.pid != own) / MEGABYTE
            )
        for i, gpu in enumerate(self._gpus):
            values.update(_gpu_values(i, gpu))
        return values


def _resident(process: Any) -> float:
    import psutil

    try:
        return float(process.memory_info().rss)
    except psutil.Error:
        return 0.0


def _gpus() -> list[Any]:
    try:
        import pynvml  # type: ignore[import-not-found]  # of nvidia-ml-py

        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:
        return []


def _gpu_values(number: int, gpu: Any) -> dict[str, float]:
    import pynvml

    values: dict[str, float] = {}
    with contextlib.suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        values[f"system/gpu_{number}_memory_usage_megabytes"] = memory.used / MEGABYTE
        values[f"system/gpu_{number}_memory_usage_percentage"] = 100.0 * memory.used / memory.total
        values[f"system/gpu_{number}_utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
        values[f"system/gpu_{number}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000
    return values
