"""Where trusted commands run: a copy of the files of a box, and a PID namespace that its programs do not see.

The programs of a box have a PID namespace of their own (:class:`Inner`) below that of the supervisor. A trusted command runs in
the namespace of the supervisor: it sees the programs of the box, but they can neither see nor signal it. Its file system is a
copy of the upper layers (:class:`Snapshot`), so nothing that the programs do meanwhile reaches it. It shares their network, so
servers that they have started answer.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

from . import linux, rootfs
from .guard import Guard

__all__ = ["Inner", "Snapshot"]

_SECONDS = 20.0


class Inner:
    """The PID namespace of the programs of a box. Its first process only sleeps; the kernel reaps orphans.

    Later children of this process belong to it.

    Args:
        proc: a descriptor of a writable /proc.
        mount: mounts the /proc of the PID namespace behind a descriptor, or with None that of the process that calls it.

    Attributes:
        pid: the first process, seen from outside.

    Raises:
        OSError: if it does not start.
    """

    def __init__(self, proc: int, mount: Callable[[int | None], None]) -> None:
        self._outer = os.open("self/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # inherited, so that the kernel reaps orphans
        try:
            self.pid = linux.start_sleeper(linux.CLONE_NEWPID)
        finally:
            signal.signal(signal.SIGCHLD, before)
        self._inner = os.open(f"{self.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        linux.setns(self._inner, linux.CLONE_NEWPID)
        try:
            mount(self._inner)
        except OSError:  # before Linux 6.17; a fork takes a millisecond
            linux.run_in_child(lambda: mount(None))
        with contextlib.suppress(OSError):  # the same numbers inside and outside: checks may read files with process ids
            linux.write_in_child("sys/kernel/ns_last_pid", str(self.pid + 1).encode(), proc)

    def kill(self) -> None:
        """Kills the first process, with which the kernel ends all others. Later children are outside."""
        linux.setns(self._outer, linux.CLONE_NEWPID)
        os.kill(self.pid, signal.SIGKILL)
        for fd in (self._inner, self._outer):
            os.close(fd)

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """Children that start meanwhile are outside: the programs of the box do not see them."""
        linux.setns(self._outer, linux.CLONE_NEWPID)
        try:
            yield
        finally:
            linux.setns(self._inner, linux.CLONE_NEWPID)


class Snapshot:
    """A copy of the file system of a box, in a mount namespace of its own.

    This process makes the copy itself, because a fork costs more than the copy of a few files.

    Args:
        outside: a descriptor of the mount namespace in which the layers of the box were mounted.
        home: a descriptor of the mount namespace of this process.
        owner: user id of the root of the box.
        disk_mb: size of the file system.
        guard: the guard of the box.

    Attributes:
        mounts: a descriptor of the mount namespace.
        guard: a guard over the copy.

    Raises:
        OSError: if the files cannot be copied.
    """

    def __init__(self, outside: int, home: int, owner: int, disk_mb: int, guard: Guard) -> None:
        self._fds: list[int] = []
        try:
            with _time_limit(_SECONDS):
                linux.setns(outside, linux.CLONE_NEWNS)
                linux.unshare(linux.CLONE_NEWNS)
                self._fds = rootfs.mount_copy(owner, disk_mb)
                self.mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, _LateError, RecursionError) as error:
            raise OSError(f"the files of the box cannot be copied: {str(error) or repr(error)}") from error
        finally:
            linux.setns(home, linux.CLONE_NEWNS)
        root, usr, upper, upper_usr = self._fds
        self._fds.append(self.mounts)
        self.guard = guard.over((root, usr), (upper, upper_usr))

    def close(self) -> None:
        """Gives the copy up; the kernel removes it when its last process has ended."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []


class _LateError(Exception):
    """Not an OSError, which the copying of single files may ignore."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _late(number: int, frame: object) -> None:
    raise _LateError(f"it takes longer than {_SECONDS:g} s")
