"""A fork server, seen from the host process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import weakref
from typing import Any

from .base import InfraError, Killed
from .inside import frames
from .inside.folders import remove_tree
from .inside.stdin import open_input
from .launch import Launch

__all__ = ["ADVICE", "Worker", "ask"]

ADVICE = "correct the cause and resume the run"
"""What to do when the sandbox fails."""

_START_SECONDS = 30.0
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "PYTHONHASHSEED": "0",
}


class Worker:
    """A running fork server, started in the constructor.

    Raises:
        InfraError: if it does not start.
    """

    def __init__(self, launch: Launch) -> None:
        self.control, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            try:
                # Not os.fork: the host process has threads. A new session: Ctrl-C must reach only the host process.
                self.process = subprocess.Popen(
                    launch.command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=_ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,
                    user=launch.user,
                    group=launch.user,
                    extra_groups=None if launch.user is None else [],
                )
            except OSError as error:
                self.control.close()
                raise InfraError(f"expected {launch.command[0]} to start, got {error}; install it again") from error
        # Both this process and the fork server remove the folder, because either may be killed.
        folder = tempfile.mkdtemp(prefix="cycleqd-unsandboxed-") if launch.isolation.name == "none" else None
        self._finalizer = weakref.finalize(self, _stop, self.control, self.process, os.getpid(), folder)
        self._shake_hands(launch, folder)

    def _shake_hands(self, launch: Launch, folder: str | None) -> None:
        watched = [os.pidfd_open(os.getpid())] if hasattr(os, "pidfd_open") else []
        try:
            self.control.settimeout(_START_SECONDS)
            socket.send_fds(self.control, [b"w"], watched)
            frames.send(self.control, {**launch.plan, "folder": folder})
            answer = frames.recv(self.control)
            self.control.settimeout(None)
            reason = answer.get("error")
        except (EOFError, OSError) as error:
            reason = _stderr_of(self.process) or str(error)
            self.process.kill()
        finally:
            for fd in watched:
                os.close(fd)
        if reason:
            self.close()
            raise InfraError(
                f"expected the isolation {launch.isolation.name!r} to work here, got {reason}; choose another isolation"
            )

    def open(self, kind: bytes) -> socket.socket:
        """Opens a channel to the supervisor of a new box.

        Args:
            kind: ``b"b"`` for a box with its own root file system, ``b"p"`` for a program or session.

        Raises:
            OSError: if the fork server has ended.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                socket.send_fds(self.control, [kind], [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        return ours

    def answers(self) -> bool:
        """Whether the fork server works. This distinguishes its end from the end of one box."""
        try:
            with self.open(b"p") as channel:
                channel.settimeout(_START_SECONDS)
                frames.send(channel, {"kind": "ping", "limits": {"disk_mb": 1}})
                return "pong" in frames.recv(channel)
        except (EOFError, OSError):
            return False

    def close(self) -> None:
        """Ends the fork server and all its boxes."""
        self._finalizer()


def _stop(control: socket.socket, process: subprocess.Popen[bytes], owner: int, folder: str | None) -> None:
    control.close()
    if os.getpid() != owner:  # a fork of the host process must not stop the fork server
        return
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # also the fork server that it has started, and the boxes
        process.wait()
    if process.stderr is not None:
        process.stderr.close()
    if folder is not None:
        remove_tree(folder)


def _stderr_of(process: subprocess.Popen[bytes]) -> str:
    """What a command that failed to start wrote to stderr."""
    if process.stderr is None:
        return ""
    with contextlib.suppress(OSError):
        ready, _, _ = select.select([process.stderr], [], [], 1.0)
        if ready:
            return os.read(process.stderr.fileno(), 4096).decode(errors="replace").strip()
    return ""


def ask(channel: socket.socket, message: Any, timeout: float | None, stdin: str | None = None) -> Any:
    """Sends one message and returns the answer.

    Args:
        channel: the channel to a supervisor.
        message: the message.
        timeout: seconds until the answer.
        stdin: the input of a program, which is sent as an open file; None if the message starts no program.

    Raises:
        Killed: if the supervisor reports a fault of the program in the box.
        InfraError: if the supervisor reports a fault of the sandbox.
        TimeoutError: if there is no answer in time.
        EOFError, OSError: if the supervisor has ended, or has sent no answer.
    """
    channel.settimeout(timeout)
    frames.send(channel, message)
    if stdin is not None:
        with open_input(stdin) as file:
            socket.send_fds(channel, [b"i"], [file.fileno()] if stdin else [])
    answer = frames.recv(channel)
    if not isinstance(answer, dict):
        raise EOFError(f"an answer that is no object: {answer!r:.100}")
    if "killed" in answer:
        raise Killed(answer["killed"])
    if "infra" in answer:
        raise InfraError(f"expected a working sandbox, got {answer['infra']}; {ADVICE}")
    return answer
