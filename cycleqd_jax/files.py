"""Atomic writes of files and folders, JSON, locks between processes, and digests of values.

The sandbox does not use this module, because the sandbox imports the standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from cycleqd_jax.types import InputError

__all__ = [
    "check_space",
    "check_writable",
    "digest",
    "is_locked",
    "load_json",
    "locked",
    "make_folder",
    "replacing",
    "replacing_folder",
    "sync_folder",
    "without_nan",
    "write_bytes",
    "write_json",
    "write_text",
]

_ATTEMPTS, _PAUSE_S = 5, 0.02

_NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)
"""Errors of file systems that do not synchronise folders, or not for this user."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a temporary binary file, which replaces ``path`` if the block ends without an exception.

    The content is on disk before the replacement. Readers see the old or the new file, also if the process is killed.

    Args:
        path: path of the file; missing parent folders are created.

    Yields:
        The open temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # less the umask, as open() does
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def sync_folder(path: str | Path) -> None:
    """Waits until the names in a folder are on disk, so that a new or replaced file is there after a crash.

    File systems that can't do it for folders are left as they are.

    Raises:
        OSError: the disk is full, or has an error.
    """
    handle = None
    try:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDERS:
            raise
    finally:
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Makes an empty folder, which takes the place of ``path`` if the block ends without an exception.

    A folder that is there is removed. If the process is killed, a hidden folder ``.NAME.….partial`` may remain beside it. It
    holds the old folder where the kill came between two renames, and ``path`` is absent then. A link is followed.

    Args:
        path: path of the folder; missing parent folders are created.

    Yields:
        The new folder; it has the name of ``path``, or of what the link leads to, and another parent.

    Raises:
        InputError: the operating system refuses.
    """
    path = Path(path)
    try:
        path = path.resolve() if path.is_symlink() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise _refused(path, error) from error
    try:
        new = work / path.name
        new.mkdir()
        yield new
        if path.exists():
            os.rename(path, work / "replaced")
        try:
            os.rename(new, path)
        except OSError:
            if (work / "replaced").exists():
                os.rename(work / "replaced", path)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes bytes to a file atomically."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: str | Path, text: str) -> None:
    """Writes text to a file atomically, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def without_nan(value: Any) -> Any:
    """A JSON value with null where a number is NaN or infinite; tuples become lists."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON to a file atomically.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def load_json(path: str | Path) -> Any:
    """The JSON value of a file.

    Raises:
        ValueError: it is not JSON as UTF-8, or brackets are nested too deeply.
        OSError: it can't be read.
    """
    text = Path(path).read_text("utf-8")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets that are nested too deeply") from error


def make_folder(path: str | Path) -> None:
    """Creates a folder and its parents, unless it exists.

    Raises:
        InputError: the operating system refuses.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(path, error) from error


def check_writable(path: str | Path, advice: str) -> None:
    """Checks that a folder can be written, or can be made; writes nothing.

    Args:
        path: path of the folder, which may not exist yet.
        advice: what to do otherwise.

    Raises:
        InputError: it can't.
    """
    path = Path(os.path.abspath(path))
    place = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        other = "a file" if place.exists() else "a link that leads nowhere"
        what = "a folder without permission to write, or a read-only disk" if place.is_dir() else other
        raise InputError(f"expected to write into {path}, got {what} in {place}; {advice}")
    longest = os.pathconf(place, "PC_NAME_MAX")  # -1 is no limit
    size = max((len(os.fsencode(name)) for name in path.relative_to(place).parts), default=0)
    if 0 <= longest < size:
        raise InputError(f"expected names of at most {longest} bytes, got {size} in {path}; {advice}")


def check_space(path: str | Path, nbytes: int, what: str, advice: str = "choose another folder") -> None:
    """Checks that a disk has space for a folder, which may not exist yet.

    Args:
        path: path of the folder.
        nbytes: bytes to be written.
        what: what is to be written, for the message.
        advice: what to do beside freeing space.

    Raises:
        InputError: it has less.
    """
    path = Path(os.path.abspath(path))
    free = shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.exists())).free
    if free < nbytes:
        raise InputError(
            f"expected {nbytes / 1e9:.3g} GB of space for {what} in {path}, got {free / 1e9:.3g} GB; free some space, or "
            f"{advice}"
        )


def _refused(path: str | Path, error: OSError) -> InputError:
    return InputError(f"expected to create a folder, got {error.strerror or error} in {path}; choose another folder")


@contextlib.contextmanager
def locked(path: str | Path, *, wait: bool) -> Iterator[None]:
    """Holds an advisory lock (``flock``), which the operating system releases when the process ends in any way.

    Args:
        path: path of the lock file.
        wait: whether to wait until no other process holds the lock.

    Raises:
        InputError: another process holds the lock, and ``wait`` is false.
    """
    path = Path(path)
    with path.open("w") as file:
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                break
            except BlockingIOError as error:
                if attempt + 1 == _ATTEMPTS:
                    raise InputError(
                        f"expected no other process to use the folder, got another process in {path.parent}; wait for it, or "
                        "choose another folder"
                    ) from error
                time.sleep(_PAUSE_S)  # is_locked holds the lock for a moment
        yield


def is_locked(path: str | Path) -> bool:
    """Whether another process, or this one, holds the lock of :func:`locked`.

    Args:
        path: path of the lock file.
    """
    try:
        with Path(path).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file
        return False
    return False


def digest(value: Any, *, digits: int = 64) -> str:
    """SHA-256 of a JSON value, in hexadecimal; the order of keys does not matter.

    Args:
        value: any JSON value; other objects are converted with ``str``.
        digits: number of digits to return, at most 64.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:digits]
