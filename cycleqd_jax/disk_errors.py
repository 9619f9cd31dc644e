"""Errors of the disk, which libraries hide, as one sentence.

The modules that write files raise ``OSError``; commands print it with :func:`print_disk_error`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["discard_output", "disk_error", "one_disk_error", "print_disk_error"]

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.EMFILE)
_PLACE = (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of a path that can't hold what is read or written there, such as a folder where a file should be."""


def discard_output() -> None:
    """Discards what is still to be printed: it must not fail once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_disk_error(program: str, error: OSError, advice: str) -> None:
    """Prints one sentence about an error that :func:`disk_error` has found, as the end of a command.

    Args:
        program: what the sentence begins with.
        error: the error of the operating system.
        advice: what to do after space was freed, or permissions or the path were corrected.
    """
    what = " ".join(str(error.strerror or error).split())
    path = error.filename if error.filename2 is None else error.filename2  # what was to be replaced
    where = f" in {path}" if path is not None else ""
    mend = (
        "correct the path, or move what is there away"
        if error.errno in _PLACE
        else "free some space or correct the permissions"
    )
    print(f"{program}: expected to read and write files, got {what}{where}; {mend}{advice}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()


def disk_error(error: BaseException) -> OSError | None:
    """The error of the operating system behind an exception.

    Libraries hide such errors in exceptions of their own, which only quote the operating system.

    Args:
        error: any exception.

    Returns:
        The exception itself if it is an ``OSError`` of files, else the one among its causes that says why a file was refused,
        or one of the same meaning; None if there is none.
    """
    if isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError)):
        return error
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if isinstance(cause, OSError) and cause.errno in _DISK:
            return cause
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in seen:
        for number in _DISK:
            if os.strerror(number).lower() in str(cause).lower():
                path = next(iter(re.findall(r"/[^\s'\":,;\]]+", str(cause))), None)
                return OSError(number, os.strerror(number), path)
    return None


def _not_of_orbax(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not (message.startswith("Task exception was never retrieved") and "orbax" in message)


class _WithoutClosedLoops:
    """An exception hook without the errors of threads that write an array and report to an event loop which has ended.

    Such threads are those of TensorStore. It prints what Python raises in them with ``sys.excepthook``.
    """

    def __init__(self, hook: Any) -> None:  # of the type of ``sys.excepthook``
        self._hook = hook

    def __call__(self, kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread() or str(error) != "Event loop is closed":
            self._hook(kind, error, trace)


_one_writer = threading.RLock()


class _NewThreads(io.StringIO):
    """Keeps what threads write that start later; what the present threads write goes to a stream."""

    def __init__(self, stream: Any) -> None:  # of any class that has the methods of text streams
        super().__init__()
        self._stream = stream
        self._present = set(threading.enumerate())

    def write(self, text: str) -> int:
        """Writes text to the stream, or keeps it."""
        return self._stream.write(text) if threading.current_thread() in self._present else super().write(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor of the stream."""
        return self._stream.fileno()


@contextlib.contextmanager
def one_disk_error(path: str | Path) -> Iterator[None]:
    """Makes one ``OSError`` of what the block raises because of the disk, and drops what new threads print about it.

    Orbax writes with many threads, each of which prints a traceback of its own, and with many tasks. It raises the error of
    one task. Asyncio logs those of the others when they are collected, and TensorStore prints those of arrays whose writing
    ends later, so both are dropped from then on.

    Args:
        path: path of what is written, for the error.

    Raises:
        OSError: the operating system refuses.
    """
    with _one_writer:  # it replaces what the whole process has once
        absl, printed, refused = logging.getLogger("absl"), _NewThreads(sys.stderr), None
        level = absl.level
        absl.setLevel(logging.CRITICAL)
        try:
            with contextlib.redirect_stderr(printed):
                yield
        except Exception as error:
            refused = disk_error(error)
            if refused is None:
                raise
            logging.getLogger("asyncio").addFilter(_not_of_orbax)  # a second time changes nothing
            if not isinstance(sys.excepthook, _WithoutClosedLoops):
                sys.excepthook = _WithoutClosedLoops(sys.excepthook)
            raise OSError(refused.errno, refused.strerror or str(refused), str(path)) from error
        finally:
            absl.setLevel(level)
            if refused is None:
                sys.stderr.write(printed.getvalue())
