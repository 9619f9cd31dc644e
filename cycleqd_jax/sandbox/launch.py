"""How the fork server starts under each isolation: the files that it sees, and its command line."""

from __future__ import annotations

import dataclasses
import glob
import os
import shutil
import site
import sys
import sysconfig
from pathlib import Path

from .base import Isolation

__all__ = ["DESCRIPTIONS", "Launch", "launches"]

_INSIDE = Path(__file__).parent / "inside"
_LIBRARY = "/fs/lib"
_ROOTFS = "/fs/rootfs"
_NOBODY = 65534
_START = "import sys; sys.path.insert(0, {library!r}); from inside.server import main; main()"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/tmp", "/dev/shm"),
)
_PYTHON = "/opt/python/bin"  # where programs find the command python
_FROM_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "timezone", "services", "protocols")

DESCRIPTIONS = {
    "bwrap": (
        "bubblewrap: separate user, PID, mount, network, IPC and UTS namespaces, a read-only runtime, no capabilities on the "
        "host, a system call filter, and limits on time, memory, processes and disk; flaws of the kernel are not covered."
    ),
    "userns": (
        "Linux namespaces without bubblewrap: the same namespaces, hidden folders, system call filter and limits; flaws of the "
        "kernel are not covered."
    ),
    "none": (
        "UNSANDBOXED: programs run as this user and can read, write, connect and kill whatever this user can; they only get a "
        "temporary folder, a clean environment, and limits on time and on memory per process."
    ),
}


@dataclasses.dataclass(frozen=True)
class Launch:
    """One way to start the fork server.

    Attributes:
        isolation: the isolation.
        command: the command line.
        plan: the first message to the fork server: ``isolation``, ``new_user``, and the contents of its root.
        user: the user id to start as; None for that of the caller.
    """

    isolation: Isolation
    command: tuple[str, ...]
    plan: dict
    user: int | None = None


def launches(name: str, tree: Path | None = None) -> list[Launch]:
    """The ways to start a fork server under the isolation ``name``, best first; empty if the machine lacks a tool.

    If the caller is root, boxes have their own range of user ids. Otherwise, a box has one user, who is root inside the box and
    the caller outside. If root may not use other user ids (in some containers), the fork server runs as the user nobody, so a
    program is never the root of the host: even without capabilities, that root could change the files of root.

    Args:
        name: the name of the isolation.
        tree: the root file system of boxes; None for the programs and settings of the host.
    """
    isolation = Isolation(name, DESCRIPTIONS[name])
    if name == "none":
        plan = {"isolation": name, "new_user": False, "library": str(_INSIDE.parent)}
        return [Launch(isolation, _python(str(_INSIDE.parent)), plan)]
    if sys.platform != "linux":
        return []
    root = os.geteuid() == 0
    bwrap = shutil.which("bwrap")
    if name == "bwrap" and bwrap is None:
        return []
    found = []
    for new_user in (False, True) if root else (True,):
        plan = _plan(name, new_user, _LIBRARY if name == "bwrap" else str(_INSIDE.parent), tree)
        command = _bubblewrap(bwrap, plan, new_user) if name == "bwrap" and bwrap else _python(str(_INSIDE.parent))
        found.append(Launch(isolation, command, plan, _NOBODY if root and new_user else None))
    return found


def _python(library: str) -> tuple[str, ...]:
    # As -I, except that PYTHONHASHSEED is used: the order of a set of strings is the same in every run.
    return (_executable(), "-s", "-P", "-S", "-B", "-X", "utf8", "-c", _START.format(library=library))


def _executable() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _plan(name: str, new_user: bool, library: str, tree: Path | None = None) -> dict:
    """The outer root: /usr, the Python installation and a few files of /etc, read-only and nothing else."""
    binds, links = [("/usr", "/usr")], list(_LINKS)
    for folder in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(folder):
            links.append((os.readlink(folder), folder))
        elif os.path.isdir(folder):
            binds.append((folder, folder))
    for path in ("/nix/store", *_runtime()):
        if os.path.exists(path) and not any(_within(path, target) for _, target in binds):
            binds.append((path, path))
    binds += [(f"/etc/{name}", f"/etc/{name}") for name in _FROM_ETC if os.path.exists(f"/etc/{name}")]
    masks = _masks([target for _, target in binds])
    binds += [(str(path), f"/etc/{path.name}") for path in sorted((_INSIDE / "etc").iterdir())]
    links += [(_executable(), f"{_PYTHON}/{name}") for name in ("python", "python3")]
    binds += [("/etc", "/fs/etc"), (str(_INSIDE), f"{_LIBRARY}/inside")]
    if tree is not None:
        binds.append((str(tree), _ROOTFS))
    # Listed, because bubblewrap would create the parents of a bind mount with modes that exclude other users.
    parents = sorted({str(parent) for _, target in binds for parent in Path(target).parents} - {"/"})
    return {
        "isolation": name,
        "new_user": new_user,
        "library": library,
        "binds": binds,
        "links": links,
        "folders": [*parents, "/opt", "/opt/python", _PYTHON, "/proc", "/dev", "/tmp", "/fs/box", "/fs/usr", "/fs/skeleton"],
        "devices": [path for path in _DEVICES if os.path.exists(path)],
        "masks": masks,
        "writable": ["/fs/skeleton"],
    }


def _runtime() -> list[str]:
    """The Python installation. If it contains the caller's home or working directory, only the files of the interpreter."""
    executable, private = _executable(), [os.path.realpath(path) for path in (Path.home(), os.getcwd())]
    found = []
    for prefix in dict.fromkeys((os.path.realpath(sys.base_prefix), os.path.dirname(os.path.dirname(executable)))):
        if not any(_within(path, prefix) for path in private):
            found.append(prefix)
            continue
        library = "python{}.{}".format(*sys.version_info)
        for folder in dict.fromkeys(("lib", sys.platlibdir)):
            libraries = os.path.join(prefix, folder)
            found += [os.path.join(libraries, library), *sorted(glob.glob(f"{glob.escape(libraries)}/lib*.so*"))]
        found.append(executable)
    return found


def _masks(shown: list[str]) -> list[str]:
    """Folders to hide below the visible ones: installed packages, this repository, and the caller's home and work."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    packages = [sysconfig.get_path(name, vars=base) for name in ("purelib", "platlib")]
    private = [*packages, *site.getsitepackages([sys.base_prefix]), str(_INSIDE.parents[2]), os.getcwd(), str(Path.home())]
    runtime = [*shown, os.path.dirname(os.__file__), _executable()]
    masks = []
    for path in map(os.path.realpath, private):
        hidden = any(_within(path, other) for other in masks)
        needed = any(_within(other, path) for other in runtime)
        if os.path.isdir(path) and any(_within(path, other) for other in shown) and not hidden and not needed:
            masks.append(path)
    return masks


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _bubblewrap(bwrap: str, plan: dict, new_user: bool) -> tuple[str, ...]:
    command = [bwrap, "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--as-pid-1", "--cap-add", "ALL"]
    # Not --die-with-parent, which follows the starting thread instead of the process. The fork server watches the process.
    if new_user:
        command += ["--unshare-user", "--uid", "0", "--gid", "0"]
    for folder in plan["folders"]:
        command += ["--dir", folder]
    for text, path in plan["links"]:
        command += ["--symlink", text, path]
    for source, target in plan["binds"]:
        command += ["--ro-bind", source, target]
    for path in plan["devices"]:
        command += ["--dev-bind", path, path]
    for path in plan["masks"]:
        command += ["--tmpfs", path, "--remount-ro", path]
    for path in plan["writable"]:
        command += ["--tmpfs", path]
    command += ["--proc", "/proc", "--remount-ro", "/", "--chdir", "/", "--", *_python(_LIBRARY)]
    return tuple(command)
