"""What runs in the process of a worker.

Ray sends this module by value. It needs nothing but the standard library until :meth:`Host.start` loads the models, so a worker
whose machine lacks the package can still report which machine that is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cycleqd_jax.evaluation.workers import Relatives, Worker
from cycleqd_jax.types import Evaluation, Genome, Split

__all__ = ["ActorHost", "Host", "Hosted", "Program", "kill_process", "start_time"]


@dataclasses.dataclass(frozen=True)
class Hosted:
    """What a worker has loaded.

    Attributes:
        workers: by split, what evaluates genomes. They may share an engine.
        facts: JSON-ready; ``device`` is the kind of its devices.
        settings: contexts of the process that are left when it ends, such as the compilation cache. What nothing refers to is
            left at once.
    """

    workers: Mapping[Split, Worker]
    facts: Mapping[str, Any]
    settings: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)


@runtime_checkable
class Program(Protocol):
    """Loads what a worker needs. It is sent to every worker, so it must be small and can be pickled."""

    def start(self, log: Callable[[str], None]) -> Hosted:
        """Loads the models in the process of the worker.

        Args:
            log: called with single lines, which reach the run.

        Raises:
            InputError: this process can't evaluate as the others do: another version, another basis, a missing folder.
        """
        ...


class Host:
    """A worker's process. One call at a time."""

    def __init__(self) -> None:
        self._hosted: Hosted | None = None
        self._lines: list[str] = []

    def identify(self) -> dict[str, Any]:
        """The ``host``, the ``pid`` and the start time (``started``, in clock ticks) of this process."""
        return {"host": platform.node(), "pid": os.getpid(), "started": start_time(os.getpid())}

    def start(self, program: Program) -> tuple[Mapping[str, Any], list[str]]:
        """Loads the models; returns the facts of :class:`Hosted` and the lines that were logged."""
        self._hosted = program.start(self._lines.append)
        return self._hosted.facts, self._taken()

    def evaluate(self, split: Split, genomes: Sequence[Genome], relatives: Relatives) -> tuple[list[Evaluation], list[str]]:
        """Evaluates genomes on the problems of a split; returns the evaluations and the lines that were logged."""
        assert self._hosted is not None, "a worker that has started"
        options: dict[str, Any] = {"relatives": relatives} if any(relatives) else {}
        found = self._hosted.workers[split](genomes, threading.Event(), **options)
        return found, self._taken()

    def _taken(self) -> list[str]:
        lines, self._lines[:] = list(self._lines), []
        return lines


class ActorHost(Host):
    """A host with the id of its node in a Ray cluster."""

    def identify(self) -> dict[str, Any]:
        """See :meth:`Host.identify`; ``node`` is the id of the node."""
        import ray

        return {**super().identify(), "node": ray.get_runtime_context().get_node_id()}


def kill_process(pid: int, started: int | None) -> None:
    """Kills a process of this machine, unless it has ended; a process that stands in a debugger or is stopped too.

    Args:
        pid: the id of the process.
        started: its :func:`start_time`; None kills nothing.
    """
    if started is not None and start_time(pid) == started:
        os.kill(pid, signal.SIGKILL)


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None if there is no such process.

    A pid is used again after its process has ended; pid and start time together are not.
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
