"""Finds the isolations that work on this machine."""

from __future__ import annotations

import dataclasses
import os

from .base import InfraError, Isolation, Killed, Limits
from .build import Rootfs
from .launch import Launch, launches
from .worker import Worker, ask

__all__ = ["ISOLATIONS", "detect", "find"]

ISOLATIONS = ("bwrap", "userns", "none")
"""Names of the isolations, strongest first."""

_PROBE_SECONDS = 30.0


def detect() -> list[Isolation]:
    """The isolations that work here, strongest first. Each has just run a test program and a test box."""
    found = []
    for name in ISOLATIONS:
        try:
            launch, worker = find(name, None)
        except InfraError:
            continue
        worker.close()
        found.append(launch.isolation)
    return found


def find(name: str, rootfs: Rootfs | None) -> tuple[Launch, Worker]:
    """Starts the isolation ``name`` in the first way that passes the probe.

    Raises:
        InfraError: if no way does.
    """
    found = launches(name, None if rootfs is None else rootfs.tree)
    reasons = [] if found else [f"expected {name} to be installed, got no such program; install it"]
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
            reasons.append(f"expected the isolation {name!r} to work here, got {error}; choose another isolation")
        else:
            return launch, worker
    raise InfraError("; ".join(dict.fromkeys(reasons)))


def _probe(worker: Worker, launch: Launch, host: bool) -> None:
    """Runs a program and a box, and checks that they are isolated.

    Args:
        worker: the fork server.
        launch: how it was started.
        host: whether boxes show the programs and settings of the host.

    Raises:
        InfraError: if a check fails.
        Killed, EOFError, OSError: if the sandbox does not work.
    """
    limits = dataclasses.asdict(Limits(wall_s=_PROBE_SECONDS))
    sealed = launch.isolation.name != "none"
    here = os.path.abspath(__file__)
    with worker.open(b"p") as channel:
        source = f"import os, colorsys; print(os.path.exists({here!r}), os.getpid() < 10)"
        message = {"kind": "python", "limits": limits, "source": source}
        answer = ask(channel, message, 2 * _PROBE_SECONDS, "")
    if answer["exit_code"] != 0 or (sealed and answer["output"].split() != ["False", "True"]):
        raise InfraError(f"a test program that ended with {answer}")
    with worker.open(b"b") as channel:
        ask(channel, {"kind": "box", "limits": limits}, 2 * _PROBE_SECONDS)
        script = "id -u"
        if sealed:
            script = f"echo probe > /etc/probe && {'test ! -s /etc/sudoers && ' * host}{script}"
        message = {"do": "exec", "argv": ["sh", "-c", script], "stdin": "", "cwd": "/"}
        message |= {"timeout": _PROBE_SECONDS, "trusted": sealed}
        answer = ask(channel, message, 2 * _PROBE_SECONDS)
    if answer["exit_code"] != 0 or (sealed and answer["output"].strip() != "0"):
        raise InfraError(f"a test box that ended with {answer}")
