"""What a run works on, resolved once from its config, the headers of model files and the names of its tasks.

:func:`resolve` reads no weights, opens no sandbox and trains nothing. :class:`~cycleqd_jax.runs.run.Run` and ``cycleqd plan``
take their values from it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from huggingface_hub.constants import HF_HUB_CACHE

from cycleqd_jax.config import RunConfig, check_config
from cycleqd_jax.files import check_space, digest
from cycleqd_jax.genome.coefficient_space import check_groups
from cycleqd_jax.machine import host_memory
from cycleqd_jax.models.files import peft
from cycleqd_jax.models.files.checkpoint import Checkpoint, open_checkpoint
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.models.preflight import Preflight, check_same_config, preflight
from cycleqd_jax.models.sam import SamConfig
from cycleqd_jax.runs.inputs.digests import tokenizer_digest
from cycleqd_jax.runs.inputs.images import FolderInput, resolve_sam
from cycleqd_jax.runs.inputs.models import ModelFolders
from cycleqd_jax.runs.inputs.tasks import TaskInput, resolve_tasks
from cycleqd_jax.search import individuals_within
from cycleqd_jax.types import AdapterRanks, InputError, ProblemSet

__all__ = ["Inputs", "budget_of", "digest_problems", "input_digests", "problems_digest", "resolve", "tiny_llama"]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The resolved inputs of a run.

    Attributes:
        config: the config of the run.
        tasks: the tasks, in the order of the config.
        architecture: the architecture of every model of the run, with the dtype and vocabulary it is evaluated in. For the tiny
            base, it is the largest possible one: its vocabulary is known once its tokenizer is trained.
        preflight: the given language models as their headers describe them; None where the run trains its own, or where
            only the architecture was asked for.
        adapters: for every expert the leaves that its LoRA adapter changes, with their ranks (None: the whole leaf); None for
            an expert that is not an adapter, or that is not on this machine.
        absent: names of given experts that are not on this machine.
    """

    config: RunConfig
    tasks: tuple[TaskInput | FolderInput, ...]
    architecture: LlamaConfig | SamConfig
    preflight: Preflight | None
    adapters: tuple[AdapterRanks | None, ...]
    absent: tuple[str, ...]


def resolve(config: RunConfig, *, architecture: LlamaConfig | SamConfig | None = None) -> Inputs:
    """Resolves the inputs of a run.

    Args:
        config: the config of the run.
        architecture: the architecture of the base. When it is given, no file of the base is read, and the given models are not
            compared.

    Raises:
        InputError: a key of the config is out of range; a task is unknown or lacks its file; a model can't be read; base and
            experts do not belong together; ``engine.max_len`` exceeds the model's positions, or a number of groups its
            layers; or experts are adapters and whole models without ``genome.densify``, or whole models where
            ``engine.population`` needs adapters.
    """
    check_config(config)
    tasks = resolve_tasks(config)
    model = config.model
    if config.segments:
        return Inputs(config, tasks, architecture or resolve_sam(config), None, (None,) * len(tasks), ())
    checked: Preflight | None = None
    if architecture is not None:
        assert isinstance(architecture, LlamaConfig)
    elif model.base is None:
        architecture = tiny_llama(config, model.tiny.vocab_size)
    else:
        experts = [*config.given_experts.values()]
        checked = preflight(
            model.base,
            experts,
            dtype=model.dtype,
            vocab_size=model.vocab_size,
            tokenizer=model.tokenizer,
            tools=any(isinstance(task, TaskInput) and task.uses_tools for task in tasks),
        )
        architecture = checked.config
    evaluated = architecture.replace(
        dtype=model.dtype or architecture.dtype, vocab_size=model.vocab_size or architecture.vocab_size
    )
    if config.search.coefficients:
        check_groups(config.search.groups, architecture.num_hidden_layers)
    if config.gradient is not None:
        check_groups(config.gradient.groups, architecture.num_hidden_layers, "gradient.groups")
    _check_context(config, evaluated, checked)
    adapters, absent = _adapters(config, architecture, absent_are_whole=checked is None)
    _check_population(config, adapters, absent)
    return Inputs(config, tasks, evaluated, checked, adapters, absent)


def _check_context(config: RunConfig, architecture: LlamaConfig, checked: Preflight | None) -> None:
    """Raises if a prompt and its reply are longer than the context of a model, which the message names.

    Experts that were not compared with the base are looked at where they are on this machine, and compared with a base that is
    there too. No weights are read, so that their heads may still differ.
    """
    contexts = {f"the base {config.model.base}" if config.model.base else "the model": architecture.context_length}
    experts = [config.given_experts.get(name) for name in config.expert_names]
    base: Checkpoint | None = None
    if checked is None and config.model.base is not None and os.path.exists(config.model.base):
        base = open_checkpoint(config.model.base, weights=False)
        base = None if base.config.replace(dtype=architecture.dtype) != architecture else base  # another shape is planned
    for k, expert in enumerate(experts):
        given = None
        if checked is not None and expert is not None:
            given = checked.experts[k]
        elif expert is not None and os.path.exists(expert) and not peft.is_adapter(expert):
            given = open_checkpoint(expert, weights=False)
            if base is not None:
                same = given.config.replace(tie_word_embeddings=base.config.tie_word_embeddings)
                check_same_config(base, dataclasses.replace(given, config=same), config.model.dtype)
        if isinstance(given, Checkpoint):
            contexts[f"the expert {expert}"] = given.config.context_length
    model = min(contexts, key=lambda name: contexts[name])
    if config.engine.max_len > contexts[model]:
        raise InputError(
            f"expected engine.max_len of at most {contexts[model]}, the positions of {model}, got {config.engine.max_len}; "
            "make it smaller"
        )


def tiny_llama(config: RunConfig, vocab_size: int) -> LlamaConfig:
    """The architecture of the tiny base.

    Args:
        config: the config of the run.
        vocab_size: the size of the tokenizer that is trained with it, at most ``model.tiny.vocab_size``.
    """
    tiny = config.model.tiny
    return LlamaConfig(
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


def check_resources(inputs: Inputs, log: Callable[[str], None]) -> None:
    """Refuses given models that do not fit the disks, and warns where they hardly fit the memory.

    Raises:
        InputError: a disk has too little space.
    """
    config, checked = inputs.config, inputs.preflight
    if checked is None:
        return
    for warning in checked.warnings:
        log(warning)
    if checked.download_bytes:
        check_space(Path(HF_HUB_CACHE), checked.download_bytes, "the weights to be downloaded")
    check_space(config.folder, checked.model_bytes, "the evolved model")
    models = 2 + sum(not isinstance(expert, Path) for expert in checked.experts)  # base, whole experts, and the child
    _, fsdp, tensor = config.mesh.sizes
    group = len(jax.devices()) if min(fsdp, tensor) < 0 else fsdp * tensor
    total = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0) * group or host_memory()
    if total and models * checked.model_bytes > total:
        log(
            f"warning: {models} models of {checked.model_bytes / 1e9:.1f} GB exceed the {total / 1e9:.1f} GB of memory here; "
            "`cycleqd plan` shows what would fit"
        )


def _adapters(
    config: RunConfig, base: LlamaConfig, *, absent_are_whole: bool
) -> tuple[tuple[AdapterRanks | None, ...], tuple[str, ...]]:
    """What the adapters among the experts change, from their headers; and the names of experts that are not here."""
    found: list[AdapterRanks | None] = []
    absent = []
    for name in config.expert_names:
        expert = config.given_experts.get(name)
        here = expert is not None and os.path.exists(expert)
        found.append(peft.check_adapter(expert, base) if expert is not None and here and peft.is_adapter(expert) else None)
        if expert is not None and not here:
            absent.append(name)
    adapters = [adapter for adapter in found if adapter is not None]
    low_rank = {path for adapter in adapters for path, rank in adapter.items() if rank is not None}
    whole = {path for adapter in adapters for path, rank in adapter.items() if rank is None}
    others = len(found) - len(adapters) - (0 if absent_are_whole else len(absent))
    if adapters and (others or low_rank & whole) and not config.genome.densify:
        raise InputError(
            "expected experts that are all adapters, or all whole models, got leaves of both kinds; set genome.densify=true, "
            "which multiplies the adapters out"
        )
    return tuple(found), tuple(absent)


def whole_expert(population: int, task: str) -> InputError:
    """The error for an expert with weights of its own, where individuals are decoded over one base."""
    return InputError(
        f"expected LoRA adapters as experts where engine.population is {population}, got whole weights for the expert of task "
        f"{task!r}; set engine.population=1"
    )


def _check_population(config: RunConfig, adapters: Sequence[AdapterRanks | None], absent: Sequence[str]) -> None:
    """Raises if individuals are to be decoded over one base, and an expert has whole weights of its own."""
    population = config.engine.population
    for name, adapter in zip(config.expert_names, adapters, strict=True):
        if population > 1 and adapter is None and name not in absent:
            raise whole_expert(population, name)


def budget_of(config: RunConfig, tasks: Sequence[ProblemSet]) -> int | None:
    """The most individuals that a run may evaluate, from both of its budgets; None is no limit.

    With racing the budget of problems limits no number of individuals: :func:`~cycleqd_jax.search.generation_ids` counts them.

    Raises:
        InputError: the budgets do not suffice for the experts and the first population, or the first subset of racing needs
            more problems than a task has.
    """
    options = config.search
    sizes = [len(task.problems("train")[: one.train_size]) for task, one in zip(tasks, config.tasks, strict=True)]
    if options.racing is not None and options.racing.least > min(sizes):
        raise InputError(
            f"expected search.racing.least to be at most {min(sizes)}, the train problems of the smallest task, got "
            f"{options.racing.least}; decrease it"
        )
    budget = individuals_within(options.budget, options.budget_items, sum(sizes))
    least = options.least(len(config.expert_names))
    if budget is not None and budget < least:
        raise InputError(
            f"expected search.budget_items of at least {least * sum(sizes)}, {least} individuals with {sum(sizes)} items each, "
            f"which the experts and the first population need, got {options.budget_items}; increase it"
        )
    return budget if options.racing is None else options.budget


def input_digests(folders: ModelFolders, tasks: Sequence[ProblemSet]) -> dict[str, str]:
    """Digests of the models and problems that the scores depend on, by name; models that are not trained yet have none."""
    digests = {name: folders.digest(name) for name, folder in folders.search.items() if folder.exists()}
    if folders.tokenizer is not None:
        digests["tokenizer"] = tokenizer_digest(folders.tokenizer)
    for task in tasks:
        digests |= {f"{task.name}/train": digest_problems(task.problems(None))} | problems_digest(task)
    return digests


def problems_digest(task: ProblemSet) -> dict[str, str]:
    """The digest of a task's test problems, by the name that it has among those of a run's inputs."""
    return {f"{task.name}/test": digest_problems(task.problems("test"))}


def digest_problems(problems: Sequence[str]) -> str:
    """The digest of the digests of problems."""
    return digest(list(problems), digits=16)
