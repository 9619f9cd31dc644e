"""What lives in a box between requests: a server that answers lines, and a shell that is typed to."""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import signal
import sys
import termios
import time
from typing import TYPE_CHECKING

from .output import Gone, Output
from .usage import refill_cpu

if TYPE_CHECKING:
    from .supervisor import Box

__all__ = ["BASH_FD", "Server", "Shell", "execute"]

_REPLY = 16  # times the output limit: the longest line a server may answer
BASH_FD = 9  # bash keeps an inherited descriptor from its children; they get
_MARKER_FD = 8  # this one, opened anew
_QUIET = "PS1= PS2= PROMPT_COMMAND=; set +H +o history; unset HISTFILE"
_WATCH_SECONDS = 0.05


class Server:
    """A program that answers lines with lines."""

    def __init__(self, box: Box, pid: int, stdin: int, stdout: int, stderr: int) -> None:
        self.box, self.pid, self.stdin, self.stdout = box, pid, stdin, stdout
        self.errors = Output(stderr, 1 << 14)
        self.limit = _REPLY * box.limits["output_bytes"]
        for fd in (stdin, stdout):
            os.set_blocking(fd, False)

    def ask(self, line: bytes, timeout: float) -> dict:
        """The answer to one line, or why there is none."""
        box, end = self.box, time.monotonic() + timeout
        refill_cpu(self.pid, box.limits["cpu_s"])
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


class Shell:
    """An interactive login shell that reads its commands from a pipe, as if they were typed."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.pid = -1

    def run(self, code: str, timeout: float) -> dict:
        """Types one command and waits until the shell has done it."""
        begin = time.monotonic()
        if self.pid < 0:
            self._start()
            hello = self._type(f"exec {_MARKER_FD}>/proc/self/fd/{BASH_FD}; {_QUIET}", 10.0)
            if hello["exit_code"] != 0:
                raise OSError(f"the shell does not start: {hello['output'][-500:]}")
            self.box.used = True
        result = self._type(f"eval {shlex.quote(code.replace(chr(0), ''))}", timeout)
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
        # The marker is sent when the shell has taken the command, so that after `su` it is the new shell that reads it.
        sent = f"printf '{token} %d\\n' $? 2>/dev/null >&{_MARKER_FD}\n".encode()
        todo, queue = memoryview(f"{command}\n".encode("utf-8", "replace")), [memoryview(sent)]
        output, marker = Output(self.stdout, box.limits["output_bytes"]), Output(self.marker, 1 << 16)
        refill_cpu(self.pid, box.limits["cpu_s"])
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
                if word == token and number.isdigit():
                    code = int(number)
        seconds = time.monotonic() - begin
        if code is None:
            box.finish(self.pid)
            status = box.dead.pop(self.pid)[0]
            code = None if why == "time" else os.waitstatus_to_exitcode(status)
            output.drain()
            for fd in (self.stdin, self.stdout, self.marker):
                os.close(fd)
            self.pid = -1
            output.data = output.data.replace(sent, b"")  # a program that reads the terminal may have shown it
        else:
            output.drain()
        return output.result(code, why == "time", seconds)


def execute(argv: list[str]) -> None:
    """Becomes the program ``argv``; ends with 127 where there is none."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode("utf-8", "replace"))
    except ValueError as error:  # a NUL in an argument
        os.write(2, f"{error}\n".encode("utf-8", "replace"))
    os._exit(127)


def _waiting(pipe: int) -> int:
    """Bytes in a pipe that nobody has read yet."""
    count = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)
