"""The resources that processes use, read from /proc."""

from __future__ import annotations

import contextlib
import math
import os
import resource
from typing import BinaryIO

__all__ = ["exceeds", "refill_cpu"]

_FREE_SOCKETS = 64
_SOCKET_BUFFER = 208 << 10  # the default of the kernel
_PAGE = os.sysconf("SC_PAGE_SIZE")


def exceeds(proc: int, own: set[str], processes: int, memory_mb: int) -> bool:
    """Whether the processes of a box use more memory or are over four times as many.

    Args:
        proc: a descriptor of the /proc of the supervisor's PID namespace.
        own: the process ids of the sandbox itself.
        processes: limit of the number of processes.
        memory_mb: limit of the memory.
    """
    names = [name for name in os.listdir(proc) if name.isdigit() and name not in own]
    if len(names) > 4 * processes:
        return True
    most, shared = memory_mb << 20, _sysv_memory(proc) + _socket_memory(proc)
    if shared + sum(_resident(proc, name) for name in names) <= most:
        return False
    return shared + sum(_proportional(proc, name) for name in names) > most


def _resident(proc: int, pid: str) -> int:
    """Resident bytes of a process, including shared memory."""
    try:
        with _open(proc, f"{pid}/statm") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _proportional(proc: int, pid: str) -> int:
    """Resident bytes of a process, where memory shared by n processes counts 1/n."""
    try:
        with _open(proc, f"{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except (OSError, IndexError):
        pass
    return 0


def _sysv_memory(proc: int) -> int:
    """Bytes of System V segments in this IPC namespace, which use memory even if no process maps them."""
    try:
        with _open(proc, "sysvipc/shm") as file:
            head, *rows = (line.split() for line in file)
        return sum(int(row[head.index(b"rss")]) for row in rows)
    except (OSError, ValueError):
        return 0


def _socket_memory(proc: int) -> int:
    """Bytes that the buffers of the sockets of this network namespace may hold, without the first ones."""
    try:
        with _open(proc, "self/net/sockstat") as file:
            used = int(file.readline().split()[2])
    except (OSError, ValueError, IndexError):
        return 0
    return max(0, used - _FREE_SOCKETS) * _SOCKET_BUFFER


def _open(proc: int | None, path: str) -> BinaryIO:
    """Opens a file of a /proc; without a descriptor, of the usual one."""
    return open(os.open(path if proc is not None else f"/proc/{path}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc), "rb")


def refill_cpu(proc: int | None, creator: int, pid: int, seconds: float) -> None:
    """Raises the CPU limit of a long-lived process to ``seconds`` more than it has used, as the creator of its namespace."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        with _open(proc, f"{pid}/stat") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if creator:
            os.seteuid(creator)
        try:
            _, hard = resource.prlimit(pid, resource.RLIMIT_CPU)
            resource.prlimit(pid, resource.RLIMIT_CPU, (math.ceil(used + seconds), hard))
        finally:
            if creator:
                os.seteuid(0)
