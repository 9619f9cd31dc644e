"""The file systems of programs and boxes: the outer root, the skeleton of a box, and the mounts of one execution.

The ``/`` of a box is an overlay over the skeleton. Its ``/usr`` is an overlay over that of the skeleton and that of the host.
With a root file system, the skeleton is a copy of it without ``/usr``, owned by the users of the box, and its ``/usr`` replaces
that of the host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat

from . import linux
from .guard import Guard, open_folder
from .layers import copy_layer

__all__ = ["ETC", "FS", "SKELETON", "build_skeleton", "enter_box", "enter_outer", "mount_copy"]
__all__ += ["mount_inner_proc", "mount_layers", "mount_program", "resize"]

FS = "/fs"  # mount points that the fork server and its supervisors use
ETC = "/fs/etc"  # the host's /etc, until the skeleton has been made from it
SKELETON = "/fs/skeleton"
_BOX = "/fs/box"
_COPY = f"{_BOX}/copy"  # what a trusted command sees
_USR = "/fs/usr"
_TREE = "/fs/rootfs"  # exists if boxes show a root file system instead of the host

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
    return f"{SKELETON}/usr", next(path for path in (_USR, f"{_TREE}/usr", "/usr") if os.path.isdir(f"{path}/bin"))


def _mount_view(base: str, owner: int) -> None:
    # Without root on the host, the overlay cannot use trusted extended attributes, so it uses user attributes.
    notes, root = "" if owner else ",userxattr", f"{base}/root"
    _overlay(root, SKELETON, f"{base}/upper", f"{base}/work", notes)
    _overlay(f"{root}/usr", ":".join(_lowers()), f"{base}/usr", f"{base}/usr-work", notes)
    linux.mount("/dev", f"{root}/dev", None, linux.MS_BIND | linux.MS_REC)
    for name in () if os.path.isdir(_TREE) else _SYSTEM:
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
# The skeleton: everything in a box except /usr. It is made once per fork server.


def build_skeleton(owner: int, userns: int | None) -> None:
    """Fills the skeleton from the root file system, or else from the host's world-readable /etc and the usual folders.

    Args:
        owner: user id, in this namespace, of the root user of boxes.
        userns: a user namespace with the id map of boxes. If the filesystem supports it, /usr is mounted with this map, and
            its files belong to the root of the box. Otherwise, they belong to the user nobody.
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
    """Copies a tree, except for /usr and folders that are mounts in a box, with ids shifted by the map of boxes."""
    with os.scandir(source) as entries:
        for entry in entries:
            path = f"{target}/{entry.name}"
            info = entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), path)
            elif entry.is_dir(follow_symlinks=False):
                os.mkdir(path, 0o700)
                with contextlib.suppress(PermissionError):  # without root on the host, unreadable folders are left out
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
                with contextlib.suppress(OSError):  # an id outside the map
                    os.chown(path, owner + info.st_uid, owner + info.st_gid, follow_symlinks=False)
            if not entry.is_symlink():
                os.chmod(path, stat.S_IMODE(info.st_mode))
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)


def _own_names(etc: str, owner: int) -> None:
    """Writes the names of a box into a tree that may come from another machine, and the files that could not be copied."""
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
    # Merged folders take their owner from the topmost layer, so these folders are writable for the root of the box.
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
            except OSError:  # unreadable files of the host are left out
                continue


def _write_etc(etc: str) -> None:
    """Writes the accounts and names of a box: the system accounts of the host, without people and passwords."""
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
