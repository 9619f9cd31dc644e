"""Removes folders that programs have filled."""

from __future__ import annotations

import contextlib
import os
import stat

__all__ = ["OPEN_FOLDER", "remove_tree"]

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags that open a folder, and never follow a link."""


def remove_tree(path: str) -> None:
    """Removes a folder of any depth; what can't be removed stays.

    Folders inside are moved to the top one before they are emptied. So there is no recursion, no long path, and only two
    folders are open at a time. Links are never followed.

    Args:
        path: the folder.
    """
    try:
        top = os.open(path, OPEN_FOLDER)
    except OSError:
        return
    try:
        pending, count = _emptied(top, top, 0)
        while pending:
            name = pending.pop()
            with contextlib.suppress(OSError):
                _unlock(top, name)
                folder = os.open(name, OPEN_FOLDER, dir_fd=top)
                try:
                    found, count = _emptied(folder, top, count)
                    pending += found
                finally:
                    os.close(folder)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _emptied(folder: int, top: int, count: int) -> tuple[list[str], int]:
    """Removes the files of a folder and moves its folders to ``top``; returns their names there, and the last number used."""
    moved = []
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if not stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                    os.unlink(name, dir_fd=folder)
                    continue
                _unlock(folder, name)
                count += 1
                new = f".removed-{os.getpid()}-{count}"
                os.rename(name, new, src_dir_fd=folder, dst_dir_fd=top)
                moved.append(new)
    return moved, count


def _unlock(folder: int, name: str) -> None:
    """Makes a folder readable and writable for its owner."""
    with contextlib.suppress(OSError, NotImplementedError):
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder) if hasattr(os, "O_PATH") else -1
        if fd >= 0:
            try:
                os.chmod(f"/proc/self/fd/{fd}", 0o700)
            finally:
                os.close(fd)
