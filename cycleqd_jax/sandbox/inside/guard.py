"""Detects changes to the programs of a box, so that a trusted command can rely on them."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterator

__all__ = ["Guard", "isolate"]

_COMMANDS = ("local/sbin", "local/bin", "sbin", "bin")  # below /usr
# New files that a program would find or load: libraries, modules, settings of Python.
_LOADED = re.compile(
    r"(local/)?(lib(32|64|x32|exec)?(/|$)|share/(perl|python|awk))|local$|(local/)?(pyvenv\.cfg|s?bin)$"
    r"|(local/)?s?bin/(.*/|.*(\.cfg|\.txt|_pth)$)"
)
_SETTINGS = re.compile(r"(usr|s?bin|lib(32|64|x32)?)(/|$)|etc$|etc/(ld\.so|alternatives|nsswitch\.conf|python|perl)")
_NO_FOLDER = "/proc/none"
# Bytecode is not read, because users may have written it; so changes to it do not matter.
_ENV = {"PYTHONNOUSERSITE": "1", "PYTHONPYCACHEPREFIX": _NO_FOLDER}


class Guard:
    """The layers of the file systems of a box. All changes since the box was made are in the upper layers.

    Args:
        root: folders of the layers of ``/``, uppermost first.
        usr: folders of the layers of ``/usr``, uppermost first.
    """

    def __init__(self, root: tuple[str, ...], usr: tuple[str, ...]) -> None:
        self._layers = {where: [_open(path) for path in layers] for where, layers in (("/", root), ("/usr", usr))}

    @functools.cached_property
    def _names(self) -> set[str]:
        return {name for fd in self._layers["/usr"][1:] for folder in _COMMANDS for name in _list(folder, fd)}

    def tampered(self) -> str:
        """The path of a change that may affect other programs; empty if there is none.

        Every change to an existing file leaves a copy or a mark in the upper layer.
        """
        for where, layers in self._layers.items():
            for path in _changes(where, *layers):
                if self._matters(where, path, any(_kind(path, fd) for fd in layers[1:])):
                    return os.fsencode(f"{where.rstrip('/')}/{path}").decode("utf-8", "replace")
        return ""

    def _matters(self, where: str, path: str, existed: bool) -> bool:
        if "/__pycache__/" in f"{path}/":  # see _ENV
            return False
        if where == "/":
            return _SETTINGS.match(path) is not None
        folder, _, name = path.rpartition("/")
        return existed or _LOADED.match(path) is not None or (folder in _COMMANDS and name in self._names)


def isolate(argv: list[str]) -> list[str]:
    """The command line of a trusted program. Python gets options and an environment without modules and bytecode of users."""
    os.environ.update(_ENV)
    if argv[0] in ("python", "python3"):
        return [argv[0], "-I", "-X", f"pycache_prefix={_NO_FOLDER}", *argv[1:]]
    return argv


def _changes(where: str, upper: int, *lowers: int) -> Iterator[str]:
    """Yields the paths below ``where`` that were added, changed or removed. For an added folder, yields its files."""
    todo = [""]
    while todo:
        folder = todo.pop()
        before = {name for fd in lowers for name in _list(folder, fd)}
        # A folder that was removed and made again hides its former files without a mark for each.
        yield from (folder + name for name in sorted(before.difference(_list(f"{where}/{folder}"))))
        for name in _list(folder, upper):
            path = folder + name
            if _kind(path, upper) != stat.S_IFDIR or any(_kind(path, fd) not in (0, stat.S_IFDIR) for fd in lowers):
                yield path
            elif where != "/" or _SETTINGS.match(path):
                todo.append(f"{path}/")


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _list(path: str, below: int | None = None) -> list[str]:
    try:
        fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=below)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _kind(path: str, below: int) -> int:
    """The type of a file, as in its mode; 0 if there is no file."""
    try:
        return stat.S_IFMT(os.lstat(path, dir_fd=below).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return 0
