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
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from . import frames, linux, program, rootfs

__all__ = ["Setup", "main", "write_maps"]

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
_FLOOD = 64  # times the output limit: a program that prints more is killed
_REPLY = 16  # times the output limit: the longest line a session may answer
_WATCH_SECONDS = 0.05
_SYNC_FD = 10
_BASH_FD = 9  # bash keeps an inherited descriptor from its children; they get
_MARKER_FD = 8  # this one, opened anew
_QUIET = "PS1= PS2= PROMPT_COMMAND=; set +H +o history; unset HISTFILE"
_PAGE = os.sysconf("SC_PAGE_SIZE")


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


def write_maps(pid: int, line: str) -> None:
    """Gives the new user namespace of process ``pid`` its map of user and group ids."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
            file.write(line)


def main(channel: socket.socket, setup: Setup) -> None:
    """Serves one box over ``channel`` until the host process closes it; never returns."""
    gc.disable()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored by the kernel for pid 1, and none of our business otherwise
    box = None
    try:
        request = frames.recv(channel)
        try:
            box = _Box(channel, setup, request)
            getattr(box, "serve_" + request["kind"])(request)
        except _Broken as error:
            frames.send(channel, {"infra": str(error)})
    except (EOFError, OSError):
        pass  # the host process has lost interest
    finally:
        if box is not None:
            box.end()
        os._exit(0)


class _Broken(Exception):
    """The sandbox does not work."""


class _Box:
    def __init__(self, channel: socket.socket, setup: Setup, request: dict) -> None:
        self.channel, self.setup = channel, setup
        self.limits = request["limits"]
        self.userns: int | None = None
        self.dead: dict[int, tuple[int, float]] = {}  # pid: wait status, CPU seconds
        self.shells: dict[int, _Shell] = {}
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
        try:
            self._prepare()
        except OSError as error:
            raise _Broken(str(error)) from error

    def _prepare(self) -> None:
        if not self.setup.isolated:
            self.folder = tempfile.mkdtemp(dir=self.setup.folder)
            self.env["HOME"] = self.folder
            if sys.platform == "linux":
                linux.become_subreaper()
            return
        linux.unshare(_NAMESPACES)
        linux.loopback_up()
        linux.sethostname("box")
        if self.is_box:
            rootfs.mount_box(self.setup.owner, self.limits["disk_mb"])
            sys.path.clear()  # nothing that a program wrote is ever imported here
            sys.meta_path.clear()
        else:
            rootfs.mount_program(self.setup.owner, self.limits["disk_mb"])

    # ----------------------------------------------------------------------------------------------------------------
    # What the host process asks for

    def serve_ping(self, request: dict) -> None:
        frames.send(self.channel, {"pong": True})

    def serve_python(self, request: dict) -> None:
        path = f"{self.folder}/main.py"
        source = request["source"]
        result = self.execute(lambda: program.run(source, path), request["stdin"], self.folder, self.limits["wall_s"])
        frames.send(self.channel, result)

    def serve_session(self, request: dict) -> None:
        path = f"{self.folder}/main.py"
        source = request["source"]
        stdin, stdout, stderr = self.pipe(), self.pipe(), self.pipe()
        pid = self.spawn(lambda: program.run(source, path), (stdin[0], stdout[1], stderr[1]), self.folder)
        for fd in (stdin[0], stdout[1], stderr[1]):
            os.close(fd)
        server = _Server(self, pid, stdin[1], stdout[0], stderr[0])
        frames.send(self.channel, {"ready": True})
        while True:
            request = self.next_request()
            reply = server.ask(request["line"].encode(), request["timeout"])
            frames.send(self.channel, reply)
            if "killed" in reply:
                return

    def serve_box(self, request: dict) -> None:
        frames.send(self.channel, {"ready": True})
        while True:
            request = self.next_request()
            timeout = request.get("timeout") or self.limits["wall_s"]
            if request["do"] == "exec":
                argv, cwd = request["argv"], request["cwd"]
                if not self.setup.isolated and cwd == "/":
                    cwd = self.folder
                result = self.execute(lambda argv=argv: _exec(argv), request["stdin"], cwd, timeout)
            else:
                number = request["shell"]
                if number not in self.shells:
                    self.shells[number] = _Shell(self)
                result = self.shells[number].run(request["code"], timeout)
            frames.send(self.channel, result)

    def next_request(self) -> dict:
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        while True:
            ready = dict(poll.poll(1000))
            self.reap()
            if self.channel.fileno() in ready:
                return frames.recv(self.channel)
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
                output = _Output(read, self.limits["output_bytes"])
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
        timed_out = why == "time" or (code in (-signal.SIGXCPU, -signal.SIGKILL) and cpu >= self.limits["cpu_s"])
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
        try:
            pid = os.fork()
        except OSError as error:
            raise _Broken(str(error)) from error
        if pid == 0:
            self._become_program(there, streams, cwd, marker, action)
        there.close()
        with here:
            if self.setup.isolated:
                try:
                    if here.recv(1) == b"u":
                        write_maps(pid, self.setup.id_map)
                        if self.is_box:
                            self.userns = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
                    here.send(b"g")
                except OSError as error:
                    raise _Broken(str(error)) from error
            message = here.recv(4096)
        if message:
            raise _Broken(message.decode(errors="replace"))
        return pid

    def _become_program(
        self, sync: socket.socket, streams: tuple[int, int, int], cwd: str, marker: int, action: Callable[[], None]
    ) -> None:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            if self.setup.isolated:
                self._enter_user_namespace(sync)
            # Above all descriptors in use first, so that none is overwritten before it was copied.
            sources = (*streams, sync.fileno(), marker)
            high = [os.dup2(fd, 200 + i, inheritable=False) for i, fd in enumerate(sources) if fd >= 0]
            for target, fd in zip((0, 1, 2, _SYNC_FD, _BASH_FD), high, strict=False):
                os.dup2(fd, target, inheritable=target != _SYNC_FD)
            os.closerange(3, _BASH_FD if marker >= 0 else _SYNC_FD)
            os.closerange(_SYNC_FD + 1, 1 << 20)
            sync.detach()
            self._set_limits()
            if self.setup.isolated:
                linux.drop_capabilities(linux.BOX_CAPABILITIES if self.is_box else frozenset())
                linux.no_new_privs()
                linux.seccomp()
            with contextlib.suppress(OSError):
                os.chdir("/")
                os.chdir(cwd)
            os.environ.clear()
            os.environ.update(self.env)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(_SYNC_FD if sync.fileno() < 0 else sync.fileno(), (str(error) or repr(error)).encode())
            os._exit(1)
        os.close(_SYNC_FD)
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

    def wait(self, outputs: list[_Output], end: float) -> str:
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
            raise EOFError
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
        shared = _sysv_memory()
        if shared + sum(_resident(name) for name in names) <= most:
            return False
        return shared + sum(_proportional(name) for name in names) > most

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


class _Output:
    """What a pipe has brought, up to a limit; the rest is counted and dropped."""

    def __init__(self, fd: int, limit: int) -> None:
        os.set_blocking(fd, False)
        self.fd, self.limit = fd, limit
        self.data, self.total, self.ended = bytearray(), 0, False

    def read(self) -> bool:
        """Takes what is there; false when it has become a flood."""
        try:
            chunk = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return True
        self.ended = not chunk
        self.total += len(chunk)
        if len(self.data) < self.limit:
            self.data += chunk[: self.limit - len(self.data)]
        return self.total <= _FLOOD * self.limit

    def drain(self) -> None:
        """Takes what is still in the pipe, without waiting for more."""
        before = -1
        while not self.ended and self.total != before and self.total <= _FLOOD * self.limit:
            before = self.total
            self.read()

    def result(self, exit_code: int | None, timed_out: bool, seconds: float) -> dict:
        return {
            "output": self.data.decode("utf-8", "replace"),
            "exit_code": exit_code,
            "timed_out": timed_out,
            "truncated": self.total > self.limit,
            "seconds": seconds,
        }


class _Server:
    """A program that answers lines with lines."""

    def __init__(self, box: _Box, pid: int, stdin: int, stdout: int, stderr: int) -> None:
        self.box, self.pid, self.stdin, self.stdout = box, pid, stdin, stdout
        self.errors = _Output(stderr, 1 << 14)
        self.limit = _REPLY * box.limits["output_bytes"]
        for fd in (stdin, stdout):
            os.set_blocking(fd, False)

    def ask(self, line: bytes, timeout: float) -> dict:
        """The answer to one line, or why there is none."""
        box, end = self.box, time.monotonic() + timeout
        _refill_cpu(self.pid, box.limits["cpu_s"])
        todo, reply = memoryview(line + b"\n"), bytearray()
        while not reply.endswith(b"\n"):
            poll = select.poll()
            poll.register(self.stdout, select.POLLIN)
            for fd in (box.channel, box.wake):
                poll.register(fd, select.POLLIN)
            if not self.errors.ended:
                poll.register(self.errors.fd, select.POLLIN)
            if todo:
                poll.register(self.stdin, select.POLLOUT)
            left = end - time.monotonic()
            ready = dict(poll.poll(1000 * max(0.0, min(left, _WATCH_SECONDS))))
            if box.channel.fileno() in ready:
                raise EOFError
            if self.errors.fd in ready and not self.errors.read():
                return {"killed": "it printed too much"}
            if self.stdin in ready:
                try:
                    todo = todo[os.write(self.stdin, todo[:65536]) :]
                except OSError:
                    todo = memoryview(b"")
            if self.stdout in ready:
                chunk = os.read(self.stdout, 1 << 16)
                if not chunk:
                    return {"killed": self._last_words()}
                reply += chunk
                if len(reply) > self.limit:
                    return {"killed": f"its answer is longer than {self.limit} bytes"}
                continue
            box.reap()
            if self.pid in box.dead:
                return {"killed": self._last_words()}
            if left <= 0:
                return {"killed": f"it took longer than {timeout:g} s"}
            if not ready and box.too_large():
                return {"killed": f"it took more than {box.limits['memory_mb']} MB"}
        return {"line": reply.decode("utf-8", "replace")}

    def _last_words(self) -> str:
        end = time.monotonic() + 0.2
        while self.pid not in self.box.dead and time.monotonic() < end:
            self.box.wait([], end)
        self.errors.drain()
        status = self.box.dead.get(self.pid, (9, 0.0))[0]
        words = self.errors.data.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        return f"its server ended with exit code {os.waitstatus_to_exitcode(status)}" + (f": {words}" if words else "")


class _Shell:
    """An interactive login shell that reads its commands from a pipe, as if they were typed."""

    def __init__(self, box: _Box) -> None:
        self.box = box
        self.pid = -1

    def run(self, code: str, timeout: float) -> dict:
        """Types one command and waits until the shell has done it."""
        begin = time.monotonic()
        if self.pid < 0:
            self._start()
            hello = self._type(f"exec {_MARKER_FD}>/proc/self/fd/{_BASH_FD}; {_QUIET}", 10.0)
            if hello["exit_code"] != 0:
                raise _Broken(f"the shell does not start: {hello['output'][-500:]}")
        result = self._type(f"eval {shlex.quote(code.replace(chr(0), ''))}", timeout)
        result["seconds"] = time.monotonic() - begin
        return result

    def _start(self) -> None:
        stdin, stdout, marker = self.box.pipe(), self.box.pipe(), self.box.pipe()
        argv = ["bash", "--login", "--noediting", "-i"]
        cwd = "/" if self.box.setup.isolated else self.box.folder
        try:
            self.pid = self.box.spawn(lambda: _exec(argv), (stdin[0], stdout[1], stdout[1]), cwd, marker[1])
        finally:
            for fd in (stdin[0], stdout[1], marker[1]):
                os.close(fd)
        self.stdin, self.stdout, self.marker = stdin[1], stdout[0], marker[0]
        os.set_blocking(self.stdin, False)

    def _type(self, command: str, timeout: float) -> dict:
        box, begin = self.box, time.monotonic()
        token = os.urandom(8).hex()
        # The marker is on a line of its own: after `su` it is the new shell that reads and prints it.
        text = f"{command}\n{{ printf '{token} %d\\n' $? >&{_MARKER_FD}; }} 2>/dev/null\n"
        todo = memoryview(text.encode("utf-8", "replace"))
        output, marker = _Output(self.stdout, box.limits["output_bytes"]), _Output(self.marker, 1 << 16)
        _refill_cpu(self.pid, box.limits["cpu_s"])
        end, why, code = begin + timeout, "", None
        while not why and code is None and self.pid not in box.dead:
            if todo:
                try:
                    todo = todo[os.write(self.stdin, todo[:4096]) :]
                except BlockingIOError:
                    pass
                except OSError:
                    todo = memoryview(b"")
            why = box.wait([output, marker], min(end, time.monotonic() + 0.002) if todo else end)
            if why == "time" and time.monotonic() < end:
                why = ""
            for line in marker.data.decode("ascii", "replace").splitlines():
                word, _, number = line.partition(" ")
                if word == token and number.isdigit():
                    code = int(number)
        seconds = time.monotonic() - begin
        if code is None:
            if self.pid not in box.dead:
                box.kill(self.pid)
                while self.pid not in box.dead:
                    box.wait([], math.inf)
            status = box.dead.pop(self.pid)[0]
            code = None if why == "time" else os.waitstatus_to_exitcode(status)
            output.drain()
            for fd in (self.stdin, self.stdout, self.marker):
                os.close(fd)
            self.pid = -1
        else:
            output.drain()
        return output.result(code, why == "time", seconds)


def _nothing(number: int, frame: object) -> None:
    """A handler, so that the wake-up descriptor hears of SIGCHLD."""


def _exec(argv: list[str]) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode("utf-8", "replace"))
    except ValueError as error:  # a NUL in an argument
        os.write(2, f"{error}\n".encode("utf-8", "replace"))
    os._exit(127)


@contextlib.contextmanager
def _input(text: str) -> Iterator[io.FileIO]:
    data = text.encode("utf-8", "surrogatepass")
    if not data:
        file = open("/dev/null", "rb", buffering=0)
    elif hasattr(os, "memfd_create"):
        file = open(os.memfd_create("stdin"), "w+b", buffering=0)
    else:
        file = tempfile.TemporaryFile(buffering=0)
    with file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        if data:
            file.seek(0)
        yield file


def _refill_cpu(pid: int, seconds: float) -> None:
    """Lets a long-lived process compute for ``seconds`` more."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        _, hard = resource.prlimit(pid, resource.RLIMIT_CPU)
        resource.prlimit(pid, resource.RLIMIT_CPU, (math.ceil(used + seconds), hard))


def _children() -> list[int]:
    try:
        with open("/proc/self/task/%d/children" % os.getpid(), encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:  # not Linux
        return []


def _resident(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _proportional(pid: str) -> int:
    """As ``_resident``, but memory shared by n processes counts 1/n."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except (OSError, IndexError):
        pass
    return 0


def _sysv_memory() -> int:
    """Memory of System V segments in this IPC namespace, which need not be mapped to be held."""
    try:
        with open("/proc/sysvipc/shm", "rb") as file:
            head, *rows = (line.split() for line in file)
        return sum(int(row[head.index(b"rss")]) for row in rows)
    except (OSError, ValueError):
        return 0
