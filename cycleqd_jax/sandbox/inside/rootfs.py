"""The file systems of programs and boxes: the outer root, and the mounts of one execution.

The ``/`` of a box is an overlay over the skeleton. Its ``/usr`` is an overlay over that of the skeleton and that of the host.
With a root file system, the skeleton is a copy of it without ``/usr``, owned by the users of the box, and its ``/usr`` replaces
that of the host.
"""

from __future__ import annotations

import contextlib
import os

from . import linux
from .guard import Guard, open_folder
from .layers import copy_layer

__all__ = ["ETC", "FS", "SKELETON", "SYSTEM", "TREE", "USR", "enter_box", "enter_outer", "mount_copy"]
__all__ += ["mount_inner_proc", "mount_layers", "mount_program", "resize"]

FS = "/fs"  # mount points that the fork server and its supervisors use
ETC = "/fs/etc"  # the host's /etc, until the skeleton has been made from it
SKELETON = "/fs/skeleton"
_BOX = "/fs/box"
_COPY = f"{_BOX}/copy"  # what a trusted command sees
USR = "/fs/usr"
TREE = "/fs/rootfs"  # exists if boxes show a root file system instead of the host
SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # beside /usr


def mount_program(owner: int, disk_mb: int) -> int:
    """Mounts a private /tmp (also /dev/shm), and the /proc of this PID namespace.

    Returns:
        A descriptor of a writable /proc that is hidden from the box.
    """
    proc = _writable_proc()
    linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, _tmpfs(owner, disk_mb, "1777"))
    linux.mount("tmpfs", FS, "tmpfs", linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=4k")
    _mount_proc("/proc")
    return proc


def mount_layers(owner: int, disk_mb: int) -> int:
    """Mounts the ``/`` of a box in this mount namespace, without entering it: the skeleton and /usr below one tmpfs.

    Returns:
        A descriptor of a writable /proc that is hidden from the box.
    """
    proc = _writable_proc()
    linux.mount("tmpfs", _BOX, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, _tmpfs(owner, disk_mb, "755"))
    os.mkdir(_COPY, 0o700)
    _make_layers(_BOX, owner)
    _mount_view(_BOX, owner)
    return proc


def resize(disk_mb: int) -> None:
    """Changes the size of the mounted file system of a box, before :func:`enter_box`."""
    flags = linux.MS_REMOUNT | linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("none", _BOX, None, flags, _size(disk_mb))


def mount_inner_proc(pidns: int | None, root: str = f"{_BOX}/root") -> None:
    """Mounts a /proc in the box whose ``/`` is ``root``.

    Args:
        pidns: a descriptor of its PID namespace, or None for that of this process.
        root: the ``/`` of the box.
    """
    _mount_proc(f"{root}/proc", pidns)


def enter_box() -> Guard:
    """Makes the mounted box the ``/`` of this mount namespace, and returns the guard over its layers."""
    uppers = _open_uppers(_BOX)
    lowers = [[open_folder(path) for path in paths] for paths in ((SKELETON,), _lowers())]
    linux.pivot_root(f"{_BOX}/root")
    return Guard([open_folder("/"), open_folder("/usr")], uppers, lowers)


def mount_copy(owner: int, disk_mb: int) -> list[int]:
    """Makes a copy of the box the ``/`` of this mount namespace, which has the mounts of :func:`mount_layers`.

    Returns:
        The copies of ``/`` and ``/usr``, and their upper layers, as open folders.
    """
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", _COPY, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, _tmpfs(owner, disk_mb + 8, "755"))
    _make_layers(_COPY, owner)
    uppers, sources = _open_uppers(_COPY), _open_uppers(_BOX)
    sockets = [
        f"{where}/{path}"
        for where, source, target in zip(("", "/usr"), sources, uppers, strict=True)
        for path in copy_layer(source, target)
    ]
    for source in sources:
        os.close(source)
    _mount_view(_COPY, owner)
    _mount_proc(f"{_COPY}/root/proc")
    for path in sockets:  # so that the servers behind them answer
        with contextlib.suppress(OSError):
            linux.mount(f"{_BOX}/root{path}", f"{_COPY}/root{path}", None, linux.MS_BIND)
    linux.pivot_root(f"{_COPY}/root")
    return [open_folder("/"), open_folder("/usr"), *uppers]


def _make_layers(base: str, owner: int) -> None:
    for name in ("root", "upper", "work", "usr", "usr-work"):
        os.mkdir(f"{base}/{name}")
    for name in ("upper", "usr"):  # the top folder of the upper layer gives the owner of the visible one
        os.chown(f"{base}/{name}", owner, owner)


def _open_uppers(base: str) -> list[int]:
    return [open_folder(f"{base}/{name}") for name in ("upper", "usr")]


def _lowers() -> tuple[str, str]:
    """The layers of /usr below the upper one."""
    return f"{SKELETON}/usr", next(path for path in (USR, f"{TREE}/usr", "/usr") if os.path.isdir(f"{path}/bin"))


def _mount_view(base: str, owner: int) -> None:
    # Without root on the host, the overlay cannot use trusted extended attributes, so it uses user attributes.
    notes, root = "" if owner else ",userxattr", f"{base}/root"
    _overlay(root, SKELETON, f"{base}/upper", f"{base}/work", notes)
    _overlay(f"{root}/usr", ":".join(_lowers()), f"{base}/usr", f"{base}/usr-work", notes)
    linux.mount("/dev", f"{root}/dev", None, linux.MS_BIND | linux.MS_REC)
    for name in () if os.path.isdir(TREE) else SYSTEM:
        if not os.path.islink(f"/{name}") and os.path.isdir(f"/{name}"):
            linux.mount(f"/{name}", f"{root}/{name}", None, linux.MS_BIND)


def _overlay(target: str, lower: str, upper: str, work: str, notes: str) -> None:
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    try:
        linux.mount("overlay", target, "overlay", linux.MS_NOSUID, options + notes)
    except OSError:  # tmpfs of this kernel has no user attributes: folders of the host then cannot be replaced
        linux.mount("overlay", target, "overlay", linux.MS_NOSUID, options)


_PROC_FLAGS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


def _mount_proc(target: str, pidns: int | None = None) -> None:
    # What a box may not read (its supervisor, drivers) is absent, so that `find /` reports no errors.
    if pidns is None:
        linux.mount("proc", target, "proc", _PROC_FLAGS, "hidepid=2")
    else:
        linux.mount_proc(target, pidns)
    linux.mount("tmpfs", f"{target}/tty", "tmpfs", _PROC_FLAGS | linux.MS_RDONLY, "mode=755,size=4k")
    linux.mount("none", target, None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | _PROC_FLAGS)


def _writable_proc() -> int:
    linux.mount("proc", _BOX, "proc", _PROC_FLAGS)
    try:
        return os.open(_BOX, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        linux.umount(_BOX)


def _tmpfs(owner: int, disk_mb: int, mode: str) -> str:
    return f"{_size(disk_mb)},mode={mode},uid={owner},gid={owner}"


def _size(disk_mb: int) -> str:
    return f"size={disk_mb}m,nr_inodes={256 * disk_mb + 4096}"


# --------------------------------------------------------------------------------------------------------------------
# The outer root, without bubblewrap


def enter_outer(plan: dict) -> None:
    """Builds the outer root in this new mount namespace, as bubblewrap would, and pivots into it.

    Args:
        plan: ``binds`` (source, target), ``links`` (text, path), ``folders``, ``masks``, ``devices``: see ``launch``.
    """
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=64m")
    os.mkdir("/tmp/host")
    linux.pivot_root("/tmp", "host")
    for name in plan["folders"]:
        os.makedirs(name, exist_ok=True)
    for text, path in plan["links"]:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(text, path)
    for source, target in plan["binds"]:
        if os.path.isdir(f"/host{source}"):
            os.makedirs(target, exist_ok=True)
        else:
            _touch(target)
        linux.mount(f"/host{source}", target, None, linux.MS_BIND | linux.MS_REC)
        linux.read_only(target)
    for path in plan["devices"]:
        _touch(path)
        linux.mount(f"/host{path}", path, None, linux.MS_BIND)
    for path in plan["masks"]:
        linux.mount("tmpfs", path, "tmpfs", linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=4k")
    for path in plan["writable"]:
        linux.mount("tmpfs", path, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=256m")
    linux.mount("proc", "/proc", "proc", _PROC_FLAGS)
    linux.umount("/host")
    os.rmdir("/host")
    linux.mount("none", "/", None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)


def _touch(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w"):
        pass
