"""What the stages of a run share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from cycleqd_jax.config import RunConfig
from cycleqd_jax.machine import cpu_count
from cycleqd_jax.runs.devices.groups import Architecture, DeviceGroup
from cycleqd_jax.runs.devices.mirror import Mirror
from cycleqd_jax.runs.families import Family, Processor, family_of
from cycleqd_jax.runs.inputs.examples import Examples
from cycleqd_jax.runs.inputs.models import Models
from cycleqd_jax.runs.inputs.tasks import RunTask
from cycleqd_jax.types import ModelEvaluator, Params, Progress

__all__ = ["Context", "workers"]


@dataclasses.dataclass(frozen=True)
class Context:
    """What the stages of a run share.

    Attributes:
        config: the config of the run.
        models: base, experts and baselines.
        tasks: the tasks, in the order of the config.
        examples: what the expert of every task learns from.
        groups: the groups of devices; children are spread over them, and everything else happens in the first.
        progress: called by long stages.
        log: called with single lines.
        shared: the folder of a finished run that differs in its search only, whose scores of experts, baselines and merges are
            taken over; None measures them.
        read_only: whether nothing is written into the run folder.
        mirror: the mirror of a distributed run; None in all others.
    """

    config: RunConfig
    models: Models
    tasks: Sequence[RunTask]
    examples: Examples
    groups: Sequence[DeviceGroup]
    progress: Progress
    log: Callable[[str], None]
    shared: Path | None = None
    read_only: bool = False
    mirror: Mirror | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.folder

    @property
    def family(self) -> Family:
        """The family of the models."""
        return family_of(self.config)

    def evaluator(
        self, config: Architecture, processor: Processor, group: DeviceGroup, base: Callable[[], Params] | None = None
    ) -> ModelEvaluator:
        """An evaluator for models of one architecture.

        It works on as many problems at once as when memory ran out before; see :func:`~cycleqd_jax.runs.faults.known_slots`.

        Args:
            config: the config of the models.
            processor: makes their inputs.
            group: the devices on which it works.
            base: returns weights of which most models share a part; by default those of the run's base.
        """
        shared = base or (lambda: self.models.base)
        return self.family.evaluator(
            config,
            processor,
            self.config,
            self.tasks,
            group,
            shared,
            workers(self.config),
            self.log,
            read_only=self.read_only,
        )


def workers(config: RunConfig) -> int:
    """Sandboxes that execute at the same time."""
    return config.sandbox.workers or cpu_count()
