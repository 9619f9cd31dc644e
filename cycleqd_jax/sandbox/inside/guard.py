"""Detects changes to the programs of a box, so that a trusted command can rely on them."""

from __future__ import annotations

import copy
import functools
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Guard", "isolate", "open_folder"]

_MOST = 2000
_USE = 0o555  # set-user-id and write permissions of files make no difference to programs
Mark = tuple[str, int, str] | None

_COMMANDS = ("local/sbin", "local/bin", "sbin", "bin")  # below /usr
# New files that a program would find or load: libraries, modules, settings of Python.
_LOADED = re.compile(
    r"(local/)?(lib(32|64|x32|exec)?(/|$)|share/(perl|python|awk))|local$|(local/)?(pyvenv\.cfg|s?bin)$"
    r"|(local/)?s?bin/(.*/|.*(\.cfg|\.txt|_pth)$)"
)
_SETTINGS = re.compile(r"(usr|s?bin|lib(32|64|x32)?)(/|$)|etc$|etc/(ld\.so|alternatives|nsswitch\.conf|python|perl)")
_NO_FOLDER = "/proc/none"
# Python before 3.11 does not know PYTHONSAFEPATH: one that a shell starts finds modules of users in its working directory.
# Bytecode is not read, because users may have written it; so changes to it do not matter.
_ENV = {"PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1", "PYTHONPYCACHEPREFIX": _NO_FOLDER}


class Guard:
    """Finds changes in the layers of the file systems of a box.

    Every change to an existing file leaves a copy or a mark in the upper layer. A change counts only if it differs from the
    state at :meth:`seal`, and only if it may affect other programs.

    Args:
        views: the visible ``/`` and ``/usr``, as open folders.
        uppers: their upper layers, as open folders.
        lowers: their lower layers, uppermost first, as open folders.
    """

    def __init__(self, views: Sequence[int], uppers: Sequence[int], lowers: Sequence[Sequence[int]]) -> None:
        self._layers = dict(zip(("/", "/usr"), zip(views, uppers, lowers, strict=True), strict=True))
        self._sealed: dict[str, Mark] = {}

    @functools.cached_property
    def _names(self) -> set[str]:
        return {name for fd in self._layers["/usr"][2] for folder in _COMMANDS for name in _list(folder, fd)}

    def seal(self) -> None:
        """Accepts the present state: later changes are measured from here."""
        self._sealed = {path: now for path, _, now in self._differences()}

    def over(self, views: Sequence[int], uppers: Sequence[int]) -> Guard:
        """A guard over a copy of the upper layers, with the same sealed state."""
        guard = copy.copy(self)  # with the names of commands, if they have been listed
        lowers = [layer[2] for layer in self._layers.values()]
        guard._layers = dict(zip(self._layers, zip(views, uppers, lowers, strict=True), strict=True))
        return guard

    def changes(self) -> dict[str, str]:
        """The changes since the seal that may affect other programs, at most :data:`_MOST`.

        Returns:
            For each path ``"new"``, ``"removed"``, ``"content"`` or ``"mode"``.
        """
        found: dict[str, str] = {}
        left = dict(self._sealed)
        for path, pristine, now in self._differences():
            kind = _kind_of_change(left.pop(path, pristine), now)
            if kind:
                found[path] = kind
            if len(found) >= _MOST:
                return found
        return found | dict.fromkeys(left, "removed")

    def refuse_changes(self, allowed: Mapping[str, str]) -> None:
        """Raises OSError if a program, library or setting of the system was changed, except as ``allowed``."""
        for path, kind in self.changes().items():
            accepted = allowed.get(path)
            if kind != accepted and not (kind == "mode" and accepted == "content"):
                raise OSError(f"{path} was changed")

    def _differences(self) -> Iterator[tuple[str, Mark, Mark]]:
        """Path, mark in the lower layers, and visible mark of every change that may affect other programs."""
        for where, (view, upper, lowers) in self._layers.items():
            for path in _changes(where, view, upper, *lowers):
                if self._matters(where, path, any(_kind(path, fd) for fd in lowers)):
                    name = os.fsencode(f"{where.rstrip('/')}/{path}").decode("utf-8", "replace")
                    pristine = next((mark for mark in (_mark(path, fd) for fd in lowers) if mark), None)
                    yield name, pristine, _mark(path, view)

    def _matters(self, where: str, path: str, existed: bool) -> bool:
        if "/__pycache__/" in f"{path}/":  # see _ENV
            return False
        if where == "/":
            return _SETTINGS.match(path) is not None
        folder, _, name = path.rpartition("/")
        return existed or _LOADED.match(path) is not None or (folder in _COMMANDS and name in self._names)


def _mark(path: str, below: int) -> Mark:
    """Type, permissions and content of a file, with the time of its last change; None if there is none."""
    try:
        info = os.lstat(path, dir_fd=below)
        if stat.S_ISLNK(info.st_mode):
            return "link", 0, os.readlink(path, dir_fd=below)
        if not stat.S_ISREG(info.st_mode):
            return f"{stat.S_IFMT(info.st_mode):o}", info.st_mode & _USE, str(info.st_rdev)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=below)
        with open(fd, "rb") as file:
            return "file", info.st_mode & _USE, f"{info.st_mtime_ns} {hashlib.file_digest(file, 'sha256').hexdigest()}"
    except (FileNotFoundError, NotADirectoryError):
        return None


def _kind_of_change(before: Mark, now: Mark) -> str:
    """The kind of a change; empty if other programs do not notice it: files keep their content and can be read and executed."""
    if before is None or now is None:
        return "" if before == now else "new" if before is None else "removed"
    if (before[0], before[2]) != (now[0], now[2]):
        return "content"
    return "mode" if before[1] & ~now[1] else ""


def isolate(argv: list[str]) -> list[str]:
    """The command line of a trusted program. Python gets options and an environment without modules and bytecode of users."""
    os.environ.update(_ENV)
    if argv[0] in ("python", "python3"):
        return [argv[0], "-I", "-X", f"pycache_prefix={_NO_FOLDER}", *argv[1:]]
    return argv


def _changes(where: str, view: int, upper: int, *lowers: int) -> Iterator[str]:
    """Yields the paths below ``where`` that were added, changed or removed. For an added folder, yields its files."""
    todo = [""]
    while todo:
        folder = todo.pop()
        before = {name for fd in lowers for name in _list(folder, fd)}
        # A folder that was removed and made again hides its former files without a mark for each.
        yield from (folder + name for name in sorted(before.difference(_list(folder, view))))
        for name in _list(folder, upper):
            path = folder + name
            if _kind(path, upper) != stat.S_IFDIR or any(_kind(path, fd) not in (0, stat.S_IFDIR) for fd in lowers):
                yield path
            elif where != "/" or _SETTINGS.match(path):
                todo.append(f"{path}/")


def open_folder(path: str) -> int:
    """Opens a folder."""
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
