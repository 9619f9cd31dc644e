"""The models of a run: where base and experts lie, training what is missing, loading what is there."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cycleqd_jax import baselines
from cycleqd_jax.cli.folder import digest, folder_digest, locked
from cycleqd_jax.config import RunConfig, TrainConfig, to_dict
from cycleqd_jax.models import chat, hf, llama
from cycleqd_jax.tasks import miniature
from cycleqd_jax.types import InputError, Message, Params, Progress

__all__ = ["Lessons", "Models"]

RECIPE = 2
"""Part of every cached model's name; raised whenever the same config would train other models."""


@dataclasses.dataclass(frozen=True)
class Lessons:
    """Solved conversations to fine-tune the expert of a task on.

    Attributes:
        identity: changes whenever they do.
        load: makes or reads them.
    """

    identity: Any
    load: Callable[[], list[list[Message]]]


class Models:
    """Base, experts and rivals of one config.

    Trained models are cached under a name that says what they depend on, so that runs that differ in their search alone share
    them.

    Attributes:
        folders: Hugging Face folders of ``base`` and ``expert/<task>``, which every search needs.
        rivals: those of the config's ``baselines``, which are measured if they are there.
    """

    def __init__(self, config: RunConfig, lessons: Mapping[str, Lessons], progress: Progress) -> None:
        """Checks models that are given, from their headers alone.

        Args:
            config: of the run.
            lessons: of every task, by name.
            progress: shown while training.

        Raises:
            InputError: when they can't be read, do not belong together, or do not suit the engine.
        """
        self._config = config
        self._lessons = lessons
        self._progress = progress
        model = config.model
        if model.base is not None:
            hf.check_compatible(model.base, [model.experts[name] for name in config.task_names] if model.experts else [])
            limit = hf.read_config(model.base).max_position_embeddings
            if config.engine.max_len > limit:
                raise InputError(f"engine.max_len is {config.engine.max_len}, but the base {model.base} has {limit} positions.")
            _ = self.tokenizer
        self.folders, self.rivals = self._name_folders()

    def _name_folders(self) -> tuple[dict[str, Path], dict[str, Path]]:
        config, tree = self._config, to_dict(self._config)
        given = config.model.base
        source: dict[str, Any] = {"recipe": RECIPE, "seed": config.seed}
        if given is None:
            kinds = [task.kind for task in config.tasks]
            source |= {
                "tiny": tree["model"]["tiny"],
                "pretrain": tree["pretrain"],
                "kinds": kinds,
                "length": config.engine.max_len,
            }
        else:
            source |= {"base": folder_digest(given)}

        def cached(name: str, *depends: Any) -> Path:
            return Path(config.cache) / "models" / f"{name}-{digest([source, *depends])}"

        folders = {"base": cached("base") if given is None else Path(given)}
        if config.model.experts is not None:
            return folders | {f"expert/{name}": Path(config.model.experts[name]) for name in config.task_names}, {}
        for name in config.task_names:
            folders[f"expert/{name}"] = cached(f"expert-{name}", self._lessons[name].identity, tree["finetune"])
        everything = [self._lessons[name].identity for name in config.task_names]
        return folders, {name: cached(name, everything, tree["finetune"]) for name in config.baselines}

    # Training

    def train(self, rivals: bool = True) -> None:
        """Trains what there is no folder for: the tiny base, an expert per task, and the rivals.

        Args:
            rivals: train them too.
        """
        wanted = self.folders | (self.rivals if rivals else {})
        if all(folder.exists() for folder in wanted.values()):
            return
        with self._making(self.folders["base"]) as missing:
            if missing:
                self._pretrain(self.folders["base"])
        config, base = hf.load(self.folders["base"])
        for name, folder in wanted.items():
            if name == "base":
                continue
            with self._making(folder) as missing:
                if missing:
                    options, tasks = self._config.finetune, [name.removeprefix("expert/")]
                    if name in self.rivals:
                        tasks = list(self._config.task_names)
                    if name == "finetune_all_longer":
                        options = dataclasses.replace(options, steps=options.steps * len(tasks))
                    examples = [example for task in tasks for example in self._examples(task)]
                    params = self._train(base, config, examples, options, folder, name.replace("_", " ").replace("/", " "))
                    hf.save(folder, config, params, tokenizer=self.tokenizer)

    @contextlib.contextmanager
    def _making(self, folder: Path) -> Iterator[bool]:
        """Whether a model is still to be made; another run that makes the same one is waited for."""
        if folder.exists():
            yield False
            return
        locks = Path(self._config.cache) / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with locked(locks / folder.name, wait=True):
            yield not folder.exists()

    @functools.cache  # noqa: B019 (one Models per run)
    def _examples(self, task: str) -> list[Any]:
        return [self.tokenizer.encode_for_training(conversation) for conversation in self._lessons[task].load()]

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
        params = self._train(params, config, examples, self._config.pretrain, folder, "pretrain")
        hf.save(folder, config, params, tokenizer=tokenizer)

    def _train(
        self, params: Params, config: llama.LlamaConfig, examples: Sequence[Any], train: TrainConfig, folder: Path, stage: str
    ) -> Params:
        options = baselines.TrainOptions(**to_dict(train))
        seed = zlib.crc32(folder.name.encode())  # the name says all that the model depends on, and so does its seed
        return baselines.finetune(params, config, examples, options, seed=seed, progress=self._progress, stage=stage)[0]

    # Loading

    def _load(self, name: str, folder: Path) -> tuple[llama.LlamaConfig, Params]:
        if not folder.exists():
            raise InputError(f"there is no model for {name} yet: run `cycleqd finetune` with this config first.")
        config, params = hf.load(folder)
        dtype = self._config.model.dtype
        if dtype is None:
            return config, params
        return dataclasses.replace(config, dtype=dtype), jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    @functools.cached_property
    def _loaded(self) -> dict[str, tuple[llama.LlamaConfig, Params]]:
        return {name: self._load(name, folder) for name, folder in self.folders.items()}

    @property
    def config(self) -> llama.LlamaConfig:
        """Architecture of the base, and so of all."""
        return self._loaded["base"][0]

    @property
    def params(self) -> dict[str, Params]:
        """Weights of base and experts, by the names of the results table."""
        return {name: params for name, (_, params) in self._loaded.items()}

    def load_rivals(self) -> Iterator[tuple[str, Params]]:
        """Weights of those rivals that have been trained."""
        for name, folder in self.rivals.items():
            if folder.exists():
                yield name, self._load(name, folder)[1]

    @functools.cached_property
    def tokenizer(self) -> chat.ChatTokenizer:
        """Tokenizer and chat template of the base."""
        given = self._config.model.base
        return chat.ChatTokenizer.load(self.folders["base"] if given is None else given)
