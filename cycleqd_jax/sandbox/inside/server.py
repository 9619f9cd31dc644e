"""The fork server: a single-threaded process that forks a supervisor for every execution.

It never reads requests. Each message on its control socket is one byte and one descriptor: a socket between the supervisor
(pid 1 of a new PID namespace) and the host process. So no two boxes share a channel. After the first box, one supervisor always
has the namespaces of the next box ready.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import resource
import secrets
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable

from . import entry, frames, linux, program, rootfs, skeleton, supervisor, system_calls
from .folders import remove_tree

__all__ = ["main"]

# First user id of boxes and number of ids. If root has all ids, they are far from those in use. Otherwise (in a container with
# 65,536 ids), they are the upper half.
_BOX_IDS = ((1_610_612_736, 65_536), (32_768, 32_768))
_LAST_ID = 4_000_000_000
_STACK_ROOM = 4 << 30
_THREAD_STACK = 8 << 20
_NAMESPACES = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWNET


def main() -> None:
    """Serves the control socket on descriptor 0 until its other end is closed or the host process has ended."""
    _make_room_for_stacks()
    control = socket.socket(fileno=os.dup(0))
    watched = socket.recv_fds(control, 1, 1)[1]
    plan = frames.recv(control)
    setup = None
    try:
        if plan["isolation"] == "userns":
            _enter_namespaces(plan, control)
        setup = _Setup(plan)
        frames.send(control, {"ready": True})
    except OSError as error:
        frames.send(control, {"error": str(error)})
        os._exit(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    program.preload()
    if setup.isolated:
        system_calls.build_filter()
    sys.path[:] = [path for path in sys.path if path and path != plan["library"]]
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        _serve(control, watched, setup)
    finally:
        setup.close()
        os._exit(0)


def _make_room_for_stacks() -> None:
    """Starts this program anew with a higher limit: the kernel reserves addresses for the stack when a program starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = _STACK_ROOM if hard == resource.RLIM_INFINITY else min(hard, _STACK_ROOM)
    if soft != resource.RLIM_INFINITY and soft < wanted and sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    threading.stack_size(_THREAD_STACK)  # else threads would get stacks as large as the limit


class _Setup(supervisor.Setup):
    """The environment of this fork server."""

    def __init__(self, plan: dict) -> None:
        self.isolated = plan["isolation"] != "none"
        self.owner, self.id_map, self.creator = 0, "0 0 1", 0
        self._creators = (0, 0)
        self.folder = plan["folder"]
        self.has_skeleton = False
        if not self.isolated:
            return
        if not plan["new_user"]:
            self.owner, count = _free_ids()
            self.id_map = f"0 {self.owner} {count}"
            if self.owner == _BOX_IDS[0][0]:  # far from all other ids; fork servers begin at different ones
                first = self.owner + count
                self._creators = first, _LAST_ID - first
                self.creator = first + secrets.randbelow(_LAST_ID - first)
        for path in plan["devices"]:  # programs write to devices, so bubblewrap's --remount-ro would be too strict
            linux.read_only(path)
        os.umask(0o022)

    def close(self) -> None:
        if self.folder is not None:
            remove_tree(self.folder)

    def next_box(self) -> None:
        """Chooses another creator for the next box."""
        first, count = self._creators
        if count:
            self.creator = first + (self.creator - first + 1) % count

    def make_skeleton(self) -> None:
        if self.has_skeleton or not self.isolated:
            return
        userns = self._example_userns() if self.owner else None
        try:
            skeleton.build_skeleton(self.owner, userns)
        finally:
            if userns is not None:
                os.close(userns)
        self.has_skeleton = True

    def _example_userns(self) -> int:
        """Opens a user namespace with the id map of boxes."""
        here, there = socket.socketpair()
        child = os.fork()
        if child == 0:
            linux.unshare(linux.CLONE_NEWUSER)
            there.send(b"u")
            there.recv(1)
            os._exit(0)
        try:
            there.close()
            here.recv(1)
            proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                entry.write_maps(proc, child, self.id_map)
            finally:
                os.close(proc)
            return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            here.close()


def _free_ids() -> tuple[int, int]:
    """The first user id of boxes and the number of ids."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        mapped = [tuple(map(int, line.split())) for line in file]
    for first, count in _BOX_IDS:
        if any(start <= first and first + count <= start + size for start, _, size in mapped):
            return first, count
    raise OSError("there are no user ids for boxes, because root has fewer than 65,536")


def _enter_namespaces(plan: dict, control: socket.socket) -> None:
    """Enters new namespaces and a new root, as bubblewrap does for the isolation "bwrap"."""
    uid, gid = os.getuid(), os.getgid()
    if plan["new_user"]:
        linux.unshare(linux.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    linux.unshare(_NAMESPACES)
    child = os.fork()
    if child:
        control.close()
        for fd in range(3):
            os.close(fd)
        os.waitpid(child, 0)
        os._exit(0)
    linux.die_with_parent()
    rootfs.enter_outer(plan)


def _serve(control: socket.socket, watched: list[int], setup: _Setup) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors need no reaping
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if setup.isolated else -1
    poll = select.poll()
    poll.register(control, select.POLLIN)
    for fd in watched:  # a pidfd of the host process, readable when the process ends
        poll.register(fd, select.POLLIN)
    spare: socket.socket | None = None  # leads to a supervisor that waits for the next box
    while True:
        ready = dict(poll.poll())
        if any(fd in ready for fd in watched):
            return
        data, fds, *_ = socket.recv_fds(control, 1, 1)
        if not data:
            return
        if not fds:
            continue
        ours = [fd for fd in (control.fileno(), *watched, own) if fd >= 0]
        with socket.socket(fileno=fds[0]) as channel:
            try:
                if data != b"b" or not setup.isolated:
                    unused = [] if spare is None else [spare.fileno()]
                    _start(setup, own, [*ours, *unused], functools.partial(supervisor.main, channel, setup))
                    continue
                setup.make_skeleton()
                if spare is None or not _hand_over(spare, channel):
                    _start(setup, own, ours, functools.partial(supervisor.main, channel, setup))
            except OSError as error:
                with contextlib.suppress(OSError):
                    frames.send(channel, {"infra": str(error)})
        spare = _spare(setup, own, ours)


def _start(setup: _Setup, own: int, unused: list[int], action: Callable[[], None]) -> None:
    """Forks a supervisor, with isolation in a new PID namespace.

    Args:
        setup: the environment.
        own: a descriptor of the PID namespace of this process.
        unused: descriptors that the supervisor closes.
        action: what the supervisor does.

    Raises:
        OSError: if it does not start.
    """
    setup.next_box()
    try:
        if setup.isolated:
            linux.unshare(linux.CLONE_NEWPID)
        if os.fork() == 0:
            for fd in unused:
                os.close(fd)
            action()
            os._exit(0)
    finally:
        if setup.isolated:
            linux.setns(own, linux.CLONE_NEWPID)


def _spare(setup: _Setup, own: int, unused: list[int]) -> socket.socket | None:
    """Starts a supervisor that prepares the next box ahead of time; None if it does not start."""
    queue, theirs = socket.socketpair()
    with theirs:
        try:
            _start(setup, own, [*unused, queue.fileno()], functools.partial(supervisor.wait, theirs, setup))
        except OSError:
            queue.close()
            return None
    return queue


def _hand_over(spare: socket.socket, channel: socket.socket) -> bool:
    """Gives the channel of a box to the supervisor that waits for it. Returns false if that supervisor has ended."""
    with spare, contextlib.suppress(OSError):
        socket.send_fds(spare, [b"b"], [channel.fileno()])
        return True
    return False
