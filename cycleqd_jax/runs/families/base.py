"""What the stages of a run need of a family of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cycleqd_jax.config import ModelConfig, RunConfig, TrainConfig
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.runs.devices.groups import Architecture, DeviceGroup
from cycleqd_jax.training import TrainingCheckpoints, TrainOptions
from cycleqd_jax.types import ModelEvaluator, Params, Progress, Split

__all__ = ["Family", "Processor", "sizes_of", "train_options"]

Processor = ChatTokenizer | Path
"""What makes a model's inputs of data: a tokenizer with its chat template, or a folder with the files of an image processor."""


@runtime_checkable
class Family(Protocol):
    """What the stages of a run need of a family of models. Everything else is the same for all families. It has no state.

    Attributes:
        pipeline: the hub's name of what the models do, for model cards.
        unit: what costs are counted in, such as ``"tokens"``.
    """

    pipeline: str
    unit: str

    def processor(self, model: str | Path) -> Processor:
        """What makes the inputs of a model.

        Raises:
            InputError: the model has none.
        """
        ...

    def check_model(self, model: str | Path, run: RunConfig) -> None:
        """Checks that a model fits a run, before its weights are read.

        Raises:
            InputError: it does not.
        """
        ...

    def load(
        self,
        folder: str | Path,
        options: ModelConfig,
        *,
        like: Architecture | None = None,
        shardings: Callable[[Architecture], Any] | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> tuple[Architecture, Params]:
        """Reads a model.

        Args:
            folder: the model.
            options: ``dtype`` and ``vocab_size`` are used.
            like: the base, whose form an expert gets where that changes nothing; None for the base itself.
            shardings: the shardings of the weights; None is one device.
            log: called with warnings.

        Raises:
            InputError: the model can't be read, or its weights are not finite.
        """
        ...

    def save(
        self, folder: str | Path, config: Architecture, params: Params, processor: Processor, card: str | None = None
    ) -> None:
        """Writes a model folder with the files of its processor.

        Raises:
            InputError: the folder can't be written, or weights are not finite.
        """
        ...

    def examples(self, processor: Processor, data: Sequence[Any]) -> Sequence[Any]:
        """What :meth:`finetune` learns from, of a task's training data."""
        ...

    def finetune(
        self,
        params: Params,
        config: Architecture,
        examples: Sequence[Any],
        train: TrainConfig,
        run: RunConfig,
        *,
        seed: int,
        progress: Progress,
        stage: str,
        key: str,
        checkpoints: TrainingCheckpoints | None = None,
    ) -> tuple[Params, dict[str, Any]]:
        """Trains a model.

        Args:
            params: the initial weights.
            config: the model.
            examples: the result of :meth:`examples`.
            train: options of the training.
            run: the config of the run, for options that all trainings share.
            seed: the seed of the training.
            progress: called while training.
            stage: the name of the training in progress and errors.
            key: the part of the config that ``train`` is, for errors.
            checkpoints: where the state of the training is kept while it runs.

        Returns:
            The weights, and the record of what the training has used (:mod:`cycleqd_jax.runs.usage`).

        Raises:
            InputError: the data is unusable, or the loss is not finite.
        """
        ...

    def evaluator(
        self,
        config: Architecture,
        processor: Processor,
        run: RunConfig,
        tasks: Sequence[Any],
        group: DeviceGroup,
        base: Callable[[], Params],
        workers: int,
        log: Callable[[str], None],
        *,
        read_only: bool,
    ) -> ModelEvaluator:
        """An evaluator of models of one architecture.

        Args:
            config: the models.
            processor: theirs.
            run: the config of the run.
            tasks: the tasks of the run.
            group: the devices that it uses.
            base: returns weights of which most models share a part.
            workers: number of sandboxes or threads that score at the same time.
            log: called with warnings.
            read_only: whether nothing is written into the run folder.
        """
        ...

    def library(self, config: Architecture) -> str:
        """The library that opens a saved model, by its name on the hub, for model cards."""
        ...

    def flops(self, config: Architecture) -> Mapping[str, int]:
        """FLOPs of a forward pass: ``layers``, ``head`` and ``pair``, for each ``computed``, ``generated`` and ``attended``."""
        ...


def sizes_of(run: RunConfig) -> dict[str, dict[Split, int | None]]:
    """How many of the first train and test problems of every task a model is scored on; None is all."""
    return {task.name: {"train": task.train_size, "test": task.test_size} for task in run.tasks}


def train_options(train: TrainConfig) -> TrainOptions:
    """The options of a training, from the part of the config that all families share."""
    return TrainOptions(**{item.name: getattr(train, item.name) for item in dataclasses.fields(TrainConfig)})
