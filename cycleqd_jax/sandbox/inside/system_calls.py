"""The numbers of system calls, and the filter of those that programs in boxes may make."""

from __future__ import annotations

import functools
import platform
import struct

__all__ = ["build_filter", "number"]

_CLONE_ANY_NAMESPACE = 0x7E020000
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# name: (x86_64, aarch64). Programs in boxes need none of these. Each evades a limit or exposes a large part of the kernel.
_DENIED = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "ptrace": (101, 117),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "open_by_handle_at": (304, 265),
    "quotactl": (179, 60),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "prlimit64": (302, 261),
    "io_setup": (206, 0),  # its quota is that of the whole machine
    "fanotify_init": (300, 262),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_SOCKET = (41, 198)
_SOCKETPAIR = (53, 199)
_FAMILIES = (1, 2, 10)  # unix, inet, inet6; not netlink, packet, alg, nor vsock, which ignores network namespaces


def number(name: str) -> int:
    """The number of a system call on this machine."""
    return _DENIED[name][_architecture()[1]]


def _architecture() -> tuple[int, int]:
    try:
        return _ARCHITECTURES[platform.machine()]
    except KeyError:
        raise OSError(38, f"no system call table for machines of type {platform.machine()!r}") from None


@functools.cache
def build_filter() -> bytes:
    """The filter of :func:`.linux.seccomp`. It is built once, before any fork."""
    audit, column = _architecture()
    errno = 0x00050000
    allow, eperm, enosys, eafnosupport, kill = 0x7FFF0000, errno | 1, errno | 38, errno | 97, 0x80000000
    load = lambda offset: (0x20, 0, 0, offset)  # noqa: E731
    equal = lambda value, yes, no: (0x15, yes, no, value)  # noqa: E731
    ret = lambda value: (0x06, 0, 0, value)  # noqa: E731
    program = [load(4), equal(audit, 1, 0), ret(kill), load(0), (0x35, 0, 1, 0x40000000), ret(enosys)]
    for name, numbers in _DENIED.items():
        if name == "prlimit64":  # allowed for the process itself, refused for other processes
            continue
        program += [equal(numbers[column], 0, 1), ret(eperm)]
    program += [
        equal(_CLONE3[column], 0, 1),
        ret(enosys),
    ]  # its flags are behind a pointer; libc falls back to clone
    program += [equal(_CLONE[column], 0, 4), load(16), (0x45, 0, 1, _CLONE_ANY_NAMESPACE), ret(eperm), load(0)]
    program += [equal(_DENIED["prlimit64"][column], 0, 4), load(16), equal(0, 1, 0), ret(eperm), load(0)]
    for numbers in (_SOCKET, _SOCKETPAIR):
        program += [equal(numbers[column], 0, 6), load(16)]
        program += [equal(family, 2 - i, int(i == 2)) for i, family in enumerate(_FAMILIES)]
        program += [ret(allow), ret(eafnosupport)]
    program += [ret(allow)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
