"""Copies the upper layer of an overlay: files, marks of removed files, and attributes."""

from __future__ import annotations

import contextlib
import os
import stat

from .folders import OPEN_FOLDER

__all__ = ["copy_layer"]

_DEEPEST = 300


def copy_layer(source: int, target: int) -> list[str]:
    """Copies all files from one open folder to another. What vanishes meanwhile is left out.

    Args:
        source: the folder to copy; links in it are never followed.
        target: an empty folder.

    Returns:
        The paths of the sockets, which are copied as files without a server.

    Raises:
        OSError: if the target has no room left.
    """
    sockets: list[str] = []
    _copy(source, target, "", target, {}, sockets)
    _copy_attributes(os.fstat(source), source, target, "")
    return sockets


def _copy(source: int, target: int, where: str, top: int, linked: dict[tuple[int, int], str], sockets: list[str]) -> None:
    if where.count("/") > _DEEPEST:
        raise OSError(f"a path is too long: {where[:80]}")
    for name in os.listdir(source):
        with contextlib.suppress(FileNotFoundError):
            info = os.lstat(name, dir_fd=source)
            kind = stat.S_IFMT(info.st_mode)
            path = f"{where}{name}"
            first = linked.get((info.st_dev, info.st_ino))
            if first is not None and kind != stat.S_IFDIR:
                os.link(first, name, src_dir_fd=top, dst_dir_fd=target, follow_symlinks=False)
                continue
            if info.st_nlink > 1:
                linked[info.st_dev, info.st_ino] = path
            if kind == stat.S_IFDIR:
                os.mkdir(name, 0o700, dir_fd=target)
                inner = os.open(name, OPEN_FOLDER, dir_fd=source)
                copied = os.open(name, OPEN_FOLDER, dir_fd=target)
                try:
                    _copy(inner, copied, f"{path}/", top, linked, sockets)
                finally:
                    os.close(inner)
                    os.close(copied)
            elif kind == stat.S_IFREG:
                _copy_file(source, target, name)
            elif kind == stat.S_IFLNK:
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            else:
                os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
                if kind == stat.S_IFSOCK:
                    sockets.append(path)
            _copy_attributes(info, source, target, name)


def _copy_file(source: int, target: int, name: str) -> None:
    read = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    try:
        write = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            size, begin = os.fstat(read).st_size, 0
            os.ftruncate(write, size)
            while begin < size:  # holes stay holes
                try:
                    begin = os.lseek(read, begin, os.SEEK_DATA)
                    end = os.lseek(read, begin, os.SEEK_HOLE)
                except OSError:  # nothing follows
                    break
                os.lseek(write, begin, os.SEEK_SET)
                while begin < end:
                    count = os.sendfile(write, read, begin, min(end - begin, 1 << 20))
                    if not count:
                        return
                    begin += count
        finally:
            os.close(write)
    finally:
        os.close(read)


def _copy_attributes(info: os.stat_result, source: int, target: int, name: str) -> None:
    paths = [f"/proc/self/fd/{fd}/{name}" for fd in (source, target)]
    with contextlib.suppress(OSError):  # an id outside the map
        os.chown(paths[1], info.st_uid, info.st_gid, follow_symlinks=not name)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(paths[1], stat.S_IMODE(info.st_mode))
        for key in os.listxattr(paths[0], follow_symlinks=False) if name else os.listxattr(source):
            with contextlib.suppress(OSError):
                os.setxattr(paths[1], key, os.getxattr(paths[0], key, follow_symlinks=not name), follow_symlinks=not name)
    os.utime(paths[1], ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=not name)
