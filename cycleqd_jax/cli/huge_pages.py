"""Huge pages of memory, which large arrays on CPUs need to be fast."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["restart_with_huge_pages"]

_MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES, _RESTARTED = "GLIBC_TUNABLES", "CYCLEQD_RESTARTED"
_HUGE = "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Starts the program of this process again, with an allocator that asks the kernel for huge pages.

    XLA allocates the temporaries of every call anew on CPUs. In pages of 4 kB the kernel takes longer to give them than some
    programs compute: MobileSAM's image encoder takes 1.5 times as long. glibc reads the setting when a process starts, and from
    the environment alone. Nothing happens where the kernel gives huge pages in any case or never, where the C library is
    another one or older than 2.35, or where ``GLIBC_TUNABLES`` has the setting already. The process keeps its id, and the
    processes that it starts do not get the setting.
    """
    if os.environ.pop(_RESTARTED, None) == str(os.getpid()):
        _set(os.environ.get(_TUNABLES, "").removesuffix(f"{_HUGE}=1").removesuffix(":"))
        return
    given = os.environ.get(_TUNABLES, "")
    if _HUGE in given or not (_asks_for_pages() and _has_setting() and sys.executable and sys.orig_argv):
        return
    os.environ[_RESTARTED] = str(os.getpid())
    _set(f"{given}:{_HUGE}=1" if given else f"{_HUGE}=1")
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(sys.executable, sys.orig_argv)
    except OSError:  # it works without huge pages too
        del os.environ[_RESTARTED]
        _set(given)


def _set(tunables: str) -> None:
    if tunables:
        os.environ[_TUNABLES] = tunables
    else:
        os.environ.pop(_TUNABLES, None)


def _asks_for_pages() -> bool:
    """Whether the kernel gives huge pages to those who ask for them."""
    try:
        return "[madvise]" in _MODES.read_text("ascii")
    except (OSError, ValueError):
        return False


def _has_setting() -> bool:
    """Whether the C library is one that knows the setting."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        major, minor = version.split(".")[:2]
        return name == "glibc" and (int(major), int(minor)) >= (2, 35)
    except (AttributeError, OSError, ValueError):
        return False
