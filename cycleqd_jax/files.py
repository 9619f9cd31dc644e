"""Files that appear whole or not at all, locks between processes, and digests of values.

The sandbox does not use this module: it needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cycleqd_jax.types import InputError

__all__ = ["digest", "locked", "make_folder", "replacing", "write_bytes", "write_json", "write_text"]


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a binary file that takes the place of ``path`` when the block ends without an exception.

    The content is on disk before the name changes. Readers, and a process that is killed, see the old file or the new one.

    Args:
        path: of the file; missing parent folders are made.

    Yields:
        The open file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file atomically."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON atomically; NaN and infinity are errors."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def make_folder(path: str | Path) -> None:
    """Makes a folder and its parents.

    Raises:
        InputError: the system refuses.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected to make the folder {path}, got {error.strerror or error}: choose another folder") from error


@contextlib.contextmanager
def locked(path: str | Path, *, wait: bool) -> Iterator[None]:
    """Holds an advisory lock (``flock``); the system releases it when the process ends, however it ends.

    Args:
        path: of the lock file.
        wait: whether to wait for the process that holds the lock; otherwise that is an error.

    Raises:
        InputError: ``wait`` is false and another process holds the lock.
    """
    path = Path(path)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise InputError(
                f"expected to work in {path.parent} alone, got another process at work there: wait for it, or choose another "
                "output"
            ) from error
        yield


def digest(value: Any, *, digits: int = 64) -> str:
    """SHA-256 of a JSON value, independent of the order of keys.

    Args:
        value: anything JSON can hold; other objects count by their ``str``.
        digits: how many of the 64 hexadecimal digits to return.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:digits]
