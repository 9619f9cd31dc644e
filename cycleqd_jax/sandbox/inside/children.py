"""Kills the children of a process where there is no PID namespace that would end them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

__all__ = ["kill_children"]


def kill_children(reap: Callable[[], None]) -> None:
    """Kills the children, and orphans as they become children of this process, until there are none.

    Args:
        reap: reaps children of this process.
    """
    for _ in range(100):
        children = _children()
        if not children:
            return
        for pid in children:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(pid, signal.SIGKILL)
        time.sleep(0.001)
        reap()


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:  # not Linux
        return []
