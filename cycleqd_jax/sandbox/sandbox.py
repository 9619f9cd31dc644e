"""The public classes: a sandbox with one warm fork server, and its boxes, sessions and shells."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..machine import cpu_count
from .base import Completed, InfraError, Killed, Limits
from .build import Rootfs
from .docker import IMAGE, Docker, DockerBox
from .probe import ISOLATIONS, find
from .worker import ADVICE, Worker, ask

__all__ = ["Box", "Sandbox", "Session", "Shell"]

_GRACE_SECONDS = 30.0  # a supervisor that answers this much after its timeout has failed
_ADVICE = "install bubblewrap (apt-get install bubblewrap), or set isolation=none to run programs UNSANDBOXED"

_LIMITS = Limits()
_T = TypeVar("_T")


class Sandbox:
    """Runs untrusted code. Thread-safe; a context manager.

    Args:
        isolation: the name of an isolation, or ``"auto"`` for the strongest that works here (never ``"none"``).
        limits: limits of every box that has none of its own.
        workers: most programs, commands and requests that run at once; idle boxes do not count. Further callers wait, and their
            timeouts start after the wait. By default one per core.
        rootfs: folder of a root file system for boxes, made by :func:`~cycleqd_jax.sandbox.build.build_rootfs`. By default,
            boxes show the programs and settings of this machine.
        backend: ``"bwrap"`` for boxes in this sandbox, under its isolation, or ``"docker"`` for containers of a Docker engine.
            Programs and sessions run in this sandbox in both cases.
        image: image of the Docker containers.

    Attributes:
        isolation: the isolation in use.
        system: a short text that identifies the system in boxes, because results of commands depend on it.

    Raises:
        InfraError: if no isolation works here, or if Docker does not answer.
        ValueError: if there is no isolation or backend of that name, or no root file system in that folder.
    """

    def __init__(
        self,
        isolation: str = "auto",
        *,
        limits: Limits = _LIMITS,
        workers: int | None = None,
        rootfs: str | Path | None = None,
        backend: str = "bwrap",
        image: str = IMAGE,
    ) -> None:
        if isolation not in ("auto", *ISOLATIONS):
            raise ValueError(
                f"expected isolation to be one of auto, {', '.join(ISOLATIONS)}, got {isolation!r}; correct the isolation"
            )
        if backend not in ("bwrap", "docker"):
            raise ValueError(f"expected backend to be bwrap or docker, got {backend!r}; correct the backend")
        if rootfs is not None and (isolation == "none" or backend == "docker"):
            what = "the backend docker, whose boxes show an image" if backend == "docker" else "the isolation none"
            raise ValueError(f"expected no rootfs with {what}, got one; remove rootfs")
        tree = None if rootfs is None else Rootfs.load(rootfs)
        self._docker = Docker(image) if backend == "docker" else None
        self.system = "host" if tree is None else f"{tree.suite} {tree.digest}"
        if self._docker is not None:
            self.system = f"docker {self._docker.digest}"
        self.limits = limits
        self._turn = threading.BoundedSemaphore(workers or cpu_count())
        self._lock = threading.Lock()
        self._closed = False
        reasons = []
        for name in ISOLATIONS[:-1] if isolation == "auto" else (isolation,):
            try:
                self._launch, self._worker = find(name, tree)
                break
            except InfraError as error:
                reasons.append(str(error))
        else:
            raise InfraError(f"expected an isolation that works here, got none ({'; '.join(reasons)}); {_ADVICE}")
        self.isolation = self._launch.isolation

    @property
    def boxes(self) -> str:
        """One sentence on the system in boxes."""
        if self._docker is not None:
            return f"boxes are Docker containers of {self._docker.image} ({self._docker.digest[:19]})"
        if self.isolation.name == "none":
            return "boxes are temporary folders of this machine"
        if self.system == "host":
            return "boxes show /usr and the settings of this machine, but no files of users; see cycleqd sandbox build-rootfs"
        return f"boxes show a root file system ({self.system[:25]})"

    def run_python(self, source: str, *, stdin: str = "", limits: Limits | None = None) -> Completed:
        """Runs a program as ``python -I -S -B`` would, in a new box without network and with a read-only runtime.

        Args:
            source: the program.
            stdin: input of the program.
            limits: limits other than those of the sandbox.

        Raises:
            InfraError: if the sandbox does not work.
        """
        limits = limits or self.limits
        message = {"kind": "python", "source": source}
        with self._turn:
            try:
                _, channel, answer = self._start(b"p", message, limits, limits.wall_s + _GRACE_SECONDS, stdin)
            except Killed:
                return Completed("", -9, False, False, 0.0)
        channel.close()
        return Completed(**answer)

    def session(self, source: str, *, limits: Limits | None = None) -> Session:
        """Starts a server in a new box.

        Args:
            source: a trusted Python program that answers each line of JSON on stdin with a line of JSON on stdout.
            limits: limits other than those of the sandbox.

        Raises:
            InfraError: if the sandbox does not work.
        """
        with self._turn:
            return Session(self, *self._long_lived(b"p", {"kind": "session", "source": source}, limits))

    def box(self, *, limits: Limits | None = None) -> Box | DockerBox:
        """Makes a small throwaway Linux: a root file system, or the host's programs with its own /etc, /root and /home.

        Args:
            limits: limits other than those of the sandbox.

        Raises:
            InfraError: if the sandbox does not work.
        """
        with self._turn:
            if self._docker is not None:
                if self._closed:
                    raise InfraError("expected an open sandbox, got one that was closed; make a new one")
                return self._docker.box(limits or self.limits, self._turn)
            return Box(self, *self._long_lived(b"b", {"kind": "box"}, limits))

    def close(self) -> None:
        """Ends all programs, sessions and boxes. Safe to call twice."""
        with self._lock:
            self._closed = True
            self._worker.close()
        if self._docker is not None:
            self._docker.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _long_lived(self, kind: bytes, message: dict, limits: Limits | None) -> tuple[Worker, socket.socket, Limits]:
        limits = limits or self.limits
        worker, channel, _ = self._start(kind, message, limits, _GRACE_SECONDS)
        return worker, channel, limits

    def _start(
        self, kind: bytes, message: dict, limits: Limits, timeout: float, stdin: str | None = None
    ) -> tuple[Worker, socket.socket, Any]:
        """Makes a box. If the fork server has died, tries once more with a new one.

        Returns:
            The fork server of the box, the channel to the box, and its first answer.

        Raises:
            Killed: if a program ended its own box.
            InfraError: if the sandbox does not work.
        """
        message = {**message, "limits": dataclasses.asdict(limits)}
        reason = ""
        for _ in range(2):
            worker = self._current()
            channel = None
            try:
                channel = worker.open(kind)
                return worker, channel, ask(channel, message, timeout, stdin)
            except (InfraError, EOFError, OSError) as error:
                if channel is not None:
                    channel.close()
                reason = str(error) or type(error).__name__
                if isinstance(error, InfraError):
                    continue
                if not worker.answers():
                    self._replace(worker)
                elif message["kind"] == "python":  # sessions and boxes have not run anything yet
                    raise Killed("a program ended the box") from error
            except Killed as error:
                if channel is not None:
                    channel.close()
                if worker.answers():
                    raise
                reason = str(error)
                self._replace(worker)
        raise InfraError(f"expected a working sandbox, got {reason} even after a restart; {ADVICE}")

    def _current(self) -> Worker:
        with self._lock:
            if self._closed:
                raise InfraError("expected an open sandbox, got one that was closed; make a new one")
            return self._worker

    def _replace(self, worker: Worker) -> None:
        with self._lock:
            if self._worker is worker and not self._closed:
                worker.close()
                self._worker = Worker(self._launch)


class _Resident:
    """A box that lives on between requests."""

    def __init__(self, sandbox: Sandbox, worker: Worker, channel: socket.socket, limits: Limits) -> None:
        self._sandbox, self._worker, self._channel, self.limits = sandbox, worker, channel, limits
        self._lock = threading.Lock()

    def close(self) -> None:
        """Ends the box. Safe to call twice."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)  # wakes a thread that is waiting for an answer
        self._channel.close()

    def __enter__(self: _T) -> _T:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, message: dict, timeout: float) -> Any:
        with self._lock:
            if self._channel.fileno() < 0:
                raise Killed("the box is closed")
            with self._sandbox._turn:
                try:
                    return ask(self._channel, message, timeout + _GRACE_SECONDS)
                except (Killed, EOFError, OSError) as error:
                    self.close()
                    if self._worker.answers():  # only this box has failed, has ended or hangs
                        if isinstance(error, Killed):
                            raise
                        raise Killed("a program ended the box") from error
                    self._sandbox._replace(self._worker)
                    raise InfraError(f"expected a working sandbox, got {error or type(error).__name__}; {ADVICE}") from error


class Session(_Resident):
    """A server in its own box, see :meth:`Sandbox.session`."""

    def request(self, obj: Any, timeout: float | None = None) -> Any:
        """Sends a JSON value and returns the server's answer.

        Args:
            obj: any JSON value.
            timeout: seconds; by default ``limits.wall_s``.

        Raises:
            Killed: if the server ended or exceeded its limits, which is the fault of the request.
            InfraError: if the sandbox does not work.
        """
        timeout = timeout or self.limits.wall_s
        answer = self._ask({"line": json.dumps(obj), "timeout": timeout}, timeout)
        try:
            return json.loads(answer["line"])
        except (ValueError, RecursionError) as error:
            self.close()
            raise Killed(f"the server did not answer with JSON: {answer['line'][:200]!r}") from error


class Box(_Resident):
    """A throwaway Linux, see :meth:`Sandbox.box`. Files and background processes persist until the box is closed."""

    def __init__(self, sandbox: Sandbox, worker: Worker, channel: socket.socket, limits: Limits) -> None:
        super().__init__(sandbox, worker, channel, limits)
        self._shells = itertools.count()

    def exec(
        self,
        argv: list[str],
        *,
        stdin: str = "",
        cwd: str = "/",
        timeout: float | None = None,
        trusted: bool = False,
        allowed: Mapping[str, str] | None = None,
    ) -> Completed:
        """Runs one command. The exit code is 127 if there is no such program.

        A trusted command checks the work of earlier, untrusted commands. It sees a copy of the files, and the processes of the
        box can neither see nor signal it; their servers answer. Python does not load modules of users. If a program, library or
        setting of the system has changed since :meth:`seal`, the command is refused. What it writes is seen by the trusted
        commands that follow directly. Under the isolation ``none``, it is an ordinary command.

        Args:
            argv: the program (looked up in PATH) and its arguments.
            stdin: input of the command.
            cwd: working directory.
            timeout: seconds; by default ``limits.wall_s``.
            trusted: whether this is a trusted command.
            allowed: changes that a trusted command accepts, as :meth:`changes` returns them.

        Raises:
            Killed: if earlier commands have ended the box, keep programs from starting, or have changed the system that a
                trusted command relies on.
            InfraError: if the sandbox does not work.
        """
        timeout = timeout or self.limits.wall_s
        message = {"do": "exec", "argv": list(argv), "stdin": stdin, "cwd": cwd, "timeout": timeout, "trusted": trusted}
        message["allowed"] = dict(allowed or {})
        return Completed(**self._ask(message, timeout))

    def seal(self) -> None:
        """Ends the preparation of the box: changes to programs are measured from here, not from the start of the box.

        Raises:
            Killed: if earlier commands have ended the box.
            InfraError: if the sandbox does not work.
        """
        self._ask({"do": "seal"}, self.limits.wall_s)

    def changes(self) -> dict[str, str]:
        """The programs, libraries and settings that have changed since :meth:`seal`, or since the box was made.

        A change after which a file has the same content and can still be read and executed does not count. Under the isolation
        ``none``, changes are not known.

        Returns:
            For each path ``"new"``, ``"removed"``, ``"content"`` or ``"mode"``; at most 2,000.

        Raises:
            Killed: if earlier commands have ended the box.
            InfraError: if the sandbox does not work.
        """
        return self._ask({"do": "changes"}, self.limits.wall_s)["changes"]

    def shell(self) -> Shell:
        """An interactive login shell. It starts with its first command."""
        return Shell(self, next(self._shells))


class Shell:
    """An interactive login shell (``bash --login --noediting``): folder, variables and ``su`` persist between commands.

    Commands are typed. After a timeout, the command goes on, and the next one is typed all the same, as in a terminal: a
    program that is running may read it as its input, or else the shell executes it later. Output that arrives late is part of
    the next result. After ``exit``, the next command starts a new login shell in the same box.
    """

    def __init__(self, box: Box, number: int) -> None:
        self._box, self._number = box, number

    def run(self, code: str, timeout: float | None = None) -> Completed:
        """Types ``code`` and returns the output of the terminal, without prompt and echo, and the last exit code.

        Args:
            code: one or more lines of bash.
            timeout: seconds; by default ``limits.wall_s``.

        Raises:
            Killed: if earlier commands have ended the box or keep the shell from starting.
            InfraError: if the sandbox does not work.
        """
        timeout = timeout or self._box.limits.wall_s
        message = {"do": "shell", "shell": self._number, "code": code, "timeout": timeout}
        return Completed(**self._box._ask(message, timeout + 10.0))
