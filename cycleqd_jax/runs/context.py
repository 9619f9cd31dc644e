"""What the stages of a run share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.config import RunConfig
from cycleqd_jax.engine import ChatGenerator
from cycleqd_jax.evaluation import Evaluator
from cycleqd_jax.machine import cpu_count
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.runs.devices import DeviceGroup
from cycleqd_jax.runs.examples import Examples
from cycleqd_jax.runs.faults import halve_slots, known_slots
from cycleqd_jax.runs.models import Models
from cycleqd_jax.tasks import RecordTask
from cycleqd_jax.types import Params, Progress, Split

__all__ = ["Context", "workers"]


@dataclasses.dataclass(frozen=True)
class Context:
    """What the stages of a run share.

    Attributes:
        config: the config of the run.
        models: base, experts and baselines.
        tasks: the tasks, in the order of the config.
        examples: the training conversations of every task.
        groups: the groups of devices; children are spread over them, and everything else happens in the first.
        progress: called by long stages.
        log: called with single lines.
        shared: the folder of a finished run that differs in its search only, whose scores of experts, baselines and merges are
            taken over; None measures them.
        read_only: whether nothing is written into the run folder.
    """

    config: RunConfig
    models: Models
    tasks: Sequence[RecordTask[Any]]
    examples: Examples
    groups: Sequence[DeviceGroup]
    progress: Progress
    log: Callable[[str], None]
    shared: Path | None = None
    read_only: bool = False

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.folder

    def evaluator(self, config: LlamaConfig, tokenizer: ChatTokenizer, group: DeviceGroup) -> Evaluator:
        """An evaluator for models of one architecture and tokenizer.

        Its engine has the slots that the run has halved before, where it has; see :func:`~cycleqd_jax.runs.faults.known_slots`.

        Args:
            config: the config of the models.
            tokenizer: the tokenizer of the models.
            group: the devices on which it decodes.
        """
        configured, folder = self.config.engine.slots, None if self.read_only else self.folder
        slots = known_slots(self.folder, configured)
        engine = group.engine(config, tokenizer, dataclasses.replace(self.config.engine, slots=slots))

        def load(params: Params, *, donate: bool) -> None:
            engine.load(group.place(params, config), donate=donate)

        sizes: dict[str, dict[Split, int | None]] = {
            task.name: {"train": task.train_size, "test": task.test_size} for task in self.config.tasks
        }
        generator = ChatGenerator(engine, tokenizer)
        return Evaluator(
            load,
            generator,
            self.tasks,
            unload=engine.unload,
            shrink=lambda: halve_slots(engine, configured, self.log, folder),
            usage=engine.usage,
            sizes=sizes,
            workers=workers(self.config),
        )


def workers(config: RunConfig) -> int:
    """Sandboxes that execute at the same time."""
    return config.sandbox.workers or cpu_count()
