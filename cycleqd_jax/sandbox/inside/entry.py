"""Starts processes in a box: forks, enters the user namespace of the box, sets the limits, and runs a program."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import socket
from collections.abc import Callable

from . import linux
from .residents import BASH_FD

__all__ = ["Entry", "write_maps"]

_OPEN_FILES = 256
_exit = os._exit  # a program may replace that of the module
_STACK = 8 << 20
_SYNC_FD = 10
_SECONDS = 10.0  # for the few system calls between the fork and the program


def write_maps(proc: int, pid: int, line: str) -> None:
    """Writes the map of user and group ids of the new user namespace of process ``pid``.

    Args:
        proc: a descriptor of a writable /proc.
        pid: the process.
        line: the map.
    """
    for name in ("uid_map", "gid_map"):
        fd = os.open(f"{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


class Entry:
    """Starts the processes of one box. All processes of a ``box`` share the user namespace of the first.

    Args:
        kind: ``"python"``, ``"session"`` or ``"box"``.
        limits: the fields of a ``Limits``.
        env: the environment of programs.
        proc: a descriptor of a writable /proc; None for the isolation "none".
        owner: user id, in this namespace, of the root user of the box.
        id_map: the line of the uid_map and gid_map of the box.
        creator: a user id that no other box uses, to which the kernel charges quotas; 0 if there are no free ids.
    """

    def __init__(
        self, kind: str, limits: dict, env: dict[str, str], proc: int | None, owner: int, id_map: str, creator: int = 0
    ) -> None:
        self.is_box, self.long_lived = kind == "box", kind != "python"
        self.limits, self.env, self.proc, self.owner, self.id_map = limits, env, proc, owner, id_map
        self.creator = creator
        self.mounts: int | None = None  # the mount namespace of the next process, if it is not that of the supervisor
        self.userns: int | None = None

    def start(self, action: Callable[[], None], streams: tuple[int, int, int], cwd: str, marker: int = -1) -> int:
        """Starts a process with only its three streams (and the marker of a shell) open, and returns its pid.

        Raises:
            OSError: if it does not start, or if another process of the box has stopped or killed it before it started.
        """
        here, there = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            self._become_program(there, streams, cwd, marker, action)
        there.close()
        try:
            with here:
                here.settimeout(_SECONDS)
                if self.proc is not None:
                    if here.recv(1) == b"u":
                        write_maps(self.proc, pid, self.id_map)
                        if self.is_box:
                            self.userns = os.open(f"{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
                    here.send(b"g")
                message = here.recv(4096)
            if message:
                raise OSError(message.decode(errors="replace"))
        except OSError as error:
            os.kill(pid, signal.SIGKILL)  # a child that has not been reaped yet, so the pid is valid
            raise OSError(f"a program does not start: {error}") from error
        return pid

    def _become_program(
        self, sync: socket.socket, streams: tuple[int, int, int], cwd: str, marker: int, action: Callable[[], None]
    ) -> None:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            if self.mounts is not None:
                linux.setns(self.mounts, linux.CLONE_NEWNS)
            if self.proc is not None:
                self._enter_user_namespace(sync)
            # Copied above all descriptors in use first, so that none is overwritten before it has been copied.
            sources = (*streams, sync.fileno(), marker)
            high = [os.dup2(fd, 200 + i, inheritable=False) for i, fd in enumerate(sources) if fd >= 0]
            for target, fd in zip((0, 1, 2, _SYNC_FD, BASH_FD), high, strict=False):
                os.dup2(fd, target, inheritable=target != _SYNC_FD)
            os.closerange(3, BASH_FD if marker >= 0 else _SYNC_FD)
            os.closerange(_SYNC_FD + 1, 1 << 20)
            sync.detach()
            self._set_limits()
            if self.proc is not None:
                linux.drop_capabilities(linux.BOX_CAPABILITIES if self.is_box else frozenset())
                linux.set_dumpable()
                linux.no_new_privs()
                linux.seccomp()
            os.environ.clear()
            os.environ.update(self.env)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(_SYNC_FD if sync.fileno() < 0 else sync.fileno(), (str(error) or repr(error)).encode())
            os._exit(1)
        os.close(_SYNC_FD)
        try:
            os.chdir(cwd)
        except (OSError, ValueError) as error:
            os.write(2, f"{cwd}: {getattr(error, 'strerror', error)}\n".encode("utf-8", "replace"))
            os._exit(126)
        code = 1
        try:
            action()
            code = 0
        finally:  # this is a copy of the supervisor, whose own code must not continue here
            _exit(code)

    def _enter_user_namespace(self, sync: socket.socket) -> None:
        if self.userns is None:
            # The kernel charges quotas of a user namespace (inotify, POSIX timers) to its creator, so each box has its own.
            if self.owner and self.creator:
                os.setresuid(-1, self.creator, 0)
            linux.unshare(linux.CLONE_NEWUSER)
            sync.send(b"u")
        else:
            linux.setns(self.userns, linux.CLONE_NEWUSER)
            sync.send(b"j")
        sync.recv(1)
        if self.owner:
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)

    def _set_limits(self) -> None:
        limits, cpu = self.limits, max(1, math.ceil(self.limits["cpu_s"]))
        memory, disk = limits["memory_mb"] << 20, limits["disk_mb"] << 20
        values = [
            (resource.RLIMIT_CPU, cpu, resource.RLIM_INFINITY if self.long_lived else cpu + 1),
            (resource.RLIMIT_AS, memory, memory),
            (resource.RLIMIT_FSIZE, disk, disk),
            (resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),
            (resource.RLIMIT_CORE, 0, 0),
            # Deep recursion of programs needs a large stack; other programs take the limit as the size of each thread's stack.
            (resource.RLIMIT_STACK, _STACK if self.is_box else max(_STACK, memory // 2), resource.RLIM_INFINITY),
        ]
        if self.proc is not None:
            # A trusted command can start processes even if the others have used up the limit.
            processes = limits["processes"] * (1 if self.mounts is None else 2)
            values.append((resource.RLIMIT_NPROC, processes, processes))
        for what, soft, hard in values:
            _, most = resource.getrlimit(what)
            if most != resource.RLIM_INFINITY:
                soft, hard = min(soft, most), most if hard == resource.RLIM_INFINITY else min(hard, most)
            resource.setrlimit(what, (soft, hard))
