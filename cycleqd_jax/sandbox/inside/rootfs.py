"""What a program sees of the machine: the outer root, the skeleton of a box, and the mounts of one execution.

A box's ``/`` is an overlay over the skeleton, and its ``/usr`` one over the skeleton's and the host's, or those of a root file
system where there is one: then the skeleton is that, but for its ``/usr``, with the box's own users as owners.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat

from . import linux
from .guard import Guard

__all__ = ["ETC", "FS", "SKELETON", "build_skeleton", "enter_outer", "mount_box", "mount_program"]

FS = "/fs"  # mount points that the fork server and its supervisors use
ETC = "/fs/etc"  # the host's /etc, until the skeleton has been made of it
SKELETON = "/fs/skeleton"
_BOX = "/fs/box"
_USR = "/fs/usr"
_TREE = "/fs/rootfs"  # there if boxes are to show a root file system instead of the host

_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_LARGEST_ETC_FILE = 1 << 20
# fmt: off
_NOT_FROM_ETC = frozenset((
    "shadow", "shadow-", "gshadow", "gshadow-", "passwd", "passwd-", "group", "group-", "subuid", "subgid",
    "subuid-", "subgid-", "hostname", "hosts", "mtab", "fstab", "machine-id", "resolv.conf", "environment",
    "sudoers", "sudoers.d", "ssh", "NetworkManager", "wireguard", "kubernetes", "docker", "motd",
))
_FOLDERS = (
    "dev", "proc", "sys", "run", "mnt", "media", "opt", "srv", "home", "boot", "etc", "usr", "var", "var/log",
    "var/lib", "var/cache", "var/spool",
)
# fmt: on
_ELSEWHERE = {f"{SKELETON}/{name}" for name in ("usr", "dev", "proc", "sys")}
_NAMES = {
    "hostname": "box\n",
    "hosts": "127.0.0.1\tlocalhost box\n::1\tlocalhost\n",
    "fstab": "",
    "resolv.conf": "",
    "machine-id": "0" * 32 + "\n",
}
_PROFILE = """\
export PS1='\\u@\\h:\\w\\$ '
alias ll='ls -l'
"""


def mount_program(owner: int, disk_mb: int) -> int:
    """Gives this mount namespace a private /tmp (also its /dev/shm) and a /proc of its own PID namespace.

    Returns:
        A descriptor of a /proc that can be written to, which nothing in the box sees.
    """
    proc = _writable_proc()
    linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, _tmpfs(owner, disk_mb, "1777"))
    linux.mount("tmpfs", FS, "tmpfs", linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=4k")
    _mount_proc("/proc")
    return proc


def mount_box(owner: int, disk_mb: int) -> tuple[int, Guard]:
    """Makes ``/`` of this mount namespace a throwaway Linux: the skeleton and the host's /usr under one tmpfs.

    Returns:
        A descriptor of a /proc that can be written to, which nothing in the box sees, and the guard over its layers.
    """
    proc = _writable_proc()
    linux.mount("tmpfs", _BOX, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, _tmpfs(owner, disk_mb, "755"))
    root = f"{_BOX}/root"
    for name in ("root", "upper", "work", "usr", "usr-work"):
        os.mkdir(f"{_BOX}/{name}")
    for name in ("upper", "usr"):  # an upper layer's top directory is the root directory that everyone sees
        os.chown(f"{_BOX}/{name}", owner, owner)
    # Where a box's root is the caller, trusted attributes are out of reach and the overlay keeps its notes in user ones.
    notes = "" if owner else ",userxattr"
    _overlay(root, SKELETON, f"{_BOX}/upper", f"{_BOX}/work", notes)
    lowers = (f"{SKELETON}/usr", next(path for path in (_USR, f"{_TREE}/usr", "/usr") if os.path.isdir(f"{path}/bin")))
    _overlay(f"{root}/usr", ":".join(lowers), f"{_BOX}/usr", f"{_BOX}/usr-work", notes)
    guard = Guard((f"{_BOX}/upper", SKELETON), (f"{_BOX}/usr", *lowers))
    linux.mount("/dev", f"{root}/dev", None, linux.MS_BIND | linux.MS_REC)
    for name in () if os.path.isdir(_TREE) else _SYSTEM:
        if not os.path.islink(f"/{name}") and os.path.isdir(f"/{name}"):
            linux.mount(f"/{name}", f"{root}/{name}", None, linux.MS_BIND)
    _mount_proc(f"{root}/proc")
    linux.pivot_root(root)
    return proc, guard


def _overlay(target: str, lower: str, upper: str, work: str, notes: str) -> None:
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    try:
        linux.mount("overlay", target, "overlay", linux.MS_NOSUID, options + notes)
    except OSError:  # a kernel whose tmpfs has no user attributes: a directory of the host can't be replaced by a new one
        linux.mount("overlay", target, "overlay", linux.MS_NOSUID, options)


_PROC_FLAGS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


def _mount_proc(target: str) -> None:
    # What a box may not look into (its supervisor, drivers) is not there at all, so that `find /` finds no fault with it.
    linux.mount("proc", target, "proc", _PROC_FLAGS, "hidepid=2")
    linux.mount("tmpfs", f"{target}/tty", "tmpfs", _PROC_FLAGS | linux.MS_RDONLY, "mode=755,size=4k")
    linux.mount("none", target, None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | _PROC_FLAGS)


def _writable_proc() -> int:
    linux.mount("proc", _BOX, "proc", _PROC_FLAGS)
    try:
        return os.open(_BOX, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        linux.umount(_BOX)


def _tmpfs(owner: int, disk_mb: int, mode: str) -> str:
    return f"size={disk_mb}m,nr_inodes={256 * disk_mb + 4096},mode={mode},uid={owner},gid={owner}"


# --------------------------------------------------------------------------------------------------------------------
# The skeleton: everything of a box but /usr. Made once for each fork server.


def build_skeleton(owner: int, userns: int | None) -> None:
    """Fills the skeleton, from the root file system or from the host's world-readable /etc and what every Linux has.

    Args:
        owner: the box's root, as seen from here.
        userns: a user namespace with a box's map; /usr is shown through it where the filesystem can
            (its files then belong to the box's root; elsewhere they belong to nobody).
    """
    own_tree = os.path.isdir(_TREE)
    previous = os.umask(0)
    try:
        if own_tree:
            _copy_tree(_TREE, SKELETON, owner)
            _own_names(f"{SKELETON}/etc", owner)
            _merge_usr(f"{_TREE}/usr", owner)
        else:
            _imitate_host(owner)
    finally:
        os.umask(previous)
    if userns is not None:
        with contextlib.suppress(OSError):
            linux.idmapped(f"{_TREE}/usr" if own_tree else "/usr", _USR, userns)
    linux.umount(ETC)
    linux.mount("none", SKELETON, None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID)


def _copy_tree(source: str, target: str, owner: int) -> None:
    """Everything but /usr and what is mounted or empty in a box; ids are shifted as the map of a box shifts them."""
    with os.scandir(source) as entries:
        for entry in entries:
            path = f"{target}/{entry.name}"
            info = entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), path)
            elif entry.is_dir(follow_symlinks=False):
                os.mkdir(path, 0o700)
                with contextlib.suppress(PermissionError):  # without root on the host, what others may not see is left out
                    if path not in _ELSEWHERE:
                        _copy_tree(entry.path, path, owner)
            elif entry.is_file(follow_symlinks=False):
                try:
                    shutil.copyfile(entry.path, path)
                except PermissionError:
                    continue
            else:
                continue
            if owner:
                with contextlib.suppress(OSError):  # an id beyond those of boxes
                    os.chown(path, owner + info.st_uid, owner + info.st_gid, follow_symlinks=False)
            if not entry.is_symlink():
                os.chmod(path, stat.S_IMODE(info.st_mode))
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)


def _own_names(etc: str, owner: int) -> None:
    """What a box has of its own in a tree that may come from another machine, and what could not be read there."""
    for name, text in _NAMES.items():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{etc}/{name}")
        _write(f"{etc}/{name}", text)
        os.chown(f"{etc}/{name}", owner, owner)
    for name, source in (("shadow", "passwd"), ("gshadow", "group")):
        if not os.path.exists(f"{etc}/{name}") and os.path.exists(f"{etc}/{source}"):
            with open(f"{etc}/{source}", encoding="utf-8", errors="replace") as file:
                _write(f"{etc}/{name}", _locked_accounts(name, file.read().splitlines()), 0o640)


def _merge_usr(usr: str, owner: int) -> None:
    # Merged directories take their owner from the topmost layer: these become writable for the box's root.
    for name in ("", "local"):
        with os.scandir(f"{usr}/{name}") as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    path = f"{SKELETON}/usr/{name}/{entry.name}"
                    os.mkdir(path, 0o755)
                    os.chown(path, owner, owner)


def _imitate_host(owner: int) -> None:
    for name in _FOLDERS:
        os.mkdir(f"{SKELETON}/{name}")
    for name in ("tmp", "var/tmp", "run/lock"):
        os.mkdir(f"{SKELETON}/{name}")
        os.chmod(f"{SKELETON}/{name}", 0o1777)
    os.mkdir(f"{SKELETON}/root", 0o700)
    os.symlink("/run", f"{SKELETON}/var/run")
    for name in _SYSTEM:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{SKELETON}/{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{SKELETON}/{name}")
    _copy_etc(ETC, f"{SKELETON}/etc", _NOT_FROM_ETC)
    _write_etc(f"{SKELETON}/etc")
    for name in (".bashrc", ".profile"):
        _write(f"{SKELETON}/root/{name}", _PROFILE)
    _merge_usr("/usr", owner)
    for folder, folders, files in os.walk(SKELETON):
        for name in (*folders, *files):
            os.chown(f"{folder}/{name}", owner, owner, follow_symlinks=False)
    _set_modes()
    shadow = f"{SKELETON}/etc/shadow"
    with contextlib.suppress(OSError):
        os.chown(shadow, owner, owner + 42)


def _set_modes() -> None:
    for name in ("dev", "proc", "run", "mnt", "opt", "home", "etc", "usr", "var"):
        os.chmod(f"{SKELETON}/{name}", 0o755)


def _copy_etc(source: str, target: str, skip: frozenset[str]) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            path = f"{target}/{entry.name}"
            try:
                info = entry.stat(follow_symlinks=False)
                if entry.name in skip:
                    continue
                if entry.is_symlink():
                    os.symlink(os.readlink(entry.path), path)
                elif entry.is_dir():
                    if info.st_mode & 0o005 == 0o005 and entry.name != "private":
                        os.mkdir(path, stat.S_IMODE(info.st_mode) & 0o755)
                        _copy_etc(entry.path, path, frozenset())
                elif entry.is_file() and info.st_mode & 0o004 and info.st_size <= _LARGEST_ETC_FILE:
                    shutil.copyfile(entry.path, path)
                    os.chmod(path, stat.S_IMODE(info.st_mode) & 0o755)
            except OSError:  # a file of the host that can't be read is one that a box does without
                continue


def _write_etc(etc: str) -> None:
    """Users and names of a box: the host's system accounts, no people, nobody's password."""
    users, groups = ["root:x:0:0:root:/root:/bin/bash"], ["root:x:0:"]
    for name, lines in (("passwd", users), ("group", groups)):
        with contextlib.suppress(OSError), open(f"{ETC}/{name}", encoding="utf-8", errors="replace") as file:
            for line in file:
                fields = line.rstrip("\n").split(":")
                if len(fields) < 4 or not fields[2].isdigit() or fields[0] == "root":
                    continue
                if int(fields[2]) < 1000 or fields[0] in ("nobody", "nogroup"):
                    lines.append(":".join((*fields[:3], "") if name == "group" else fields))
    if len(users) == 1:
        users.append("nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin")
        groups.append("nogroup:x:65534:")
    _write(f"{etc}/passwd", "\n".join(users) + "\n")
    _write(f"{etc}/group", "\n".join(groups) + "\n")
    _write(f"{etc}/shadow", _locked_accounts("shadow", users), 0o640)
    _write(f"{etc}/gshadow", _locked_accounts("gshadow", groups), 0o640)
    for name, text in _NAMES.items():
        _write(f"{etc}/{name}", text)


def _locked_accounts(name: str, lines: list[str]) -> str:
    rest = ":*:19000:0:99999:7:::" if name == "shadow" else ":*::"
    return "".join(f"{line.split(':')[0]}{rest}\n" for line in lines)


def _write(path: str, text: str, mode: int = 0o644) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


# --------------------------------------------------------------------------------------------------------------------
# The outer root, where bubblewrap is not there to build it


def enter_outer(plan: dict) -> None:
    """Builds the outer root in this (new) mount namespace as bubblewrap would, and pivots into it.

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
