"""The manager: one warm fork server, restarted once when it dies, and what runs in its boxes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any, Literal, TypeVar

from .base import Completed, InfraError, Isolation, Killed, Limits
from .build import Rootfs
from .docker import IMAGE, Docker, DockerBox
from .launch import Launch, launches
from .worker import Worker, ask

__all__ = ["Box", "Sandbox", "Session", "Shell", "detect"]

_ISOLATIONS = ("bwrap", "userns", "none")  # strongest first
_GRACE_SECONDS = 30.0  # how much later than its clock a supervisor may answer before we call it broken
_ADVICE = "install bubblewrap (apt-get install bubblewrap), or ask for isolation=none by name to run programs UNSANDBOXED"

_LIMITS = Limits()
_T = TypeVar("_T")


def detect() -> list[Isolation]:
    """The isolations that hold here, strongest first; each has just run a program and a box."""
    found = []
    for name in _ISOLATIONS:
        try:
            launch, worker = _find(name, None)
        except InfraError:
            continue
        worker.close()
        found.append(launch.isolation)
    return found


def _find(name: str, rootfs: Rootfs | None) -> tuple[Launch, Worker]:
    """The first way to start the isolation ``name`` that passes its probe, started."""
    found = launches(name, None if rootfs is None else rootfs.tree)
    reasons = [] if found else [f"{name} is not installed"]
    for launch in found:
        try:
            worker = Worker(launch)
        except InfraError as error:
            reasons.append(str(error))
            continue
        try:
            _probe(worker, launch, rootfs is None)
        except (InfraError, Killed, EOFError, OSError) as error:
            worker.close()
            reasons.append(f"the isolation {name!r} does not hold here: {error}")
        else:
            return launch, worker
    raise InfraError("; ".join(dict.fromkeys(reasons)))


def _probe(worker: Worker, launch: Launch, host: bool) -> None:
    limits = dataclasses.asdict(Limits(wall_s=_GRACE_SECONDS))
    sealed = launch.isolation.name != "none"
    here = os.path.abspath(__file__)
    with worker.open(b"p") as channel:
        source = f"import os, colorsys; print(os.path.exists({here!r}), os.getpid() < 10)"
        message = {"kind": "python", "limits": limits, "source": source, "stdin": ""}
        answer = ask(channel, message, 2 * _GRACE_SECONDS)
    if answer["exit_code"] != 0 or (sealed and answer["output"].split() != ["False", "True"]):
        raise InfraError(f"a first program ended with {answer}")
    with worker.open(b"b") as channel:
        ask(channel, {"kind": "box", "limits": limits}, 2 * _GRACE_SECONDS)
        script = "id -u"
        if sealed:
            script = f"echo probe > /etc/probe && {'test ! -s /etc/sudoers && ' * host}{script}"
        message = {"do": "exec", "argv": ["sh", "-c", script], "stdin": "", "cwd": "/"}
        message |= {"timeout": _GRACE_SECONDS, "trusted": sealed}
        answer = ask(channel, message, 2 * _GRACE_SECONDS)
    if answer["exit_code"] != 0 or (sealed and answer["output"].strip() != "0"):
        raise InfraError(f"a first box ended with {answer}")


class Sandbox:
    """Runs what nobody has read. Thread-safe; a context manager.

    Args:
        isolation: ``"auto"`` for the strongest that holds here (never ``"none"``), or one by name.
        limits: of every box that is not given its own.
        workers: most programs, commands and requests at work at once (boxes that wait do not count); more callers wait
            their turn, off the clock. By default one for each core.
        rootfs: folder of a root file system for boxes, as :func:`~cycleqd_jax.sandbox.build.build_rootfs` makes one; by
            default boxes show the programs and settings of this machine.
        backend: what makes boxes: ``"bwrap"`` for this sandbox under its isolation, ``"docker"`` for a Docker engine.
            Programs and sessions run in this sandbox in either case.
        image: of Docker's containers.

    Attributes:
        isolation: the isolation in use.
        system: what boxes show, as a short text that differs where they do: results of commands depend on it.

    Raises:
        InfraError: no isolation holds here, or Docker does not answer.
        ValueError: there is no isolation or backend of that name, or no root file system in that folder.
    """

    def __init__(
        self,
        isolation: str = "auto",
        *,
        limits: Limits = _LIMITS,
        workers: int | None = None,
        rootfs: str | Path | None = None,
        backend: Literal["bwrap", "docker"] = "bwrap",
        image: str = IMAGE,
    ) -> None:
        if isolation not in ("auto", *_ISOLATIONS):
            raise ValueError(f"expected isolation to be one of auto, {', '.join(_ISOLATIONS)}, got {isolation!r}")
        if backend not in ("bwrap", "docker"):
            raise ValueError(f"expected backend to be bwrap or docker, got {backend!r}")
        if rootfs is not None and (isolation == "none" or backend == "docker"):
            what = "the backend docker, whose boxes show an image" if backend == "docker" else "the isolation none"
            raise ValueError(f"expected a root file system to be used by boxes, got {what}; leave out rootfs")
        tree = None if rootfs is None else Rootfs.load(rootfs)
        self._docker = Docker(image) if backend == "docker" else None
        self.system = "host" if tree is None else f"{tree.suite} {tree.digest}"
        if self._docker is not None:
            self.system = f"docker {self._docker.digest}"
        self.limits = limits
        self._turn = threading.BoundedSemaphore(workers or _cores())
        self._lock = threading.Lock()
        self._closed = False
        reasons = []
        for name in _ISOLATIONS[:-1] if isolation == "auto" else (isolation,):
            try:
                self._launch, self._worker = _find(name, tree)
                break
            except InfraError as error:
                reasons.append(str(error))
        else:
            raise InfraError(f"no isolation holds here ({'; '.join(reasons)}): {_ADVICE}")
        self.isolation = self._launch.isolation

    @property
    def boxes(self) -> str:
        """One sentence on what boxes show."""
        if self._docker is not None:
            return f"boxes are Docker containers of {self._docker.image} ({self._docker.digest[:19]})"
        if self.isolation.name == "none":
            return "boxes are temporary folders of this machine"
        if self.system == "host":
            return "boxes show this machine's /usr and settings, not what users own; see cycleqd sandbox build-rootfs"
        return f"boxes show a root file system ({self.system[:25]})"

    def run_python(self, source: str, *, stdin: str = "", limits: Limits | None = None) -> Completed:
        """Runs a program as ``python -I -S -B`` would, in a fresh box: no network, no files but a read-only runtime.

        Args:
            source: the program.
            stdin: what it reads.
            limits: instead of the sandbox's.

        Raises:
            InfraError: the sandbox is broken.
        """
        limits = limits or self.limits
        message = {"kind": "python", "source": source, "stdin": stdin}
        with self._turn:
            try:
                channel, answer = self._start(b"p", message, limits, limits.wall_s + _GRACE_SECONDS)
            except Killed:
                return Completed("", -9, False, False, 0.0)
        channel.close()
        return Completed(**answer)

    def session(self, source: str, *, limits: Limits | None = None) -> Session:
        """Starts a server: our own Python source, which answers each line of JSON on stdin with one on stdout.

        Raises:
            InfraError: the sandbox is broken.
        """
        with self._turn:
            return Session(self, *self._long_lived(b"p", {"kind": "session", "source": source}, limits))

    def box(self, *, limits: Limits | None = None) -> Box | DockerBox:
        """Makes a small throwaway Linux: a root file system, or the host's programs under an /etc, /root and /home of its own.

        Raises:
            InfraError: the sandbox is broken.
        """
        with self._turn:
            if self._docker is not None:
                if self._closed:
                    raise InfraError("the sandbox was closed; make a new one")
                return self._docker.box(limits or self.limits, self._turn)
            return Box(self, *self._long_lived(b"b", {"kind": "box"}, limits))

    def close(self) -> None:
        """Ends everything that still runs. Safe to call twice."""
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
        worker = self._worker
        channel, _ = self._start(kind, message, limits, _GRACE_SECONDS)
        return worker, channel, limits

    def _start(self, kind: bytes, message: dict, limits: Limits, timeout: float) -> tuple[socket.socket, Any]:
        """Makes a box and returns its channel and first answer; tries twice, the second time with a new fork server."""
        message = {**message, "limits": dataclasses.asdict(limits)}
        reason = ""
        for _ in range(2):
            worker = self._current()
            channel = None
            try:
                channel = worker.open(kind)
                return channel, ask(channel, message, timeout)
            except (InfraError, EOFError, OSError) as error:
                if channel is not None:
                    channel.close()
                reason = str(error) or type(error).__name__
                if isinstance(error, InfraError):
                    continue
                if not worker.answers():
                    self._replace(worker)
                elif message["kind"] == "python":  # nothing else has run anything yet
                    raise Killed("the box died of what ran in it") from error
        raise InfraError(f"the sandbox is broken, and starting it anew did not help: {reason}")

    def _current(self) -> Worker:
        with self._lock:
            if self._closed:
                raise InfraError("the sandbox was closed; make a new one")
            return self._worker

    def _replace(self, worker: Worker) -> None:
        with self._lock:
            if self._worker is worker and not self._closed:
                worker.close()
                self._worker = Worker(self._launch)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Resident:
    """What lives in a box between requests."""

    def __init__(self, sandbox: Sandbox, worker: Worker, channel: socket.socket, limits: Limits) -> None:
        self._sandbox, self._worker, self._channel, self.limits = sandbox, worker, channel, limits
        self._lock = threading.Lock()

    def close(self) -> None:
        """Throws the box away. Safe to call twice."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)  # wakes a thread that still waits for an answer
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
                except Killed:
                    self.close()
                    raise
                except (EOFError, OSError) as error:
                    self._channel.close()
                    if self._worker.answers():  # so only this box is gone, or answers no more
                        raise Killed("the box died of what ran in it") from error
                    self._sandbox._replace(self._worker)
                    raise InfraError(f"the sandbox is broken: {error or type(error).__name__}") from error


class Session(_Resident):
    """A server in a box of its own, see :meth:`Sandbox.session`."""

    def request(self, obj: Any, timeout: float | None = None) -> Any:
        """Sends a JSON value and returns the server's answer.

        Args:
            obj: any JSON value.
            timeout: seconds; by default ``limits.wall_s``.

        Raises:
            Killed: the server ended, took too long or too much: the fault of what it was asked to run.
            InfraError: the sandbox is broken.
        """
        timeout = timeout or self.limits.wall_s
        answer = self._ask({"line": json.dumps(obj), "timeout": timeout}, timeout)
        try:
            return json.loads(answer["line"])
        except ValueError as error:
            self.close()
            raise Killed(f"the server answered no JSON: {answer['line'][:200]!r}") from error


class Box(_Resident):
    """A throwaway Linux, see :meth:`Sandbox.box`. Files and background processes persist until it is closed."""

    def __init__(self, sandbox: Sandbox, worker: Worker, channel: socket.socket, limits: Limits) -> None:
        super().__init__(sandbox, worker, channel, limits)
        self._shells = itertools.count()

    def exec(
        self, argv: list[str], *, stdin: str = "", cwd: str = "/", timeout: float | None = None, trusted: bool = False
    ) -> Completed:
        """Runs one command; exit code 127 where there is no such program.

        A trusted command is one of ours whose result decides something, after commands that nobody has read. All else in the
        box stands still meanwhile, Python does not load users' modules, and where what it relies on (a program, library or
        setting of the system) is not as it was when the box was made, it does not count. Under the isolation ``none`` it is a
        command as any other.

        Args:
            argv: the program (looked up in PATH) and its arguments.
            stdin: what it reads.
            cwd: its folder.
            timeout: seconds; by default ``limits.wall_s``.
            trusted: whether the box's programs must be those of the host.

        Raises:
            Killed: what ran in this box has ended the box, keeps programs from starting, or has changed what a trusted command
                relies on.
            InfraError: the sandbox is broken.
        """
        timeout = timeout or self.limits.wall_s
        message = {"do": "exec", "argv": list(argv), "stdin": stdin, "cwd": cwd, "timeout": timeout, "trusted": trusted}
        return Completed(**self._ask(message, timeout))

    def shell(self) -> Shell:
        """An interactive login shell; starts with its first command."""
        return Shell(self, next(self._shells))


class Shell:
    """An interactive login shell (``bash --login --noediting``): folder, variables and ``su`` persist between commands.

    Commands are as if typed; a program that reads the terminal reads what we type next, so it waits for its timeout. After
    ``exit`` the next command finds a fresh login shell in the same box; after a timeout the shell is dead.
    """

    def __init__(self, box: Box, number: int) -> None:
        self._box, self._number = box, number
        self._dead = False

    def run(self, code: str, timeout: float | None = None) -> Completed:
        """Types ``code`` and returns what the terminal shows, without prompt and echo, and the last exit code.

        Args:
            code: one or more lines of bash.
            timeout: seconds; by default ``limits.wall_s``.

        Raises:
            Killed: what ran in this box has ended the box, or keeps the shell from starting.
            InfraError: the sandbox is broken.
        """
        if self._dead:
            return Completed("the shell is dead: an earlier command took too long\n", None, True, False, 0.0)
        timeout = timeout or self._box.limits.wall_s
        message = {"do": "shell", "shell": self._number, "code": code, "timeout": timeout}
        done = Completed(**self._box._ask(message, timeout + 10.0))
        self._dead = done.timed_out
        return done
