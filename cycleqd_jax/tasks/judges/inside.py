"""What all judges share: two processes, one that runs the program and one that knows what is right. Runs in the sandbox.

Standard input: 16 hexadecimal digits (a length), the *job* as JSON, then, again with its length, the *secret* as JSON, whose
``nonce`` begins each line of ours on standard output: ``<nonce> ready``, then ``<nonce> <verdict as JSON>``.

The process that runs the program is forked off before the secret is read, has no standard streams, and can't look into the
judge's memory and files. It begins when the judge has said that it is ready: what fails before is not the program's doing.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time

__all__ = ["Ended", "Late", "Link", "describe", "preside"]

_LONGEST_FRAME = 64 << 20


class Ended(Exception):
    """The program's process is gone, or says what it may not."""


class Late(Exception):
    """The program did not answer in time."""


class Link:
    """One end of the socket between program and judge; messages are JSON values."""

    def __init__(self, connection):
        self.connection = connection

    def send(self, message):
        """Sends a message.

        Raises:
            Ended: the other end is gone.
            Late: it does not read what was sent before.
        """
        data = json.dumps(message).encode()
        if len(data) > _LONGEST_FRAME:
            raise ValueError("the value is too large")
        try:
            self.connection.sendall(len(data).to_bytes(8, "big") + data)
        except TimeoutError as error:
            raise Late from error
        except OSError as error:
            raise Ended from error

    def receive(self, end=None):
        """The next message.

        Args:
            end: the time on the monotonic clock when it is too late, or None.

        Raises:
            Ended: the other end is gone, or sent no message.
            Late: it took too long.
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
    """One short line for the transcript."""
    try:
        return f"{type(error).__name__}: {error}"[:200].encode("utf-8", "replace").decode()
    except BaseException:
        return "error"


def preside(program, judge):
    """Reads job and secret, runs the program and prints what the judge says.

    Args:
        program: called with a link and the job, in a process of its own that ends with it.
        judge: called with a link, the job and the secret; returns the verdict.
    """
    for name in [name for name in sys.modules if name.startswith("cycleqd_jax")]:
        del sys.modules[name]  # nothing of ours stays importable
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
    """``count`` bytes of standard input, unbuffered: the program's process must not get any of the secret."""
    chunks = []
    while count:
        chunk = os.read(0, count)
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def _unreadable():
    """Bars other processes of the same user from this one's memory and open files."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
