"""Training of the models that a run lacks: the tiny base, the prepared base, an expert for each task, and the baselines."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from cycleqd_jax.config import RunConfig, TrainConfig
from cycleqd_jax.models import llama
from cycleqd_jax.models.tokenizer import train_tiny_tokenizer
from cycleqd_jax.runs.devices.groups import Architecture
from cycleqd_jax.runs.families import Processor, family_of
from cycleqd_jax.runs.inputs.examples import Examples
from cycleqd_jax.runs.inputs.models import Models
from cycleqd_jax.runs.inputs.resolve import tiny_llama
from cycleqd_jax.runs.training.checkpoints import CachedTraining, claimed, remove_unfinished
from cycleqd_jax.runs.usage import write_training
from cycleqd_jax.tasks import miniature
from cycleqd_jax.types import Params, Progress

__all__ = ["Trainer"]


class Trainer:
    """Trains into the folders of a run's models; a model whose folder exists is not trained again."""

    def __init__(
        self, config: RunConfig, models: Models, examples: Examples, progress: Progress, log: Callable[[str], None]
    ) -> None:
        """Args:
        config: the config of the run.
        models: the models of the run; only their folders and their processor are used.
        examples: what the expert of every task learns from.
        progress: called while training.
        log: called with warnings.
        """  # noqa: D205
        self._config = config
        self._family = family_of(config)
        self._models = models
        self._examples = examples
        self._progress = progress
        self._log = log
        self._cache = Path(config.cache)

    def train(self) -> None:
        """Trains every model that has no folder yet.

        Another process that trains the same model is waited for.

        Raises:
            InputError: no gold solution of a task scores in the sandbox, or the disk refuses.
        """
        folders = self._models.folders
        wanted = {**folders.search, **folders.baselines}
        if all(folder.exists() for folder in wanted.values()):
            for folder in wanted.values():
                remove_unfinished(self._cache, folder.name)
            return
        with self._claim(wanted.pop("base")) as missing:
            if missing:
                self._pretrain(folders.original)
        if (prepared := wanted.pop("prepared_base", None)) is not None:
            with self._claim(prepared) as missing:
                if missing:
                    self._prepare(prepared)
        config, base = self._load(folders.base)
        for name, folder in wanted.items():
            with self._claim(folder) as missing:
                if missing:
                    self._finetune(name, folder, config, base)

    def train_expert(self, task: str) -> Path:
        """Trains the expert of one task, from a base that is there, and returns its folder; does nothing if that exists.

        Raises:
            InputError: see :meth:`train`.
        """
        folder = self._models.folders.expert(task)
        with self._claim(folder) as missing:
            if missing:
                self._finetune(f"expert/{task}", folder, *self._load(self._models.folders.base))
        return folder

    @contextlib.contextmanager
    def _claim(self, folder: Path) -> Iterator[bool]:
        """Holds the lock of a model; yields whether it is still to be trained."""
        if folder.exists():
            remove_unfinished(self._cache, folder.name)  # of a process that was killed when it had saved the model
            yield False
            return
        with claimed(self._cache, folder.name):
            yield not folder.exists()

    def _load(self, folder: Path) -> tuple[Architecture, Params]:
        """Reads a model in the dtype of its files."""
        return self._family.load(folder, dataclasses.replace(self._config.model, dtype=None))

    def _pretrain(self, folder: Path) -> None:
        tiny, seed = self._config.model.tiny, self._config.seed
        corpus = miniature.pretraining(seed, tiny.problems, tiny.breadth, [task.kind for task in self._config.tasks])
        texts = [message["content"] for conversation in corpus for message in conversation]
        tokenizer = train_tiny_tokenizer(texts, tiny.vocab_size)
        config = tiny_llama(self._config, tokenizer.vocab_size)
        params = llama.init_params(config, jax.random.key(seed))
        examples = [tokenizer.encode_for_training(conversation) for conversation in corpus]
        self._fit(folder, config, params, tokenizer, examples, self._config.pretrain, "pretrain", "pretrain")

    def _prepare(self, folder: Path) -> None:
        """The base of all experts: the original one after a joint fine-tuning, with the share of every task in the data."""
        prepare = self._config.model.prepare
        assert prepare is not None
        config, original = self._load(self._models.folders.original)
        shares, count = prepare.share_of(self._config.task_names), prepare.steps * prepare.batch_size
        examples = self._examples.mixture(shares, count, _seed(folder))
        self._fit(folder, config, original, self._models.processor, examples, prepare, "prepare", "model.prepare")

    def _finetune(self, name: str, folder: Path, config: Architecture, base: Params) -> None:
        """An expert (``expert/<task>``), or a baseline on the data of all tasks."""
        options, tasks = self._config.finetune, [name.removeprefix("expert/")]
        if name in self._models.folders.baselines:
            tasks = list(self._config.task_names)
        if name == "finetune_all_longer":
            options = dataclasses.replace(options, steps=options.steps * len(tasks))
        examples = self._examples.joined(tasks)
        stage = name.replace("_", " ").replace("/", " ")
        self._fit(folder, config, base, self._models.processor, examples, options, stage, "finetune")

    def _fit(
        self,
        folder: Path,
        config: Architecture,
        params: Params,
        processor: Processor,
        examples: Sequence[Any],
        train: TrainConfig,
        stage: str,
        key: str,
    ) -> None:
        """Trains a model and saves it; ``key`` is the part of the config that ``train`` is."""
        cache, seed = self._cache, _seed(folder)
        minutes = self._config.checkpoint.training_minutes
        with CachedTraining(cache, folder.name, seed=seed, minutes=minutes, log=self._log) as checkpoints:
            params, used = self._family.finetune(
                params,
                config,
                examples,
                train,
                self._config,
                seed=seed,
                progress=self._progress,
                stage=stage,
                key=key,
                checkpoints=checkpoints,
            )
        write_training(cache, folder, used)
        self._family.save(folder, config, params, processor)
        checkpoints.remove()


def _seed(folder: Path) -> int:
    """The seed of a training; the name of a folder is a digest of all that its model depends on."""
    return zlib.crc32(folder.name.encode())
