"""The models of a run: where base and experts lie, training what is missing, loading what is there."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from cycleqd_jax import baselines
from cycleqd_jax.config import RunConfig, TaskConfig, TrainConfig, to_dict
from cycleqd_jax.models import chat, hf, llama
from cycleqd_jax.tasks import miniature
from cycleqd_jax.types import InputError, Message, Params, Progress

__all__ = ["Models"]

RECIPE = 1
"""Part of every cached model's name; raised whenever the same config would train other models."""

ALL_DATA = ("finetune_all", "finetune_all_longer")
"""Models fine-tuned on the data of all tasks, shuffled: for as many steps as one expert, and as all experts together."""

Lessons = Callable[[TaskConfig], list[list[Message]]]
"""Solved conversations to fine-tune the expert of a task on."""


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _file_identity(path: str | Path) -> list[Any]:
    """Names, sizes and times of a file, or of those in a folder (reading 16 GB to hash them would take minutes)."""
    path = Path(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


class Models:
    """Base, experts and the models tuned on all data of one config.

    Trained models are cached under a name that says what they depend on, so that runs that differ in their search alone share
    them.

    Attributes:
        folders: Hugging Face folders by the names of the results table: ``base``, ``expert/<task>`` and, unless experts are
            given, those of :data:`ALL_DATA`; what is trained may not be there yet.
    """

    def __init__(self, config: RunConfig, lessons: Lessons, progress: Progress) -> None:
        """Checks that base and experts that are given belong together, from their headers alone.

        Args:
            config: of the run.
            lessons: asked where an expert has to be trained.
            progress: shown while training.

        Raises:
            InputError: when they do not, or can't be read.
        """
        self._config = config
        self._lessons = lessons
        self._progress = progress
        model = config.model
        if model.base is not None:
            hf.check_compatible(model.base, [model.experts[name] for name in config.task_names] if model.experts else [])
        self.folders = self._name_folders()

    def _name_folders(self) -> dict[str, Path]:
        config, tree = self._config, to_dict(self._config)
        given = config.model.base
        base = {"recipe": RECIPE, "seed": config.seed}
        if given is None:
            kinds = [task.kind for task in config.tasks]
            base |= {
                "tiny": tree["model"]["tiny"],
                "pretrain": tree["pretrain"],
                "kinds": kinds,
                "length": config.engine.max_len,
            }
        else:
            base |= {"base": _file_identity(given)}

        def cached(name: str, *depends: Any) -> Path:
            return Path(config.cache) / "models" / f"{name}-{_digest([base, *depends])}"

        def data(task: TaskConfig) -> Any:
            file = task.finetune or task.train
            size = {"kind": task.kind, "size": task.finetune_size}
            return size if file is None else {**size, "file": _file_identity(file), "options": task.options}

        folders = {"base": cached("base") if given is None else Path(given)}
        if config.model.experts is not None:
            return folders | {f"expert/{name}": Path(config.model.experts[name]) for name in config.task_names}
        for task in config.tasks:
            folders[f"expert/{task.name}"] = cached(f"expert-{task.name}", data(task), tree["finetune"])
        for name in ALL_DATA:
            folders[name] = cached(name, [data(task) for task in config.tasks], tree["finetune"])
        return folders

    # Training

    def train(self) -> None:
        """Trains what there is no folder for: the tiny base, an expert per task, and the models of :data:`ALL_DATA`."""
        if all(folder.exists() for folder in self.folders.values()):
            return
        if not self.folders["base"].exists():
            self._pretrain(self.folders["base"])
        config, base = hf.load(self.folders["base"])
        tokenizer = chat.ChatTokenizer.load(self.folders["base"])
        tasks, options = self._config.tasks, self._config.finetune
        examples = {task.name: [tokenizer.encode_for_training(c) for c in self._lessons(task)] for task in tasks}
        jobs = [(f"expert/{task.name}", examples[task.name], options, f"expert {task.name}") for task in tasks]
        everything = [example for group in examples.values() for example in group]
        longer = dataclasses.replace(options, steps=options.steps * len(tasks))
        jobs += [
            (name, everything, train, f"all data, {train.steps} steps")
            for name, train in zip(ALL_DATA, (options, longer), strict=True)
        ]
        for number, (name, data, train, stage) in enumerate(jobs, 1):
            if not self.folders[name].exists():
                params = self._train(base, config, data, train, number, stage)
                hf.save(self.folders[name], config, params, tokenizer=tokenizer)

    def _pretrain(self, folder: Path) -> None:
        tiny, seed = self._config.model.tiny, self._config.seed
        corpus = miniature.pretraining(seed, tiny.problems, tiny.breadth, [task.kind for task in self._config.tasks])
        texts = [message["content"] for conversation in corpus for message in conversation]
        tokenizer = chat.train_tiny_tokenizer(texts, tiny.vocab_size)
        config = llama.LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=tiny.hidden_size,
            intermediate_size=tiny.intermediate_size,
            num_hidden_layers=tiny.num_layers,
            num_attention_heads=tiny.num_heads,
            num_key_value_heads=tiny.num_kv_heads,
            head_dim=tiny.hidden_size // tiny.num_heads,
            max_position_embeddings=self._config.engine.max_len,
            rope_theta=tiny.rope_theta,
            initializer_range=tiny.initializer_range,
            tie_word_embeddings=True,
        )
        params = llama.init_params(config, jax.random.key(seed))
        examples = [tokenizer.encode_for_training(conversation) for conversation in corpus]
        params = self._train(params, config, examples, self._config.pretrain, 0, "pretrain")
        hf.save(folder, config, params, tokenizer=tokenizer)

    def _train(
        self, params: Params, config: llama.LlamaConfig, examples: Sequence[Any], train: TrainConfig, number: int, stage: str
    ) -> Params:
        options = baselines.TrainOptions(**to_dict(train))
        seed = self._config.seed * 1000 + number
        return baselines.finetune(params, config, examples, options, seed=seed, progress=self._progress, stage=stage)[0]

    # Loading

    @functools.cached_property
    def _loaded(self) -> tuple[llama.LlamaConfig, dict[str, Params]]:
        missing = [name for name, folder in self.folders.items() if not folder.exists()]
        if missing:
            raise InputError(f"there is no model for {missing[0]} yet: run `cycleqd finetune` with this config first.")
        dtype = self._config.model.dtype
        loaded: dict[str, Params] = {}
        configs: dict[str, llama.LlamaConfig] = {}
        for name, folder in self.folders.items():
            config, params = hf.load(folder)
            configs[name] = config if dtype is None else dataclasses.replace(config, dtype=dtype)
            loaded[name] = params if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        return configs["base"], loaded

    @property
    def config(self) -> llama.LlamaConfig:
        """Architecture of the base, and so of all."""
        return self._loaded[0]

    @property
    def params(self) -> dict[str, Params]:
        """Weights, by the names of the results table."""
        return self._loaded[1]

    @functools.cached_property
    def tokenizer(self) -> chat.ChatTokenizer:
        """Tokenizer and chat template of the base."""
        return chat.ChatTokenizer.load(self.folders["base"])
