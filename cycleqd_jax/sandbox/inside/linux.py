"""The Linux calls that Python 3.11 lacks: namespaces, mounts, capabilities, seccomp.

Every function raises ``OSError`` with the name of the call if the kernel refuses it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import mmap
import os
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any

from . import system_calls

__all__ = [
    "BOX_CAPABILITIES",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "become_subreaper",
    "die_with_parent",
    "drop_capabilities",
    "idmapped",
    "loopback_up",
    "mount",
    "mount_proc",
    "no_new_privs",
    "pivot_root",
    "read_only",
    "run_in_child",
    "seccomp",
    "set_dumpable",
    "sethostname",
    "setns",
    "start_sleeper",
    "umount",
    "unshare",
    "write_in_child",
]

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_CLONE_VM = 0x00000100
_CLONE_VFORK = 0x00004000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
_MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442

# CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP:
# Docker's default set; and SYS_PTRACE, without which root would not see the processes of other users. They apply only in the
# user namespace of the box: they allow no devices, and no sniffing of networks other than the lo of the box.
BOX_CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 19, 27, 29, 31})
_LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.syscall.restype = ctypes.c_long
_libc.fdopen.restype = ctypes.c_void_p
_libc.fwrite.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
_libc.fclose.argtypes = [ctypes.c_void_p]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Moves this process into new namespaces."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def setns(fd: int, flags: int) -> None:
    """Joins the namespace behind ``fd``."""
    _check(_libc.setns(fd, ctypes.c_int(flags)), "setns")


def start_sleeper(flags: int) -> int:
    """Starts a process that sleeps until it is killed, in the namespaces that ``flags`` makes, and returns its pid.

    It shares the memory of this process, so it costs no more than a thread. It runs no Python: signals must not have handlers.
    """
    return _clone(_libc.pause, None, flags)


def run_in_child(action: Callable[[], object]) -> None:
    """Calls a function in a forked child of this process, and waits for its end. This process must have no other threads.

    Raises:
        OSError: the function raised an error, or the child was killed.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode()[:4000])
        finally:
            os._exit(status)
    os.close(writer)
    try:
        message = os.read(reader, 4096).decode("utf-8", "replace")
    finally:
        os.close(reader)
    with contextlib.suppress(ChildProcessError):  # reaped by the kernel
        _, status = os.waitpid(pid, 0)
        if status and not message:
            raise OSError(f"a child of the sandbox ended with status {status}")
    if message:
        raise OSError(message)


def write_in_child(path: str, data: bytes, folder: int) -> None:
    """Writes a file in a child process: some files of /proc belong to the PID namespace of the process that writes.

    The child shares the memory of this process, which waits for it, and runs no Python. There must be no other threads.

    Args:
        path: the file, below ``folder``.
        data: at most a few kilobytes.
        folder: a descriptor of a folder.

    Raises:
        OSError: the file can't be opened or written.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    stream = _libc.fdopen(fd, b"w")
    _libc.fwrite(data, 1, len(data), stream)  # to the buffer of the stream
    pid = _clone(_libc.fflush, stream, _CLONE_VFORK)
    _stacks.pop()
    _libc.fclose(stream)
    with contextlib.suppress(ChildProcessError):  # reaped by the kernel
        _, status = os.waitpid(pid, 0)
        if status:
            raise OSError(f"{path}: a child process can't write it (status {status})")


_STACK = 1 << 19
_stacks: list[mmap.mmap] = []  # of processes that still run


def _clone(function: Any, argument: int | None, flags: int) -> int:
    """Starts a process that calls a C function of one argument, on a stack of its own."""
    stack = mmap.mmap(-1, _STACK)
    top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + _STACK
    _stacks.append(stack)
    flags |= _CLONE_VM | signal.SIGCHLD
    code = ctypes.cast(function, ctypes.c_void_p)
    return _check(_libc.clone(code, ctypes.c_void_p(top), ctypes.c_int(flags), ctypes.c_void_p(argument)), "clone")


def sethostname(name: str) -> None:
    """Sets the host name of this UTS namespace."""
    data = name.encode()
    _check(_libc.sethostname(data, len(data)), "sethostname")


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    """Mounts ``source`` of filesystem type ``kind`` on ``target``."""
    result = _libc.mount(
        source.encode(), target.encode(), kind and kind.encode(), flags, None if options is None else options.encode()
    )
    _check(result, f"mount {kind or 'bind'} on {target}")


def umount(target: str) -> None:
    """Detaches what is mounted on ``target``."""
    _check(_libc.umount2(target.encode(), _MNT_DETACH), f"umount {target}")


def pivot_root(root: str, old: str = "") -> None:
    """Makes the mount point ``root`` the ``/`` of this mount namespace. The old root is unmounted, or moved to ``old``."""
    os.chdir(root)
    _check(_libc.syscall(system_calls.number("pivot_root"), b".", old.encode() or b"."), "pivot_root")
    if not old:
        umount(".")
    os.chdir("/")


def read_only(target: str) -> None:
    """Makes the mounts on and below ``target`` read-only and nosuid."""
    attributes = struct.pack("=QQQQ", 1 | 2, 0, 0, 0)
    number = _MOUNT_SETATTR
    _check(_libc.syscall(number, -100, target.encode(), 0x8000, attributes, len(attributes)), f"read-only {target}")


def _prctl(option: int, *args: int, what: str) -> None:
    padded = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(ctypes.c_int(option), *padded), what)


def die_with_parent(signal: int = 9) -> None:
    """Asks the kernel to send this process a signal when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal, what="prctl(PDEATHSIG)")


def set_dumpable() -> None:
    """Gives this process access to its own /proc/self, which it loses when its user changes."""
    _prctl(_PR_SET_DUMPABLE, 1, what="prctl(DUMPABLE)")


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, what="prctl(CHILD_SUBREAPER)")


def no_new_privs() -> None:
    """Prevents this process and its children from gaining privileges when they execute a program."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, what="prctl(NO_NEW_PRIVS)")


def drop_capabilities(keep: frozenset[int] = frozenset()) -> None:
    """Drops every capability except those in ``keep``, for this process and its children."""
    for capability in range(_LAST_CAPABILITY + 1):
        if capability not in keep:
            result = _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
            if result < 0:
                if ctypes.get_errno() == 22:  # beyond the last capability of this kernel
                    break
                _check(result, "prctl(CAPBSET_DROP)")
    mask = sum(1 << capability for capability in keep)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", 0x20080522, 0)
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    _check(_libc.capset(header, data), "capset")


def loopback_up() -> None:
    """Brings ``lo`` up in this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


def idmapped(source: str, target: str, userns: int) -> None:
    """Mounts the tree ``source`` on ``target`` with its owners shifted by the map of the user namespace ``userns``."""
    fd = _check(_libc.syscall(_OPEN_TREE, -100, source.encode(), ctypes.c_uint(1 | os.O_CLOEXEC)), f"open_tree {source}")
    try:
        attributes = struct.pack("=QQQQ", 0x00100000, 0, 0, userns)
        _check(_libc.syscall(_MOUNT_SETATTR, fd, b"", 0x1000, attributes, len(attributes)), "mount_setattr(IDMAP)")
        _move_mount(fd, target)
    finally:
        os.close(fd)


def mount_proc(target: str, pidns: int) -> None:
    """Mounts the /proc of the PID namespace behind ``pidns`` on ``target``. Users see only processes that they may trace.

    Raises:
        OSError: among others before Linux 6.17.
    """
    fd = _check(_libc.syscall(system_calls.number("fsopen"), b"proc", 1), "fsopen proc")
    try:
        configure = functools.partial(_libc.syscall, system_calls.number("fsconfig"), fd)
        _check(configure(1, b"hidepid", b"2", 0), "fsconfig hidepid")  # FSCONFIG_SET_STRING
        _check(configure(5, b"pidns", None, pidns), "fsconfig pidns")  # FSCONFIG_SET_FD
        _check(configure(6, None, None, 0), "fsconfig proc")  # FSCONFIG_CMD_CREATE
        mounted = _check(_libc.syscall(system_calls.number("fsmount"), fd, 1, MS_NOSUID | MS_NODEV | MS_NOEXEC), "fsmount proc")
    finally:
        os.close(fd)
    try:
        _move_mount(mounted, target)
    finally:
        os.close(mounted)


def _move_mount(fd: int, target: str) -> None:
    """Puts the mount behind ``fd`` on ``target``."""
    _check(_libc.syscall(_MOVE_MOUNT, fd, b"", -100, target.encode(), 4), f"move_mount {target}")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def seccomp() -> None:
    """Refuses the system calls that programs in boxes do not need, for this process and its children."""
    code = system_calls.build_filter()
    program = _Program(len(code) // 8, code)
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0), "prctl(SECCOMP)")
