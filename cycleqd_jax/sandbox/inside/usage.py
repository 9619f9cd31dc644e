"""The resources that processes use, read from /proc."""

from __future__ import annotations

import contextlib
import math
import os
import resource

__all__ = ["exceeds", "refill_cpu"]

_FREE_SOCKETS = 64
_SOCKET_BUFFER = 208 << 10  # the default of the kernel
_PAGE = os.sysconf("SC_PAGE_SIZE")


def exceeds(processes: int, memory_mb: int) -> bool:
    """Whether the processes of this PID namespace, without its first, use more memory or are over four times as many."""
    names = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    if len(names) > 4 * processes:
        return True
    most, shared = memory_mb << 20, _sysv_memory() + _socket_memory()
    if shared + sum(_resident(name) for name in names) <= most:
        return False
    return shared + sum(_proportional(name) for name in names) > most


def _resident(pid: str) -> int:
    """Resident bytes of a process, including shared memory."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _proportional(pid: str) -> int:
    """Resident bytes of a process, where memory shared by n processes counts 1/n."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except (OSError, IndexError):
        pass
    return 0


def _sysv_memory() -> int:
    """Bytes of System V segments in this IPC namespace, which use memory even if no process maps them."""
    try:
        with open("/proc/sysvipc/shm", "rb") as file:
            head, *rows = (line.split() for line in file)
        return sum(int(row[head.index(b"rss")]) for row in rows)
    except (OSError, ValueError):
        return 0


def _socket_memory() -> int:
    """Bytes that the buffers of the sockets of this network namespace may hold, without the first ones."""
    try:
        with open("/proc/self/net/sockstat", "rb") as file:
            used = int(file.readline().split()[2])
    except (OSError, ValueError, IndexError):
        return 0
    return max(0, used - _FREE_SOCKETS) * _SOCKET_BUFFER


def refill_cpu(pid: int, seconds: float) -> None:
    """Raises the CPU limit of a long-lived process to ``seconds`` more than it has used."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        _, hard = resource.prlimit(pid, resource.RLIMIT_CPU)
        resource.prlimit(pid, resource.RLIMIT_CPU, (math.ceil(used + seconds), hard))
