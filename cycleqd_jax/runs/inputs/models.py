"""The models of a run: their folders, and their weights once loaded."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cycleqd_jax import operators
from cycleqd_jax.config import MaskConfig, RunConfig, TrainConfig, to_dict
from cycleqd_jax.files import digest
from cycleqd_jax.models import compare
from cycleqd_jax.models.files import peft
from cycleqd_jax.models.files.checkpoint import open_checkpoint
from cycleqd_jax.models.inspection import UNRELATED
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.models.preflight import local_folder
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.runs.devices.groups import Architecture
from cycleqd_jax.runs.devices.mirror import Mirror, mirrored
from cycleqd_jax.runs.families import Processor, family_of
from cycleqd_jax.runs.inputs.digests import folder_digest, tokenizer_digest
from cycleqd_jax.types import Adapter, InputError, Params

__all__ = ["ModelFolders", "Models", "model_folders"]

RECIPE = 2
"""Part of the name of every cached model; raised whenever the same config would train other models."""


@dataclasses.dataclass(frozen=True)
class ModelFolders:
    """Where the models of a run lie, or will lie once they are trained.

    Attributes:
        search: the folders of ``base``, of ``prepared_base`` where the config prepares one, and of ``expert/<task>``.
        baselines: the folders of the config's ``baselines``, which are evaluated where they have been trained.
        cache: the run's cache, which keeps the digests of large files.
        tokenizer: the folder of ``model.tokenizer``, if the config names one.
    """

    search: Mapping[str, Path]
    baselines: Mapping[str, Path]
    cache: Path | None = None
    tokenizer: Path | None = None
    _digests: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def original(self) -> Path:
        """Of the base that is given, or pretrained by the run."""
        return self.search["base"]

    @property
    def base_name(self) -> str:
        """The name in ``search`` of the base that experts and search start from: ``prepared_base`` where there is one."""
        return "prepared_base" if "prepared_base" in self.search else "base"

    @property
    def base(self) -> Path:
        """Of the base that experts and search start from."""
        return self.search[self.base_name]

    def expert(self, task: str) -> Path:
        """Of the expert of a task."""
        return self.search[f"expert/{task}"]

    def digest(self, name: str) -> str:
        """The digest of a model of ``search``, computed once: reading gigabytes takes seconds.

        Args:
            name: ``base``, ``prepared_base`` or ``expert/<task>``; its folder must exist.
        """
        if name not in self._digests:
            self._digests[name] = folder_digest(self.search[name], self.cache)
        return self._digests[name]


def model_folders(config: RunConfig, training_data: Mapping[str, Any]) -> ModelFolders:
    """Names the folders of all models of a config; weights of the hub are downloaded.

    A trained model is cached under a name that is a digest of everything it depends on, so that runs that differ only in their
    search share it.

    Args:
        config: the config of the run.
        training_data: the identity of every task's training data, by task.

    Raises:
        InputError: a given model can't be read or downloaded.
    """
    tree, given = to_dict(config), config.model.base
    source: dict[str, Any] = {"recipe": RECIPE, "seed": config.seed}
    base: Path | None = None
    tokenizer: Path | None = None
    digests: dict[str, str] = {}
    if given is None:
        source |= {
            "tiny": tree["model"]["tiny"],
            "pretrain": _recipe(config.pretrain),
            "kinds": [task.kind for task in config.tasks],
            "length": config.engine.max_len,
        }
    else:
        base = local_folder(given, weights=True)
        # Options that are null are left out, so that older caches keep their names.
        chosen = {key: tree["model"][key] for key in ("tokenizer", "vocab_size") if tree["model"][key] is not None}
        if config.model.tokenizer is not None:
            tokenizer = local_folder(config.model.tokenizer, weights=False)
            chosen["tokenizer_digest"] = tokenizer_digest(tokenizer)
        digests["base"] = folder_digest(base, Path(config.cache))
        source |= {"base": digests["base"], **chosen}

    def cached(name: str, *depends: Any) -> Path:
        return Path(config.cache) / "models" / f"{name}-{digest([source, *depends], digits=16)}"

    folders = {"base": cached("base") if base is None else base}
    if config.model.experts is not None:
        for name, given in config.given_experts.items():
            folders[f"expert/{name}"] = local_folder(given, weights=True)
        return ModelFolders(folders, {}, Path(config.cache), tokenizer, digests)
    prepare = config.model.prepare
    if prepare is not None:
        data = [[training_data[name], share] for name, share in prepare.share_of(config.task_names).items()]
        folders["prepared_base"] = cached("prepared", data, _recipe(prepare))
        source["prepared"] = folders["prepared_base"].name
    recipe = _recipe(config.finetune)
    if config.segments:
        recipe |= {"masks": _mask_recipe(config.mask_options)}
    for name in config.task_names:
        folders[f"expert/{name}"] = cached(f"expert-{name}", training_data[name], recipe)
    everything = [training_data[name] for name in config.task_names]
    baselines = {name: cached(name, everything, recipe) for name in config.baselines}
    return ModelFolders(folders, baselines, Path(config.cache), tokenizer, digests)


@dataclasses.dataclass(frozen=True)
class _Loaded:
    config: Architecture
    base: Params
    experts: Sequence[Params | Adapter]


class Models:
    """The weights of base and experts, loaded when they are first needed, and held as long as this object is.

    Attributes:
        folders: the folders of the models.
        family: reads them.
    """

    def __init__(
        self,
        config: RunConfig,
        folders: ModelFolders,
        log: Callable[[str], None],
        shardings: Callable[[Any], Any] | None = None,
        related: Collection[str] = (),
        mirror: Mirror | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            config: the config of the run.
            folders: the folders of the models.
            log: called with warnings.
            shardings: the shardings of a model's weights (see :func:`cycleqd_jax.models.files.hf.load`); None is one device.
            related: names of experts that are refused where they differ much from the base. Others get a warning.
            mirror: the mirror of a distributed run, whose processes load the models together.
        """
        self.mirror = mirror
        if mirror is not None:
            mirror.register("models", self)
        self.folders = folders
        self._related = related
        self._config = config
        self.family = family_of(config)
        self._log = log
        self._shardings = shardings
        self._loaded: _Loaded | None = None
        self._processor: Processor | None = None

    def ensure_processor(self) -> Processor:
        """Opens what makes the inputs of all models, once.

        Raises:
            InputError: there is none, or it can't be used with the models.
        """
        if self._processor is None:
            model = self._config.model
            self._processor = self.family.processor(model.tokenizer or model.base or self.folders.original)
        return self._processor

    @property
    def processor(self) -> Processor:
        """What makes the inputs of all models, such as their tokenizer."""
        return self.ensure_processor()

    @property
    def tokenizer(self) -> ChatTokenizer:
        """Tokenizer and chat template of all models, which are language models."""
        processor = self.processor
        assert isinstance(processor, ChatTokenizer)
        return processor

    def check_tokenizer(self) -> None:
        """Opens the tokenizer, if the models have one.

        Raises:
            InputError: there is none, or it has no chat template or no stop token.
        """
        try:
            self.ensure_processor()
        except InputError as error:
            raise InputError(f"{error}; or set model.tokenizer to a model that has one") from error

    def ensure_loaded(self) -> _Loaded:
        """Loads the base and the experts, once.

        Raises:
            InputError: a model is not there or can't be read, its weights are not finite, or an expert that is to be related to
                the base differs much from it.
        """
        if self._loaded is None:
            self._load_all()
        assert self._loaded is not None
        return self._loaded

    @mirrored("models")
    def _load_all(self) -> None:
        config, base = self._load(self.folders.base_name, self.folders.base)
        self._loaded = _Loaded(config, base, self._load_experts(config, base))

    @property
    def config(self) -> Architecture:
        """The architecture of all models."""
        return self.ensure_loaded().config

    @property
    def base(self) -> Params:
        """The weights of the base that experts and search start from."""
        return self.ensure_loaded().base

    @property
    def experts(self) -> Sequence[Params | Adapter]:
        """The weights of every expert, or its adapter as it is, in the order of the config's ``expert_names``."""
        return self.ensure_loaded().experts

    def _load_experts(self, config: Architecture, base: Params) -> list[Params | Adapter]:
        experts: list[Params | Adapter] = []
        distances: list[float] = []
        for task in self._config.expert_names:
            folder = self.folders.expert(task)
            if peft.is_adapter(folder):
                self._warn_of_another_base(folder)
                whole = open_checkpoint(self.folders.base).config  # an adapter is for the whole vocabulary
                vocab_size = config.vocab_size if isinstance(config, LlamaConfig) else None
                adapter = peft.load_adapter(folder, whole, base, vocab_size=vocab_size)
                norm = math.hypot(*compare.adapter_norms(adapter).values())
                distances.append(norm / operators.matrix_norm(base))
                experts.append(adapter)
            else:
                params = self._load(f"expert/{task}", folder, like=config)[1]
                distances.append(operators.relative_norm(params, base))
                experts.append(params)
            self._check_distance(task, folder, distances[-1])
        self._warn_of_equals(base, experts, distances)
        return experts

    @mirrored("models", makes=True)
    def base_params(self) -> Params:
        """The weights of the base that experts and search start from; see :attr:`base`."""
        return self.base

    @mirrored("models", makes=True)
    def expert_params(self, task: str) -> Params:
        """The weights of the expert of a task; those of an adapter are merged anew at every call."""
        expert = self._expert(task)
        return operators.apply_adapter(self.base, expert) if isinstance(expert, Adapter) else expert

    def is_adapter(self, task: str) -> bool:
        """Whether the expert of a task is an adapter."""
        return isinstance(self._expert(task), Adapter)

    def _expert(self, task: str) -> Params | Adapter:
        return self.experts[self._config.expert_names.index(task)]

    @mirrored("models", makes=True)
    def load_original(self) -> Params:
        """The weights of the base before it was prepared, read anew at every call."""
        return self._load("base", self.folders.original)[1]

    @mirrored("models", makes=True)
    def load_baseline(self, name: str) -> Params:
        """The weights of a trained baseline, read anew at every call."""
        return self._load(name, self.folders.baselines[name])[1]

    def _load(self, name: str, folder: Path, like: Architecture | None = None) -> tuple[Architecture, Params]:
        """Reads a model; see :meth:`~cycleqd_jax.runs.families.Family.load`."""
        if not folder.exists():
            raise InputError(
                f"expected a model for {name}, got none in {folder}; run `cycleqd finetune` with this config first"
            )
        return self.family.load(folder, self._config.model, like=like, shardings=self._shardings, log=self._log)

    def _warn_of_equals(self, base: Params, experts: Sequence[Params | Adapter], distances: Sequence[float]) -> None:
        """Warns of experts that are the base, or each other, bit for bit: a search over them finds nothing."""
        names = [f"the expert of task {task!r} ({self.folders.expert(task)})" for task in self._config.expert_names]
        same = [distance == 0.0 and _is_base(expert, base) for expert, distance in zip(experts, distances, strict=True)]
        for name in (name for name, equal in zip(names, same, strict=True) if equal):
            self._log(f"warning: {name} equals the base {self.folders.base} bit for bit; check that it was trained and saved")
        for j, k in itertools.combinations(range(len(experts)), 2):
            if not same[j] and distances[j] == distances[k] and _equal(experts[j], experts[k]):
                self._log(f"warning: {names[k]} equals {names[j]} bit for bit; give two different experts")

    def _check_distance(self, task: str, folder: Path, distance: float) -> None:
        if distance <= UNRELATED:
            return
        if task in self._related:
            raise InputError(
                f"expected an expert that was fine-tuned from the base {self.folders.base} of {self._config.origin}, got one "
                f"that differs from it by {distance:.2f} × its norm in {folder}; give an expert of this base"
            )
        self._log(
            f"warning: the expert {folder} differs from the base {self.folders.base} by {distance:.2f} × the norm of the "
            "base; check that it was fine-tuned from it"
        )

    def _warn_of_another_base(self, folder: Path) -> None:
        named, given = peft.adapter_base(folder), str(self._config.model.base)
        if named is not None and Path(named).name != Path(given.partition("@")[0]).name:
            self._log(f"warning: the adapter {folder} names the base {named}, but model.base is {given}")


def _is_base(expert: Params | Adapter, base: Params) -> bool:
    if isinstance(expert, Adapter):  # its norm is zero already
        return True
    return _equal(expert, base)


def _equal(one: Params | Adapter, other: Params | Adapter) -> bool:
    """Whether two models, or two adapters, are equal bit for bit."""
    trees = [dict(x.updates) if isinstance(x, Adapter) else x for x in (one, other)]
    if isinstance(one, Adapter) != isinstance(other, Adapter) or jax.tree.structure(trees[0]) != jax.tree.structure(trees[1]):
        return False
    shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in trees]
    return shapes[0] == shapes[1] and all(bool(x) for x in jax.device_get(_equal_leaves(*trees)))


@jax.jit
def _equal_leaves(one: Any, other: Any) -> list[Any]:
    return [jnp.all(a == b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]


def _recipe(train: TrainConfig) -> dict[str, Any]:
    """What a training depends on; a switch that is off is left out, so that older caches keep their names."""
    options = {item.name: getattr(train, item.name) for item in dataclasses.fields(TrainConfig)}
    return {key: value for key, value in options.items() if value is not False}


def _mask_recipe(masks: MaskConfig) -> dict[str, Any]:
    """What a training on masks depends on beside its steps."""
    return {key: value for key, value in to_dict(masks).items() if key not in ("batch_size", "cache_gib")}
