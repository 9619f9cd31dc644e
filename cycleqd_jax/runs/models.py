"""The models of a run: where base and experts lie, training what is missing, loading what is there."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from huggingface_hub.constants import HF_HUB_CACHE

from cycleqd_jax import operators
from cycleqd_jax import training as baselines
from cycleqd_jax.config import RunConfig, TrainConfig, to_dict
from cycleqd_jax.files import digest, locked
from cycleqd_jax.models import compare, llama
from cycleqd_jax.models import tokenizer as chat
from cycleqd_jax.models.files import hf, peft
from cycleqd_jax.models.files.checkpoint import load_tokenizer, open_checkpoint
from cycleqd_jax.models.preflight import Preflight, local_folder, preflight
from cycleqd_jax.runs.folder import folder_digest
from cycleqd_jax.tasks import miniature
from cycleqd_jax.types import Adapter, InputError, Message, Params, Progress

__all__ = ["Lessons", "Models", "tiny_llama"]

RECIPE = 2
"""Part of every cached model's name; raised whenever the same config would train other models."""

STRANGER = 0.7
"""‖τ‖ / ‖θ_base‖ above which an expert is probably not the base's: of two unrelated models it is about √2."""


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

    def __init__(
        self,
        config: RunConfig,
        lessons: Mapping[str, Lessons],
        progress: Progress,
        say: Callable[[str], None] = print,
        place: Callable[[llama.LlamaConfig], Any] | None = None,
    ) -> None:
        """Checks models that are given, from their headers alone.

        Args:
            config: of the run.
            lessons: of every task, by name.
            progress: shown while training.
            say: for single lines.
            place: where the weights of a model go when it is loaded (``shardings`` of ``hf.load``).

        Raises:
            InputError: when they can't be read, do not belong together, or do not suit the engine.
        """
        self._config = config
        self._lessons = lessons
        self._progress = progress
        self._say = say
        self._place = place
        model = config.model
        if model.base is not None:
            experts = [model.experts[name] for name in config.task_names] if model.experts else []
            checked = preflight(model.base, experts, dtype=model.dtype, vocab_size=model.vocab_size, tokenizer=model.tokenizer)
            limit = checked.context_length
            if config.engine.max_len > limit:
                raise InputError(f"engine.max_len is {config.engine.max_len}, but the base {model.base} has {limit} positions.")
            self._check_needs(checked)
            _ = self.tokenizer
        self.folders, self.rivals = self._name_folders()

    def _check_needs(self, checked: Preflight) -> None:
        """Refuses what will not fit the disks, and warns of what will hardly fit the memory."""
        if checked.download_bytes:
            _check_space(Path(HF_HUB_CACHE), checked.download_bytes, "the weights to be downloaded")
        _check_space(self._config.folder, checked.model_bytes, "the evolved model")
        models = 2 + sum(not isinstance(expert, Path) for expert in checked.experts)  # base, experts, and the child
        _, fsdp, tensor = self._config.mesh.sizes
        group = len(jax.devices()) if min(fsdp, tensor) < 0 else fsdp * tensor
        total = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0) * group or _host_memory()
        if total and models * checked.model_bytes > total:
            self._say(
                f"warning: {models} models of {checked.model_bytes / 1e9:.1f} GB are more than the {total / 1e9:.1f} GB of "
                "memory here; `cycleqd plan` says what would fit"
            )

    def _name_folders(self) -> tuple[dict[str, Path], dict[str, Path]]:
        config, tree = self._config, to_dict(self._config)
        given = config.model.base
        base: Path | None = None
        source: dict[str, Any] = {"recipe": RECIPE, "seed": config.seed}
        if given is None:
            kinds = [task.kind for task in config.tasks]
            source |= {
                "tiny": tree["model"]["tiny"],
                "pretrain": _recipe(config.pretrain),
                "kinds": kinds,
                "length": config.engine.max_len,
            }
        else:
            base = local_folder(given, weights=True)
            # what is trained from it depends on these too; left out where null, so that older caches keep their names
            chosen = {key: tree["model"][key] for key in ("tokenizer", "vocab_size") if tree["model"][key] is not None}
            source |= {"base": folder_digest(base), **chosen}

        def cached(name: str, *depends: Any) -> Path:
            return Path(config.cache) / "models" / f"{name}-{digest([source, *depends], digits=16)}"

        folders = {"base": cached("base") if base is None else base}
        if config.model.experts is not None:
            experts = {name: local_folder(config.model.experts[name], weights=True) for name in config.task_names}
            return folders | {f"expert/{name}": folder for name, folder in experts.items()}, {}
        for name in config.task_names:
            folders[f"expert/{name}"] = cached(f"expert-{name}", self._lessons[name].identity, _recipe(config.finetune))
        everything = [self._lessons[name].identity for name in config.task_names]
        return folders, {name: cached(name, everything, _recipe(config.finetune)) for name in config.baselines}

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
        config, base = self._read(self.folders["base"], None)
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
        config = tiny_llama(self._config, tokenizer.vocab_size)
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

    def _read(self, folder: Path, dtype: str | None, place: Any = None) -> tuple[llama.LlamaConfig, Params]:
        vocab_size = self._config.model.vocab_size
        return hf.load(folder, dtype=dtype, vocab_size=vocab_size, shardings=place)

    def _load(self, name: str, folder: Path) -> tuple[llama.LlamaConfig, Params]:
        if not folder.exists():
            raise InputError(f"there is no model for {name} yet: run `cycleqd finetune` with this config first.")
        return self._read(folder, self._config.model.dtype, self._place)

    @functools.cached_property
    def _base(self) -> tuple[llama.LlamaConfig, Params]:
        return self._load("base", self.folders["base"])

    @functools.cached_property
    def experts(self) -> list[Params | Adapter]:
        """What the genome space is made of: the weights of every expert, or its adapter as it is; in task order."""
        config, base = self._base
        experts: list[Params | Adapter] = []
        for task in self._config.task_names:
            name = f"expert/{task}"
            folder = self.folders[name]
            if peft.is_adapter(folder):
                self._warn_of_base(folder)
                whole = open_checkpoint(self.folders["base"]).config  # adapters know nothing of a cut vocabulary
                adapter = peft.load_adapter(folder, whole, base, vocab_size=config.vocab_size)
                norm = math.hypot(*compare.adapter_norms(adapter).values())
                self._warn_of_stranger(folder, norm / operators.matrix_norm(base))
                experts.append(adapter)
                continue
            params = self._load(name, folder)[1]
            self._warn_of_stranger(folder, operators.relative_norm(params, base))
            experts.append(params)
        return experts

    def _warn_of_stranger(self, folder: Path, distance: float) -> None:
        if distance > STRANGER:
            self._say(
                f"warning: the expert {folder} is {distance:.2f} × the norm of the base away from {self.folders['base']}: is "
                "that the base it was fine-tuned from?"
            )

    def _warn_of_base(self, folder: Path) -> None:
        said, given = peft.adapter_base(folder), str(self._config.model.base)
        if said is not None and Path(said).name != Path(given.partition("@")[0]).name:
            self._say(f"warning: the adapter {folder} says that it was trained on {said}, but the base is {given}")

    @property
    def config(self) -> llama.LlamaConfig:
        """Architecture of the base, and so of all."""
        return self._base[0]

    @property
    def base(self) -> Params:
        """Weights of the base."""
        return self._base[1]

    def expert_params(self, task: str) -> Params:
        """The weights of the expert of a task; an adapter is merged anew every time."""
        expert = self.experts[self._config.task_names.index(task)]
        return operators.apply_adapter(self.base, expert) if isinstance(expert, Adapter) else expert

    def load_rival(self, name: str) -> Params:
        """The weights of a rival that has been trained, read anew every time."""
        return self._load(name, self.rivals[name])[1]

    @functools.cached_property
    def tokenizer(self) -> chat.ChatTokenizer:
        """Tokenizer and chat template of all models."""
        model = self._config.model
        return load_tokenizer(model.tokenizer or model.base or self.folders["base"])


def tiny_llama(config: RunConfig, vocab_size: int) -> llama.LlamaConfig:
    """The architecture of the tiny base.

    Args:
        config: of the run.
        vocab_size: of the tokenizer trained with it; what the config has is the most.
    """
    tiny = config.model.tiny
    return llama.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=tiny.hidden_size,
        intermediate_size=tiny.intermediate_size,
        num_hidden_layers=tiny.num_layers,
        num_attention_heads=tiny.num_heads,
        num_key_value_heads=tiny.num_kv_heads,
        head_dim=tiny.hidden_size // tiny.num_heads,
        max_position_embeddings=config.engine.max_len,
        rope_theta=tiny.rope_theta,
        initializer_range=tiny.initializer_range,
        tie_word_embeddings=True,
    )


def _recipe(train: TrainConfig) -> dict[str, Any]:
    """What a training depends on; a switch that is off is left out, so that older caches keep their names."""
    return {key: value for key, value in to_dict(train).items() if value is not False}


def _host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_space(folder: Path, nbytes: int, what: str) -> None:
    """Refuses a run whose files would not fit the disk."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < nbytes:
        raise InputError(
            f"expected {nbytes / 1e9:.1f} GB of space for {what} in {folder}, got {free / 1e9:.1f} GB: choose another place or "
            "free some"
        )
