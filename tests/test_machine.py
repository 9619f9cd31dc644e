"""The cores of a process, which its affinity limits."""

from __future__ import annotations

import os
import subprocess
import sys

from cycleqd_jax.machine import cpu_count, host_memory


def test_the_affinity_limits_the_cores():
    assert cpu_count() == len(os.sched_getaffinity(0))
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from cycleqd_jax import machine; "
    result = subprocess.run([sys.executable, "-c", code + "print(machine.cpu_count())"], capture_output=True, check=True)
    assert int(result.stdout) == 1


def test_the_memory_of_the_host():
    assert host_memory() > 1 << 30
