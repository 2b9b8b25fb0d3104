from __future__ import annotations

import os
import subprocess
import sys

from jaxtrain.tracking.system import SystemMonitor


def test_a_sample_measures_the_machine_and_the_process_tree() -> None:
    monitor = SystemMonitor(os.getpid())
    before = monitor.sample()
    assert 0 <= before["system/cpu_utilization_percentage"] <= 100
    assert 0 < before["system/system_memory_usage_percentage"] <= 100
    code = "block = b'x' * 100_000_000; print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    grown = monitor.sample()["system/process_memory_megabytes"] - before.get("system/process_memory_megabytes", 0.0)
    child.kill()
    child.wait()
    assert 100 < grown < 200


def test_a_process_that_has_ended_leaves_the_machine_s_own_figures() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monitor = SystemMonitor(child.pid)
    child.kill()
    child.wait()
    sample = monitor.sample()
    assert "system/process_memory_megabytes" not in sample
    assert "system/cpu_utilization_percentage" in sample
