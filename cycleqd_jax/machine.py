"""The processors and the memory that this process has. Standard library only, so that the sandbox can import it."""

from __future__ import annotations

import os

__all__ = ["cpu_count", "host_memory"]


def cpu_count() -> int:
    """The number of cores that this process may use, which ``taskset`` and container runtimes limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
