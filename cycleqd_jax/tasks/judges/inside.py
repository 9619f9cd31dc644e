"""The frame of all judges: one process runs the program, another process judges it. Runs in the sandbox.

Standard input is the length of the *job* as 16 hexadecimal digits, the job as JSON, then length and JSON of the *secret*. The
judge prints the lines ``<nonce> ready`` and ``<nonce> <verdict as JSON>``; the ``nonce`` is part of the secret.

The process that runs the program is forked before the secret is read. It has no standard streams and can't read the judge's
memory and files. It starts after the judge is ready, so that an earlier failure is never the program's fault.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time

__all__ = ["Ended", "Late", "Link", "describe", "run_judge"]

_LONGEST_FRAME = 64 << 20


class Ended(Exception):
    """The program's process has ended, or sent an invalid message."""


class Late(Exception):
    """The program exceeded its time limit."""


class Link:
    """One end of the socket between program and judge. Messages are JSON values."""

    def __init__(self, connection):
        self.connection = connection

    def send(self, message, end=None):
        """Sends a message.

        Args:
            message: a JSON value.
            end: deadline on the monotonic clock, or None.

        Raises:
            Ended: the other process has ended.
            Late: the deadline has passed, because the other process does not read its messages.
        """
        data = json.dumps(message).encode()
        if len(data) > _LONGEST_FRAME:
            raise ValueError("the value is too large")
        try:
            self.connection.settimeout(None if end is None else max(end - time.monotonic(), 0.001))
            self.connection.sendall(len(data).to_bytes(8, "big") + data)
        except TimeoutError as error:
            raise Late from error
        except OSError as error:
            raise Ended from error

    def receive(self, end=None):
        """The next message.

        Args:
            end: deadline on the monotonic clock, or None.

        Raises:
            Ended: the other process has ended, or sent an invalid message.
            Late: the deadline has passed.
        """
        try:
            size = int.from_bytes(self._exactly(8, end), "big")
            if size > _LONGEST_FRAME:
                raise Ended
            return json.loads(self._exactly(size, end))
        except TimeoutError as error:
            raise Late from error
        except (OSError, ValueError, RecursionError) as error:
            raise Ended from error

    def _exactly(self, count, end):
        data = bytearray()
        while len(data) < count:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self.connection.settimeout(left)
            chunk = self.connection.recv(min(count - len(data), 1 << 20))
            if not chunk:
                raise Ended
            data += chunk
        return bytes(data)


def describe(error):
    """An exception as one short line."""
    try:
        return f"{type(error).__name__}: {error}"[:200].encode("utf-8", "replace").decode()
    except BaseException:
        return "error"


def run_judge(program, judge):
    """Reads the job and the secret, runs the program and prints the verdict.

    Args:
        program: function of a link and the job; called in a process of its own.
        judge: function of a link, the job and the secret that returns the verdict.
    """
    for name in [name for name in sys.modules if name.startswith("cycleqd_jax")]:
        del sys.modules[name]  # the program must not import the judge
    job = _read()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        ours.close()
        with contextlib.suppress(BaseException):
            link = Link(theirs)
            if link.receive() == "go":
                program(link, job)
        os._exit(0)
    theirs.close()
    secret = _read()
    nonce = secret.pop("nonce")
    _unreadable()
    print(nonce, "ready", flush=True)
    link = Link(ours)
    with contextlib.suppress(Ended):
        link.send("go")
    verdict = judge(link, job, secret)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    print(nonce, json.dumps(verdict), flush=True)
    sys.stdout.flush()
    os._exit(0)


def _read():
    return json.loads(_exactly(int(_exactly(16), 16)))


def _exactly(count):
    """Reads ``count`` bytes without buffering: the program's process must not inherit a part of the secret."""
    chunks = []
    while count:
        chunk = os.read(0, count)
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def _unreadable():
    """Denies other processes of the same user access to the memory and the open files of this process."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
