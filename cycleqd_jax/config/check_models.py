"""Checks of the config keys about models: their family, their training, and given models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from cycleqd_jax.config.schema import SEGMENTATION, EngineConfig, ModelConfig, RunConfig, SandboxConfig, TaskConfig
from cycleqd_jax.config.training import TrainConfig
from cycleqd_jax.types import InputError

__all__ = ["check_models", "check_task_names"]


def check_models(config: RunConfig) -> None:
    """Checks that the keys of a config that concern its models fit together.

    Raises:
        InputError: naming the keys and their values.
    """
    _check_family(config)
    _check_experts(config)
    _check_others(config)
    _check_origin(config)
    _check_prepare(config)
    _check_conversations(config)
    _check_tiny(config)


def check_task_names(key: str, mapping: Mapping[str, object], names: tuple[str, ...]) -> None:
    """Refuses a mapping with keys that are not tasks."""
    unknown = [name for name in mapping if name not in names]
    if unknown:
        raise InputError(f"expected the keys of {key} to be tasks ({', '.join(names)}), got {unknown[0]!r}; correct the name")


def _check_family(config: RunConfig) -> None:
    """Refuses keys that the family of the run's models does not use."""
    segments = [task.kind == SEGMENTATION for task in config.tasks]
    if not any(segments):
        if config.masks is not None:
            raise InputError(
                f"expected masks with tasks of the kind {SEGMENTATION} only, got it with {config.tasks[0].kind}; leave it out"
            )
        return
    if not all(segments):
        other = config.tasks[segments.index(False)]
        raise InputError(
            f"expected all tasks to be of the kind {SEGMENTATION}, or none, because a run merges one kind of model, got "
            f"{SEGMENTATION} and {other.kind}; put them into two configs"
        )
    if config.model.base is None:
        raise InputError(
            f"expected model.base, a folder of Segment Anything, with tasks of the kind {SEGMENTATION}, got null; `cycleqd "
            "fetch mobile_sam FOLDER` makes one"
        )
    sections = (("model", config.model, ModelConfig()), ("finetune", config.finetune, TrainConfig()))
    unused = {"model": ("prepare", "tokenizer", "vocab_size", "tiny"), "finetune": ("group_by_length",)}
    found = [
        (f"{name}.{key}", getattr(given, key), getattr(default, key))
        for name, given, default in sections
        for key in unused[name]
    ]
    found += [("pretrain", config.pretrain, TrainConfig()), ("gradient", config.gradient, None)]
    found += [("engine", config.engine, EngineConfig()), ("sandbox", config.sandbox, SandboxConfig())]
    numbers = {"mesh.fsdp": config.mesh.fsdp, "mesh.tensor": config.mesh.tensor, "search.groups": config.search.groups}
    for key, value in numbers.items():
        if value != 1:
            raise InputError(f"expected {key} 1 with tasks of the kind {SEGMENTATION}, got {value}; set it to 1")
    jitter = config.mask_options.jitter_fraction
    for i, task in enumerate(config.tasks):
        if task.train is None:
            raise InputError(
                f"expected tasks.{i}.train, the folder with images and masks of task {task.name!r}, got null; give it"
            )
        if jitter and task.options.get("prompt") == "image":
            raise InputError(
                f"expected masks.jitter_fraction: 0 with prompt: image, whose box is the whole image, got {jitter} with task "
                f"{task.name!r}; set it to 0, or use prompt: box"
            )
        default = TaskConfig(task.name)
        found += [
            (f"tasks.{i}.{key}", getattr(task, key), getattr(default, key)) for key in ("test", "finetune", "max_new_tokens")
        ]
    for key, value, default in found:
        if value != default:
            raise InputError(
                f"expected {key} with language models only, got it with tasks of the kind {SEGMENTATION}; leave it out"
            )


def _check_experts(config: RunConfig) -> None:
    experts, names = config.model.experts, config.task_names
    if experts is None:
        return
    if config.baselines:
        raise InputError(
            "expected no baselines with model.experts, because baselines are fine-tuned together with the experts, got "
            f"{config.baselines[0]!r}; remove one of them"
        )
    missing = [name for name in names if name not in experts]
    if missing:
        raise InputError(f"expected model.experts to name an expert of every task, got none for {missing[0]!r}; add it")
    check_task_names("model.experts", experts, names)
    if config.model.base is None:
        raise InputError(
            "expected model.base beside model.experts, got null; give the model from which the experts were fine-tuned"
        )


def _check_others(config: RunConfig) -> None:
    others, names = config.model.others or {}, config.task_names
    if others and config.model.experts is None:
        raise InputError(
            f"expected model.experts beside model.others, got null beside {next(iter(others))!r}; give the experts of the tasks"
        )
    for name in others:
        if name in names or not name or name != Path(name).name or name.startswith("."):
            raise InputError(
                f"expected names in model.others that are plain file names and no tasks ({', '.join(names)}), got {name!r}; "
                "rename it"
            )
    if "slerp" in config.merges and others:
        raise InputError("expected no model.others with merges: slerp, which merges two experts, got both; remove slerp")


def _check_origin(config: RunConfig) -> None:
    if config.origin is None:
        return
    method = config.search.method
    if method not in ("cycleqd", "qd"):
        raise InputError(
            f"expected search.method cycleqd or qd with origin, whose archives are carried over, got {method}; leave origin out"
        )
    if config.search.steady:
        raise InputError(
            "expected search.steady false with origin, whose individuals are in generations, got true; leave one of them out"
        )
    if config.model.experts is None:
        raise InputError(
            "expected model.base and model.experts with origin, got null; give the models of that run, or use cycleqd extend"
        )
    if config.search.budget_items is not None:
        raise InputError(
            "expected no search.budget_items with origin, because individuals are not scored on all problems, got "
            f"{config.search.budget_items}; use search.budget or search.generations"
        )


def _check_prepare(config: RunConfig) -> None:
    prepare = config.model.prepare
    if prepare is None:
        return
    if config.model.experts is not None:
        raise InputError(
            "expected no model.prepare with model.experts, because experts that are given were fine-tuned from a base of their "
            "own, got both; remove one of them"
        )
    if prepare.shares is None:
        return
    check_task_names("model.prepare.shares", prepare.shares, config.task_names)
    if not any(prepare.shares.values()):
        raise InputError(
            f"expected model.prepare.shares with a share above 0, got {prepare.shares}; correct one, or leave the key out"
        )


def _check_conversations(config: RunConfig) -> None:
    """Checks that every task with a share in a joint training gets a conversation."""
    prepare, gradient = config.model.prepare, config.gradient
    trainings = []
    if prepare is not None:
        trainings.append(("model.prepare", prepare.steps, prepare.batch_size, prepare.share_of(config.task_names)))
    if gradient is not None:
        equal = dict.fromkeys(config.task_names, 1 / len(config.tasks))
        trainings.append(("gradient", gradient.steps, gradient.batch_size, equal))
    for key, steps, batch, shares in trainings:
        least = math.ceil(round(1 / min(shares.values()), 6))
        if steps * batch < least:
            raise InputError(
                f"expected {key}.steps × {key}.batch_size of at least {least}, so that every task with a share gets a "
                f"conversation, got {steps} × {batch}; increase one of them"
            )


def _check_tiny(config: RunConfig) -> None:
    tiny = config.model.tiny
    if tiny.num_heads % tiny.num_kv_heads:
        raise InputError(
            f"expected model.tiny.num_heads to be a multiple of model.tiny.num_kv_heads ({tiny.num_kv_heads}), got "
            f"{tiny.num_heads}; correct one of them"
        )
    if tiny.hidden_size % (2 * tiny.num_heads):
        raise InputError(
            f"expected model.tiny.hidden_size to be a multiple of twice model.tiny.num_heads ({2 * tiny.num_heads}), got "
            f"{tiny.hidden_size}; correct one of them"
        )
