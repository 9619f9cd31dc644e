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
import socket
from collections.abc import Callable, Iterator

from . import linux, rootfs
from .guard import Guard

__all__ = ["Inner", "Snapshot"]

_SECONDS = 20.0
_CONTROL_FD = 3


class Inner:
    """The PID namespace of the programs of a box. Its first process reaps orphans, and kills all others when it is told to.

    Later children of this process belong to it.

    Args:
        proc: a descriptor of a writable /proc.
        begin: called in the first process.

    Attributes:
        pid: the first process, seen from outside.

    Raises:
        OSError: if it does not start.
    """

    def __init__(self, proc: int, begin: Callable[[], None]) -> None:
        self._outer = os.open("self/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        self._control, theirs = socket.socketpair()
        linux.unshare(linux.CLONE_NEWPID)
        self.pid = os.fork()
        if self.pid == 0:
            _be_first(theirs, proc, begin)
        theirs.close()
        self._control.settimeout(_SECONDS)
        self._control.send(str(self.pid).encode())
        message = self._control.recv(4096)
        if message != b"ready":
            raise OSError(message.decode(errors="replace") or "the first process of a box has ended")
        self._inner = os.open(f"{self.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)

    def kill_all(self) -> None:
        """Kills all processes of the box."""
        self._control.send(b"k")
        self._control.recv(1)

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """Children that start meanwhile are outside: the programs of the box do not see them."""
        linux.setns(self._outer, linux.CLONE_NEWPID)
        try:
            yield
        finally:
            linux.setns(self._inner, linux.CLONE_NEWPID)


def _be_first(control: socket.socket, proc: int, begin: Callable[[], None]) -> None:
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps orphans
        number = control.recv(32)
        begin()
        with contextlib.suppress(OSError):  # the same numbers inside and outside: checks may read files with process ids
            last = os.open("sys/kernel/ns_last_pid", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
            os.write(last, number)
        os.dup2(control.fileno(), _CONTROL_FD)
        os.closerange(_CONTROL_FD + 1, 1 << 20)
        os.write(_CONTROL_FD, b"ready")
        while os.read(_CONTROL_FD, 1):
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGKILL)
            os.write(_CONTROL_FD, b".")
    except BaseException as error:
        with contextlib.suppress(OSError):
            control.send((str(error) or repr(error)).encode()[:4000])
    finally:
        os._exit(0)


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
            raise OSError(f"the files of the box cannot be copied: {error or repr(error)}") from error
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
