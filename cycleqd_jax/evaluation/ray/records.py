"""What is recorded of every worker."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

__all__ = ["WorkerRecord", "WorkerState"]

WorkerState = Literal["waiting", "starting", "idle", "busy", "ended", "refused"]
"""``waiting`` for resources of the cluster; ``starting``: loads the models; ``ended``: its process or its node was lost;
``refused``: it could not start, or does not evaluate as the others do."""


@dataclasses.dataclass
class WorkerRecord:
    """Health and throughput of one worker.

    Attributes:
        id: its number in this start of the run.
        state: see :data:`WorkerState`.
        host: name of its machine; None while it waits.
        pid: the id of its process; None while it waits.
        device: kind of its devices; None before it has started.
        start_s: seconds in which it has loaded the models, after its process has started; None before.
        evaluated: individuals that it has evaluated.
        busy_s: seconds that it has spent on them.
        lost: evaluations that ended with the worker, and were repeated elsewhere.
        error: why it ended or was refused; None otherwise.
    """

    id: int
    state: WorkerState = "waiting"
    host: str | None = None
    pid: int | None = None
    device: str | None = None
    start_s: float | None = None
    evaluated: int = 0
    busy_s: float = 0.0
    lost: int = 0
    error: str | None = None

    @property
    def per_hour(self) -> float | None:
        """Individuals per busy hour; None before the first."""
        return 3600 * self.evaluated / self.busy_s if self.busy_s > 0 else None

    def to_json(self) -> dict[str, Any]:
        """The fields and ``per_hour``, JSON-ready."""
        rounded = {"busy_s": round(self.busy_s, 3), "start_s": None if self.start_s is None else round(self.start_s, 3)}
        pace = self.per_hour
        return {**dataclasses.asdict(self), **rounded, "per_hour": None if pace is None else round(pace, 3)}
