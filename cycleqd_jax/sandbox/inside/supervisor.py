"""The supervisor, pid 1 of one box: starts programs, enforces limits on time, output and memory, and reports results.

It stays outside the user namespace of the box, so programs in the box cannot trace, signal or impersonate it. When it ends, the
kernel ends all other processes of its PID namespace.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable

from . import frames, linux, program, rootfs
from .children import kill_children
from .entry import Entry
from .folders import remove_tree
from .guard import Guard, isolate
from .output import Gone, Output
from .place import Place, enter_namespaces
from .residents import Server, Shell, execute
from .stdin import open_input
from .usage import exceeds

__all__ = ["Box", "Setup", "main", "wait"]

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAM_ENV = {"PATH": f"/opt/python/bin:{_PATH}", "HOME": "/tmp", "LANG": "C.UTF-8"}
_BOX_ENV = {
    "PATH": _PATH,
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
_WATCH_SECONDS = 0.05
_END_SECONDS = 5.0  # most time for a killed process to end
_MOST_DEAD = 4096  # most processes to reap at a time, so that many forks cannot delay the timeout


class Setup:
    """The environment of a fork server.

    Attributes:
        isolated: false for the isolation "none".
        owner: user id, in this namespace, of the root user of boxes.
        id_map: the line of the uid_map and gid_map of boxes.
        creator: a user id of the next box alone; 0 if there are no free ids.
        folder: the parent of temporary folders, for the isolation "none".
    """

    isolated: bool
    owner: int
    id_map: str
    creator: int
    folder: str | None


def wait(queue: socket.socket, setup: Setup) -> None:
    """Makes the place of a box ahead of time, waits for the channel of the box on ``queue``, and serves it; never returns."""
    try:
        place = Place(setup.owner)
        _, fds, *_ = socket.recv_fds(queue, 1, 1)
        queue.close()
        if fds:
            main(socket.socket(fileno=fds[0]), setup, place)
    finally:
        os._exit(0)  # after an error, the fork server starts another supervisor, which reports its errors


def main(channel: socket.socket, setup: Setup, place: Place | None = None) -> None:
    """Serves one box over ``channel`` until the host process closes it; never returns.

    Args:
        channel: the socket to the host process.
        setup: the environment of the fork server.
        place: the namespaces of this process if they have been made ahead of time.
    """
    gc.disable()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the kernel ignores it for pid 1
    box = None
    try:
        request = frames.recv(channel)
        try:
            box = Box(channel, setup, request, place)
            getattr(box, "serve_" + request["kind"])(request)
        except Gone:
            raise
        except Exception as error:
            # If a program has run in the box, the program may be the cause of any error. The host process checks from outside
            # whether the sandbox works.
            fault = "killed" if box is not None and box.used else "infra"
            frames.send(channel, {fault: (str(error) or repr(error))[:1000]})
    except (Gone, EOFError, OSError):
        pass
    finally:
        try:
            if box is not None:
                box.end()
        finally:
            os._exit(0)  # never return into the code of the fork server, whatever the error


class Box:
    """The processes of one box, seen from its pid 1.

    Args:
        channel: the socket to the host process.
        setup: the environment of the fork server.
        request: the first message: ``kind``, ``limits``, and the fields of the kind.
        place: the namespaces of a ``box`` if they have been made ahead of time.

    Raises:
        OSError: if the sandbox does not work.
    """

    def __init__(self, channel: socket.socket, setup: Setup, request: dict, place: Place | None = None) -> None:
        self.channel, self.setup = channel, setup
        self.limits = request["limits"]
        self.used = False  # whether a requested program has started
        self.living: set[int] = set()
        self.dead: dict[int, tuple[int, float]] = {}  # pid: wait status, CPU seconds
        self.allowed: dict[str, str] = {}
        self.place = place
        self.shells: dict[int, Shell] = {}
        self.folder = "/tmp"
        self.next_watch = time.monotonic() + _WATCH_SECONDS
        self.is_box = request["kind"] == "box"
        self.env = dict(_BOX_ENV if self.is_box else _PROGRAM_ENV)
        self.wake, write = socket.socketpair()
        self.wake.setblocking(False)
        write.setblocking(False)
        self._write = write
        signal.signal(signal.SIGCHLD, _nothing)
        signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        self.proc, self.guard = self._prepare()
        self.entry = Entry(request["kind"], self.limits, self.env, self.proc, setup.owner, setup.id_map, setup.creator)

    def _prepare(self) -> tuple[int | None, Guard | None]:
        if not self.setup.isolated:
            self.folder = tempfile.mkdtemp(dir=self.setup.folder)
            self.env["HOME"] = self.folder
            if sys.platform == "linux":
                linux.become_subreaper()
                # There is no PID namespace to end with the fork server, so this process cleans up when the fork server ends.
                signal.signal(signal.SIGTERM, _give_up)
                linux.die_with_parent(signal.SIGTERM)
            return None, None
        if not self.is_box:
            enter_namespaces()
            return rootfs.mount_program(self.setup.owner, self.limits["disk_mb"]), None
        if self.place is None:
            self.place = Place(self.setup.owner, self.limits["disk_mb"])
        guard = self.place.enter(self.limits["disk_mb"])
        sys.path.clear()  # never import a file that a program wrote
        sys.meta_path.clear()
        return self.place.proc, guard

    # ----------------------------------------------------------------------------------------------------------------
    # Requests of the host process

    def serve_ping(self, request: dict) -> None:
        """Answers that the fork server works."""
        frames.send(self.channel, {"pong": True})

    def serve_python(self, request: dict) -> None:
        """Runs one program. Its input is a descriptor, because the program could read all that this process has read."""
        path = f"{self.folder}/main.py"
        source = request["source"]
        stdin = socket.recv_fds(self.channel, 1, 1)[1]
        begin = functools.partial(program.run, source, path)
        result = self.execute(begin, stdin[0] if stdin else "", self.folder, self.limits["wall_s"])
        frames.send(self.channel, result)

    def serve_session(self, request: dict) -> None:
        """Starts a server and passes requests and answers."""
        path = f"{self.folder}/main.py"
        source = request["source"]
        stdin, stdout, stderr = self.pipe(), self.pipe(), self.pipe()
        pid = self.spawn(lambda: program.run(source, path), (stdin[0], stdout[1], stderr[1]), self.folder)
        for fd in (stdin[0], stdout[1], stderr[1]):
            os.close(fd)
        server = Server(self, pid, stdin[1], stdout[0], stderr[0])
        frames.send(self.channel, {"ready": True})
        while True:
            request = self.next_request()
            reply = server.ask(request["line"].encode(), request["timeout"])
            frames.send(self.channel, reply)
            if "killed" in reply:
                return

    def serve_box(self, request: dict) -> None:
        """Runs single commands and commands of shells."""
        frames.send(self.channel, {"ready": True})
        while True:
            request = self.next_request()
            timeout = request.get("timeout") or self.limits["wall_s"]
            if self.place is not None and not request.get("trusted"):
                self.place.give_up_copy()  # other commands may change the files
            if request["do"] == "exec":
                cwd = self.folder if not self.setup.isolated and request["cwd"] == "/" else request["cwd"]
                self.allowed = request.get("allowed", {})
                run = self.execute_trusted if request["trusted"] else self.execute_command
                result = run(request["argv"], request["stdin"], cwd, timeout)
            elif request["do"] == "seal":
                if self.guard is not None:
                    self.guard.seal()
                result = {}
            elif request["do"] == "changes":
                result = {"changes": {} if self.guard is None else self.guard.changes()}
            else:
                number = request["shell"]
                if number not in self.shells:
                    self.shells[number] = Shell(self)
                result = self.shells[number].run(request["code"], timeout)
            frames.send(self.channel, result)

    def next_request(self) -> dict:
        """Waits for the next request, and enforces the limits on background processes."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        while True:
            ready = dict(poll.poll(1000))
            self.reap()
            if self.channel.fileno() in ready:
                try:
                    return frames.recv(self.channel)
                except (EOFError, OSError) as error:
                    raise Gone from error
            if self.too_large():
                self.kill_all()

    # ----------------------------------------------------------------------------------------------------------------
    # Processes

    def execute_command(self, argv: list[str], stdin: str, cwd: str, wall: float) -> dict:
        """Runs a command."""
        return self.execute(lambda: execute(argv), stdin, cwd, wall)

    def execute_trusted(self, argv: list[str], stdin: str, cwd: str, wall: float) -> dict:
        """Runs a trusted command on a copy of the files, where the programs of the box do not see it.

        Raises:
            OSError: if a program, library or setting of the system was changed, or the files can't be copied.
        """
        if self.guard is None or self.place is None:
            return self.execute_command(argv, stdin, cwd, wall)
        with self.place.inner.left():
            snapshot = self.place.copy(self.guard, self.limits["disk_mb"])
            # Checked twice: the command itself may run programs of users, which may change the system.
            snapshot.guard.refuse_changes(self.allowed)
            self.entry.mounts = snapshot.mounts
            try:
                result = self.execute(lambda: execute(isolate(argv)), stdin, cwd, wall)
            finally:
                self.entry.mounts = None
            snapshot.guard.refuse_changes(self.allowed)
        return result

    def execute(self, action: Callable[[], None], stdin: str | int, cwd: str, wall: float) -> dict:
        """Runs one process until it ends or reaches a limit."""
        with open_input(stdin) as file:
            read, write = self.pipe()
            try:
                begin = time.monotonic()
                pid = self.spawn(action, (file.fileno(), write, write), cwd)
                os.close(write)
                write = -1
                output = Output(read, self.limits["output_bytes"])
                end, why = begin + wall, ""
                while pid not in self.dead and not why:
                    why = self.wait([output], end)
                self.finish(pid)
                seconds = time.monotonic() - begin
                output.drain()
            finally:
                for fd in (read, write):
                    if fd >= 0:
                        os.close(fd)
        status, cpu = self.dead.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        # The kernel's limit counts whole timer ticks, so it may be reached before the exact CPU time.
        by_cpu = not why and code in (-signal.SIGXCPU, -signal.SIGKILL) and cpu >= 0.5 * self.limits["cpu_s"]
        timed_out = why == "time" or by_cpu
        return output.result(None if timed_out else code, timed_out, seconds)

    def pipe(self) -> tuple[int, int]:
        """Makes a pipe that the root of the box may also open by name (/dev/stdout)."""
        read, write = os.pipe()
        if self.setup.isolated:
            os.fchown(write, self.setup.owner, self.setup.owner)
        return read, write

    def spawn(self, action: Callable[[], None], streams: tuple[int, int, int], cwd: str, marker: int = -1) -> int:
        """Starts a process in the box, see :meth:`Entry.start`. When it has ended, its pid is in :attr:`dead`."""
        pid = self.entry.start(action, streams, cwd, marker)
        self.living.add(pid)
        self.used = self.used or marker < 0  # a shell runs nothing before its first command
        return pid

    def reap(self) -> None:
        """Reaps every child that has ended, including orphans."""
        with contextlib.suppress(BlockingIOError):
            self.wake.recv(4096)
        for _ in range(_MOST_DEAD):
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.living:  # not an orphan
                self.living.remove(pid)
                self.dead[pid] = status, usage.ru_utime + usage.ru_stime

    def wait(self, outputs: list[Output], end: float) -> str:
        """Waits a moment for output or the end of a process. Returns the limit that was reached, or an empty string."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        poll.register(self.channel, select.POLLIN)
        sources = {output.fd: output for output in outputs if not output.ended}
        for fd in sources:
            poll.register(fd, select.POLLIN)
        left = end - time.monotonic()
        ready = dict(poll.poll(1000 * max(0.0, min(left, _WATCH_SECONDS))))
        if self.channel.fileno() in ready:  # the host process sends nothing during a request, so it has closed the box
            raise Gone
        for fd, output in sources.items():
            if fd in ready and not output.read():
                return "output"
        self.reap()
        if time.monotonic() >= end:
            return "time"
        if time.monotonic() >= self.next_watch:
            self.next_watch = time.monotonic() + _WATCH_SECONDS
            if self.too_large():
                return "memory"
        return ""

    def too_large(self) -> bool:
        """Whether all processes together use too much memory, or are too many."""
        if not self.setup.isolated:
            return False
        assert self.proc is not None
        own = {"1"} if self.place is None else {"1", str(self.place.inner.pid)}
        return exceeds(self.proc, own, self.limits["processes"], self.limits["memory_mb"])

    def finish(self, pid: int) -> None:
        """Kills a process if it is running, and waits for its end.

        Raises:
            OSError: if it does not end.
        """
        if pid not in self.dead:
            self.kill(pid)
            end = time.monotonic() + _END_SECONDS
            while pid not in self.dead:
                if self.wait([], end) == "time" and pid not in self.dead:
                    raise OSError("a killed process does not end")

    def kill(self, pid: int) -> None:
        """In a ``box``, kills a process and its group. Elsewhere, kills all processes."""
        if self.is_box and self.setup.isolated:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        else:
            self.kill_all()

    def kill_all(self) -> None:
        """Kills everything in the box."""
        if self.place is not None:
            self.place.kill_all(self.reap)
            return
        if self.setup.isolated:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            return
        kill_children(self.reap)

    def end(self) -> None:
        """Ends all processes and removes the temporary folder, without isolation. With isolation, the kernel does it."""
        if not self.setup.isolated:
            self.kill_all()
            remove_tree(self.folder)


def _give_up(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Gone


def _nothing(number: int, frame: object) -> None:
    """Handles SIGCHLD, so that the wake-up descriptor is written to."""
