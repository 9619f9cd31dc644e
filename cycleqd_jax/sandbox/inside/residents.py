"""Processes that live in a box between requests: a server that answers lines, and an interactive shell."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shlex
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable
from typing import Any, Protocol

from .output import QUIET, Gone, Output
from .usage import refill_cpu

__all__ = ["BASH_FD", "Server", "Shell", "execute"]

_REPLY = 16  # the longest answer of a server, in output limits
BASH_FD = 9  # the pipe for markers, as bash inherits it; bash hides this descriptor from its children
_MARKER_FD = 8  # the same pipe opened again, which the children of bash inherit
_EXIT_CODE = re.compile("[0-9]{1,3}")
_WATCH_SECONDS = 0.05


class Box(Protocol):
    """What servers and shells use of their box, a ``supervisor.Box``."""

    channel: socket.socket
    wake: socket.socket
    setup: Any
    proc: int | None
    limits: dict
    used: bool
    dead: dict[int, tuple[int, float]]
    folder: str

    def pipe(self) -> tuple[int, int]: ...
    def spawn(self, action: Callable[[], None], streams: tuple[int, int, int], cwd: str, marker: int = -1) -> int: ...
    def reap(self) -> None: ...
    def wait(self, outputs: list[Output], end: float) -> str: ...
    def too_large(self) -> bool: ...
    def finish(self, pid: int) -> None: ...


class Server:
    """A program that answers each line with a line."""

    def __init__(self, box: Box, pid: int, stdin: int, stdout: int, stderr: int) -> None:
        self.box, self.pid, self.stdin, self.stdout = box, pid, stdin, stdout
        self.errors = Output(stderr, 1 << 14)
        self.limit = _REPLY * box.limits["output_bytes"]
        for fd in (stdin, stdout):
            os.set_blocking(fd, False)

    def ask(self, line: bytes, timeout: float) -> dict:
        """Sends a line and returns the answer as ``{"line": …}``, or ``{"killed": reason}`` if there is none."""
        box, end = self.box, time.monotonic() + timeout
        refill_cpu(box.proc, box.setup.creator, self.pid, box.limits["cpu_s"])
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
                raise Gone
            if self.errors.fd in ready and not self.errors.read():
                return {"killed": "the server printed too much"}
            if self.stdin in ready:
                try:
                    todo = todo[os.write(self.stdin, todo[:65536]) :]
                except OSError:
                    todo = memoryview(b"")
            if self.stdout in ready:
                chunk = os.read(self.stdout, 1 << 16)
                if not chunk:
                    return {"killed": self._reason_of_end()}
                reply += chunk
                if len(reply) > self.limit:
                    return {"killed": f"the server's answer is longer than {self.limit} bytes"}
                continue
            box.reap()
            if self.pid in box.dead:
                return {"killed": self._reason_of_end()}
            if left <= 0:
                return {"killed": f"the server took longer than {timeout:g} s"}
            if not ready and box.too_large():
                return {"killed": f"the server took more than {box.limits['memory_mb']} MB"}
        return {"line": reply.decode("utf-8", "replace")}

    def _reason_of_end(self) -> str:
        end = time.monotonic() + 0.2
        while self.pid not in self.box.dead and time.monotonic() < end:
            self.box.wait([], end)
        self.errors.drain()
        status = self.box.dead.get(self.pid, (9, 0.0))[0]
        last_line = self.errors.data.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        return f"the server ended with exit code {os.waitstatus_to_exitcode(status)}" + (f": {last_line}" if last_line else "")


class Shell:
    """An interactive login shell that reads its commands from a pipe."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.pid = -1
        self.busy = False  # whether an earlier command has not ended in time
        self.unread = b""  # what the program in the foreground has not read yet
        self.markers: list[bytes] = []

    def run(self, code: str, timeout: float) -> dict:
        """Types one command and waits until it has ended."""
        begin = time.monotonic()
        if self.pid < 0:
            self._start()
            greeting = self._type(f"exec {_MARKER_FD}>/proc/self/fd/{BASH_FD}; {QUIET}", 10.0)
            if greeting["exit_code"] != 0:
                raise OSError(f"the shell does not start: {greeting['output'][-500:]}")
            self.box.used = True
        code = code.replace("\0", "")
        # A busy shell may not be the reader, so it gets the lines as they are, like a terminal.
        result = self._type(code if self.busy else f"eval {shlex.quote(code)}", timeout)
        result["seconds"] = time.monotonic() - begin
        return result

    def _start(self) -> None:
        stdin, stdout, marker = self.box.pipe(), self.box.pipe(), self.box.pipe()
        argv = ["bash", "--login", "--noediting", "-i"]
        cwd = "/" if self.box.setup.isolated else self.box.folder
        try:
            self.pid = self.box.spawn(lambda: execute(argv), (stdin[0], stdout[1], stdout[1]), cwd, marker[1])
        finally:
            for fd in (stdin[0], stdout[1], marker[1]):
                os.close(fd)
        self.stdin, self.stdout, self.marker = stdin[1], stdout[0], marker[0]
        os.set_blocking(self.stdin, False)

    def _type(self, command: str, timeout: float) -> dict:
        box, begin = self.box, time.monotonic()
        token = os.urandom(8).hex()
        # The marker is sent after the shell has read the command, so that after `su`, the new shell reads the marker.
        self.markers.append(f"printf '{token} %d\\n' $? 2>/dev/null >&{_MARKER_FD}\n".encode())
        todo = memoryview(self.unread + f"{command}\n".encode("utf-8", "replace"))
        queue = [memoryview(self.markers[-1])]
        output, marker = Output(self.stdout, box.limits["output_bytes"]), Output(self.marker, 1 << 16)
        refill_cpu(box.proc, box.setup.creator, self.pid, box.limits["cpu_s"])
        end, why, code = begin + timeout, "", None
        while not why and code is None and self.pid not in box.dead:
            if not todo and queue and not _waiting(self.stdin):
                todo = queue.pop()
            if todo:
                try:
                    todo = todo[os.write(self.stdin, todo[:4096]) :]
                except BlockingIOError:
                    pass
                except OSError:
                    todo = memoryview(b"")
            why = box.wait([output, marker], min(end, time.monotonic() + 0.0005) if todo or queue else end)
            if why == "time" and time.monotonic() < end:
                why = ""
            for line in marker.data.decode("ascii", "replace").splitlines():
                word, _, number = line.partition(" ")
                if word == token and _EXIT_CODE.fullmatch(number):
                    code = int(number)
        seconds = time.monotonic() - begin
        self.busy, self.unread = why == "time", bytes(todo)
        ended = code is None and not self.busy
        if ended:
            box.finish(self.pid)
            code = os.waitstatus_to_exitcode(box.dead.pop(self.pid)[0])
        output.drain()
        for text in self.markers:  # a program that reads the terminal may have printed them
            output.data = output.data.replace(text, b"")
        if not self.busy:
            self.markers = []
        if ended:
            for fd in (self.stdin, self.stdout, self.marker):
                os.close(fd)
            self.pid, self.unread = -1, b""
        return output.result(code, self.busy, seconds)


def execute(argv: list[str]) -> None:
    """Replaces this process with the program ``argv``; exits with code 127 if there is none."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode("utf-8", "replace"))
    except ValueError as error:  # an argument with a NUL
        os.write(2, f"{error}\n".encode("utf-8", "replace"))
    os._exit(127)


def _waiting(pipe: int) -> int:
    """The number of unread bytes in a pipe."""
    count = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)
