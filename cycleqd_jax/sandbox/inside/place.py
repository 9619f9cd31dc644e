"""The namespaces and mounts of a box. They do not depend on its commands, so a fork server makes them ahead of time."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable

from . import linux, rootfs
from .guard import Guard
from .snapshot import Inner, Snapshot

__all__ = ["NAMESPACES", "Place", "enter_namespaces"]

NAMESPACES = linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWNET
_DISK_MB = 64  # of a place that is made ahead of time
_END_SECONDS = 5.0  # most time for killed processes to end


def enter_namespaces() -> None:
    """Moves this process into the new namespaces of a program or box, with a network that has only ``lo``."""
    linux.unshare(NAMESPACES)
    linux.loopback_up()
    linux.sethostname("box")


class Place:
    """The namespaces and mounts of one box. This process enters the namespaces.

    Args:
        owner: user id of the root of the box.
        disk_mb: size of the file system.

    Attributes:
        proc: a descriptor of a writable /proc that is hidden from the box.
        outside: a descriptor of the mount namespace in which the layers of the box were mounted.
        home: a descriptor of the mount namespace of the box.
        inner: the PID namespace of its programs.

    Raises:
        OSError: if the sandbox does not work.
    """

    def __init__(self, owner: int, disk_mb: int = _DISK_MB) -> None:
        self._owner, self._disk_mb = owner, disk_mb
        self._copy: Snapshot | None = None
        enter_namespaces()
        self.proc = rootfs.mount_layers(owner, disk_mb)
        self.outside = self._mounts()
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
        self.home = self._mounts()
        self.inner = Inner(self.proc, rootfs.mount_inner_proc)

    def enter(self, disk_mb: int) -> Guard:
        """Sets the size of the file system, makes it the ``/`` of this process, and returns the guard over its layers."""
        if disk_mb != self._disk_mb:
            rootfs.resize(disk_mb)
        return rootfs.enter_box()

    def copy(self, guard: Guard, disk_mb: int) -> Snapshot:
        """The copy of the files for trusted commands. Consecutive ones share it.

        Args:
            guard: the guard of the box.
            disk_mb: size of the file system.

        Raises:
            OSError: if the files can't be copied.
        """
        if self._copy is None:
            self._copy = Snapshot(self.outside, self.home, self._owner, disk_mb, guard)
        return self._copy

    def give_up_copy(self) -> None:
        """The next trusted command gets a new copy."""
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    def kill_all(self, reap: Callable[[], None]) -> None:
        """Kills all processes of the box, and makes a PID namespace for later ones.

        Args:
            reap: reaps children of this process.
        """
        last = self.inner.pid
        self.inner.kill()
        end = time.monotonic() + _END_SECONDS
        while self._exists(last) and time.monotonic() < end:
            reap()
            time.sleep(0.001)
        self.inner = Inner(self.proc, functools.partial(rootfs.mount_inner_proc, root=""))

    def _exists(self, pid: int) -> bool:
        try:
            os.stat(str(pid), dir_fd=self.proc)
        except FileNotFoundError:
            return False
        return True

    def _mounts(self) -> int:
        return os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
