"""The skeleton of boxes: everything in a box except /usr. It is made once per fork server."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat

from . import linux
from .rootfs import ETC, SKELETON, SYSTEM, TREE, USR

__all__ = ["build_skeleton"]

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


def build_skeleton(owner: int, userns: int | None) -> None:
    """Fills the skeleton from the root file system, or else from the host's world-readable /etc and the usual folders.

    Args:
        owner: user id, in this namespace, of the root user of boxes.
        userns: a user namespace with the id map of boxes. If the filesystem supports it, /usr is mounted with this map, and
            its files belong to the root of the box. Otherwise, they belong to the user nobody.
    """
    own_tree = os.path.isdir(TREE)
    previous = os.umask(0)
    try:
        if own_tree:
            _copy_tree(TREE, SKELETON, owner)
            _own_names(f"{SKELETON}/etc", owner)
            _merge_usr(f"{TREE}/usr", owner)
        else:
            _imitate_host(owner)
    finally:
        os.umask(previous)
    if userns is not None:
        with contextlib.suppress(OSError):
            linux.idmapped(f"{TREE}/usr" if own_tree else "/usr", USR, userns)
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
    for name in SYSTEM:
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
