"""Pid 1 of one box: starts what runs in it, holds its clock, its output and its memory to the limits, and reports.

It stays outside the box's user namespace, so nothing in the box can trace, signal or impersonate it; when it ends, the
kernel ends everything else in its PID namespace.
"""

from __future__ import annotations

import contextlib
import gc
import io
import math
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from . import frames, linux, program, rootfs
from .output import Gone, Output
from .residents import BASH_FD, Server, Shell, execute
from .usage import proportional, resident, sysv_memory

__all__ = ["Box", "Setup", "main", "write_maps"]

_NAMESPACES = linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWNET
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAM_ENV = {"PATH": _PATH, "HOME": "/tmp", "LANG": "C.UTF-8"}
_BOX_ENV = {
    "PATH": _PATH,
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
_OPEN_FILES = 256
_WATCH_SECONDS = 0.05
_SYNC_FD = 10


class Setup:
    """What a supervisor must know of the fork server's surroundings.

    Attributes:
        isolated: false for the isolation "none".
        owner: a box's root user, as a user id here.
        id_map: the line of a box's uid_map and gid_map.
        folder: where temporary folders go, for the isolation "none".
    """

    isolated: bool
    owner: int
    id_map: str
    folder: str | None


def write_maps(proc: int, pid: int, line: str) -> None:
    """Gives the new user namespace of process ``pid`` its map of user and group ids, through the /proc behind ``proc``."""
    for name in ("uid_map", "gid_map"):
        fd = os.open(f"{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


def main(channel: socket.socket, setup: Setup) -> None:
    """Serves one box over ``channel`` until the host process closes it; never returns."""
    gc.disable()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored by the kernel for pid 1, and none of our business otherwise
    box = None
    try:
        request = frames.recv(channel)
        try:
            box = Box(channel, setup, request)
            getattr(box, "serve_" + request["kind"])(request)
        except Gone:
            raise
        except Exception as error:
            frames.send(channel, {"infra": str(error) or repr(error)})
    except (Gone, EOFError, OSError):
        pass
    finally:
        if box is not None:
            box.end()
        os._exit(0)


class Box:
    """The processes of one box, seen from its pid 1.

    Args:
        channel: the socket to the host process.
        setup: the fork server's surroundings.
        request: the first message: ``kind``, ``limits`` and what the kind needs.

    Raises:
        OSError: the sandbox does not work.
    """

    def __init__(self, channel: socket.socket, setup: Setup, request: dict) -> None:
        self.channel, self.setup = channel, setup
        self.limits = request["limits"]
        self.userns: int | None = None
        self.dead: dict[int, tuple[int, float]] = {}  # pid: wait status, CPU seconds
        self.shells: dict[int, Shell] = {}
        self.folder = "/tmp"
        self.next_watch = time.monotonic() + _WATCH_SECONDS
        self.is_box = request["kind"] == "box"
        self.long_lived = request["kind"] != "python"
        self.env = dict(_BOX_ENV if self.is_box else _PROGRAM_ENV)
        self.wake, write = socket.socketpair()
        self.wake.setblocking(False)
        write.setblocking(False)
        self._write = write
        signal.signal(signal.SIGCHLD, _nothing)
        signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        self._prepare()

    def _prepare(self) -> None:
        if not self.setup.isolated:
            self.folder = tempfile.mkdtemp(dir=self.setup.folder)
            self.env["HOME"] = self.folder
            if sys.platform == "linux":
                linux.become_subreaper()
                # No PID namespace ends with the fork server: tidy up when it ends.
                signal.signal(signal.SIGTERM, _give_up)
                linux.die_with_parent(signal.SIGTERM)
            return
        linux.unshare(_NAMESPACES)
        linux.loopback_up()
        linux.sethostname("box")
        if self.is_box:
            self.proc = rootfs.mount_box(self.setup.owner, self.limits["disk_mb"])
            sys.path.clear()  # nothing that a program wrote is ever imported here
            sys.meta_path.clear()
        else:
            self.proc = rootfs.mount_program(self.setup.owner, self.limits["disk_mb"])

    # ----------------------------------------------------------------------------------------------------------------
    # What the host process asks for

    def serve_ping(self, request: dict) -> None:
        """Says that all is well."""
        frames.send(self.channel, {"pong": True})

    def serve_python(self, request: dict) -> None:
        """Runs one program."""
        path = f"{self.folder}/main.py"
        source = request["source"]
        result = self.execute(lambda: program.run(source, path), request["stdin"], self.folder, self.limits["wall_s"])
        frames.send(self.channel, result)

    def serve_session(self, request: dict) -> None:
        """Starts a server and passes lines to it and back."""
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
        """Runs commands, independent ones and those typed to shells."""
        frames.send(self.channel, {"ready": True})
        while True:
            request = self.next_request()
            timeout = request.get("timeout") or self.limits["wall_s"]
            if request["do"] == "exec":
                argv, cwd = request["argv"], request["cwd"]
                if not self.setup.isolated and cwd == "/":
                    cwd = self.folder
                result = self.execute(lambda argv=argv: execute(argv), request["stdin"], cwd, timeout)
            else:
                number = request["shell"]
                if number not in self.shells:
                    self.shells[number] = Shell(self)
                result = self.shells[number].run(request["code"], timeout)
            frames.send(self.channel, result)

    def next_request(self) -> dict:
        """Waits for the host process, while background processes stay within their limits."""
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

    def execute(self, action: Callable[[], None], stdin: str, cwd: str, wall: float) -> dict:
        """Runs one process to its end, or to the end of its limits."""
        with _input(stdin) as file:
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
                if pid not in self.dead:
                    self.kill(pid)
                    while pid not in self.dead:
                        self.wait([], math.inf)
                seconds = time.monotonic() - begin
                output.drain()
            finally:
                for fd in (read, write):
                    if fd >= 0:
                        os.close(fd)
        status, cpu = self.dead.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        # The kernel's limit counts whole timer ticks and so may strike earlier than this exact figure says.
        timed_out = why == "time" or (code in (-signal.SIGXCPU, -signal.SIGKILL) and cpu >= 0.5 * self.limits["cpu_s"])
        return output.result(None if timed_out else code, timed_out, seconds)

    def pipe(self) -> tuple[int, int]:
        """A pipe that the box's root may also open by name (/dev/stdout)."""
        read, write = os.pipe()
        if self.setup.isolated:
            os.fchown(write, self.setup.owner, self.setup.owner)
        return read, write

    def spawn(self, action: Callable[[], None], streams: tuple[int, int, int], cwd: str, marker: int = -1) -> int:
        """Starts a process inside the box, with nothing but its three streams (and the shell's marker) open."""
        here, there = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            self._become_program(there, streams, cwd, marker, action)
        there.close()
        with here:
            if self.setup.isolated:
                if here.recv(1) == b"u":
                    write_maps(self.proc, pid, self.setup.id_map)
                    if self.is_box:
                        self.userns = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
                here.send(b"g")
            message = here.recv(4096)
        if message:
            raise OSError(f"a program does not start: {message.decode(errors='replace')}")
        return pid

    def _become_program(
        self, sync: socket.socket, streams: tuple[int, int, int], cwd: str, marker: int, action: Callable[[], None]
    ) -> None:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            if self.setup.isolated:
                self._enter_user_namespace(sync)
            # Above all descriptors in use first, so that none is overwritten before it was copied.
            sources = (*streams, sync.fileno(), marker)
            high = [os.dup2(fd, 200 + i, inheritable=False) for i, fd in enumerate(sources) if fd >= 0]
            for target, fd in zip((0, 1, 2, _SYNC_FD, BASH_FD), high, strict=False):
                os.dup2(fd, target, inheritable=target != _SYNC_FD)
            os.closerange(3, BASH_FD if marker >= 0 else _SYNC_FD)
            os.closerange(_SYNC_FD + 1, 1 << 20)
            sync.detach()
            self._set_limits()
            if self.setup.isolated:
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
        except OSError as error:
            os.write(2, f"{cwd}: {error.strerror}\n".encode("utf-8", "replace"))
            os._exit(126)
        action()
        os._exit(0)

    def _enter_user_namespace(self, sync: socket.socket) -> None:
        if self.userns is None:
            linux.unshare(linux.CLONE_NEWUSER)
            sync.send(b"u")
        else:
            linux.setns(self.userns, linux.CLONE_NEWUSER)
            sync.send(b"j")
        sync.recv(1)
        if self.setup.owner:
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
        ]
        if self.setup.isolated:
            values.append((resource.RLIMIT_NPROC, limits["processes"], limits["processes"]))
        for what, soft, hard in values:
            _, most = resource.getrlimit(what)
            if most != resource.RLIM_INFINITY:
                soft, hard = min(soft, most), most if hard == resource.RLIM_INFINITY else min(hard, most)
            resource.setrlimit(what, (soft, hard))

    def reap(self) -> None:
        """Collects every child that has ended, ours and orphans alike."""
        with contextlib.suppress(BlockingIOError):
            self.wake.recv(4096)
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.dead[pid] = status, usage.ru_utime + usage.ru_stime
            if len(self.dead) > 1000:  # orphans nobody asks after
                self.dead.pop(next(iter(self.dead)))

    def wait(self, outputs: list[Output], end: float) -> str:
        """Waits a moment for output, for the end of a process, and for limits; says which limit is reached."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        poll.register(self.channel, select.POLLIN)
        sources = {output.fd: output for output in outputs if not output.ended}
        for fd in sources:
            poll.register(fd, select.POLLIN)
        left = end - time.monotonic()
        ready = dict(poll.poll(1000 * max(0.0, min(left, _WATCH_SECONDS))))
        if self.channel.fileno() in ready:  # nothing is sent while we work: the host process has given up
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
        """Whether all processes together have too much memory, or are too many."""
        if not self.setup.isolated:
            return False
        names = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        if len(names) > 4 * self.limits["processes"]:
            return True
        most = self.limits["memory_mb"] << 20
        shared = sysv_memory()
        if shared + sum(resident(name) for name in names) <= most:
            return False
        return shared + sum(proportional(name) for name in names) > most

    def kill(self, pid: int) -> None:
        """Kills a process and what it started; everything, where that is all there is."""
        if self.is_box and self.setup.isolated:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        else:
            self.kill_all()

    def kill_all(self) -> None:
        """Kills everything in the box."""
        if self.setup.isolated:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            return
        # Unsandboxed: children, and orphans as they become our children, until there are none.
        for _ in range(100):
            children = _children()
            if not children:
                return
            for pid in children:
                for kill in (os.killpg, os.kill):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        kill(pid, signal.SIGKILL)
            time.sleep(0.001)
            self.reap()

    def end(self) -> None:
        """Leaves nothing behind."""
        if not self.setup.isolated:
            self.kill_all()
            shutil.rmtree(self.folder, ignore_errors=True)


def _give_up(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Gone


def _nothing(number: int, frame: object) -> None:
    """A handler, so that the wake-up descriptor hears of SIGCHLD."""


@contextlib.contextmanager
def _input(text: str) -> Iterator[io.FileIO]:
    if not text:
        with open("/dev/null", "rb", buffering=0) as file:
            yield file
        return
    view = memoryview(text.encode("utf-8", "surrogatepass"))
    if hasattr(os, "memfd_create"):
        where = os.memfd_create("stdin")
    else:
        where, path = tempfile.mkstemp()
        os.unlink(path)
    with open(where, "w+b", buffering=0) as file:
        while view:
            view = view[file.write(view) :]
        file.seek(0)
        yield file


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:  # not Linux
        return []
