"""SIGTERM, with which schedulers and cloud providers announce that a machine is taken away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["STOPPED", "SigtermFlag", "Stopped", "stopped_by_sigterm"]

STOPPED = 75
"""Exit code of a command that SIGTERM stopped (``EX_TEMPFAIL`` of sysexits.h): the same command continues."""


class Stopped(KeyboardInterrupt):
    """SIGTERM was received. Everything that handles Ctrl-C handles it."""


class SigtermFlag:
    """Whether SIGTERM was received.

    Attributes:
        received: whether it was.
    """

    received = False


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[SigtermFlag]:
    """Raises :class:`Stopped` in the block when the process receives SIGTERM for the first time.

    Later ones are ignored, so that they do not interrupt what the first one started, such as the writing of a checkpoint.
    Threads other than the main one can't receive signals; in them this does nothing.

    Yields:
        Whether SIGTERM was received. A scheduler may send it to the sandboxes too, whose errors may come first.
    """
    flag = SigtermFlag()

    def stop(number: int, frame: FrameType | None) -> None:
        if not flag.received:
            flag.received = True
            raise Stopped

    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield flag
    except Stopped:
        pass  # it came after the command's own handling
    finally:
        signal.signal(signal.SIGTERM, before)
