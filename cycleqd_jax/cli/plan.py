"""``cycleqd plan``: what a run needs, and whether it fits, before any device is rented."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cycleqd_jax import plan
from cycleqd_jax.config import RunConfig, load_config
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.models.sam import SamConfig
from cycleqd_jax.runs.inputs.resolve import resolve, tiny_llama
from cycleqd_jax.runs.inputs.tasks import TaskInput
from cycleqd_jax.types import SPLITS, InputError, Split

__all__ = ["plan_run"]


def plan_run(
    config: str,
    overrides: Sequence[str],
    *,
    devices: int | None = None,
    device: str = "h100-80gb",
    mesh: str | None = None,
    model_config: str | None = None,
    prompt: int | None = None,
    reply: int | None = None,
    compiles: bool = False,
    as_json: bool = False,
) -> None:
    """Prints what a run needs.

    Args:
        config: YAML file.
        overrides: overrides of its keys.
        devices: the number of devices; None takes those of the config's mesh, or one.
        device: the kind of device.
        mesh: how they are arranged, ``population,fsdp,tensor``; None takes the config's mesh or, if it has none, the best.
        model_config: a ``config.json`` to take the model's shape from; None takes that of the config's base.
        prompt: tokens of a prompt, for estimates of time; None is the most that the config allows.
        reply: tokens of a reply, for estimates of time; None is the most that the config allows.
        compiles: compile the real programs and report the compiler's figures.
        as_json: print one JSON object.

    Raises:
        InputError: a bad config, model, mesh or number, or programs cannot be compiled here.
    """
    run = load_config(config, overrides)
    if devices is not None and devices < 1:
        raise InputError(f"expected at least one device, got {devices}; correct --devices")
    count, arranged = plan.configured_mesh(run, devices) if mesh is None else _parsed(mesh, devices)
    kind = plan.this_machine(count) if device == "cpu" else plan.DEVICES[device]
    if run.segments:
        for name, given in (("--prompt-tokens", prompt), ("--reply-tokens", reply)):
            if given is not None:
                raise InputError(f"expected no {name} with a config of images, got {given} for {config}; leave it out")
        found = _image_plan(run, count, arranged, kind, model_config, compiles)
    else:
        found = _language_plan(run, count, arranged, kind, model_config, compiles, prompt, reply)
    print(json.dumps(found, indent=2, allow_nan=False) if as_json else plan.as_text(found, mesh_given=mesh is not None))


def _language_plan(
    run: RunConfig,
    devices: int,
    mesh: tuple[int, int, int] | None,
    device: plan.Device,
    model_config: str | None,
    compiles: bool,
    prompt: int | None,
    reply: int | None,
) -> dict[str, Any]:
    """The plan of a config of language models."""
    base = tiny_llama(run, run.model.tiny.vocab_size)
    if run.model.base is not None or model_config is not None:
        base = plan.base_shape(run.model.base, model_config)
    inputs = resolve(run, architecture=base)
    assert isinstance(inputs.architecture, LlamaConfig)
    tasks = [task for task in inputs.tasks if isinstance(task, TaskInput)]
    sizes: dict[Split, list[int]] = {split: [task.size(split) for task in tasks] for split in SPLITS}
    replies = [task.max_replies for task in tasks]
    episodes = [*zip(sizes["train"], replies, strict=True)]
    work = plan.workload_of(run, inputs.architecture, episodes, adapters=inputs.adapters, prompt=prompt, reply=reply)
    return plan.summary(
        run,
        work,
        devices,
        device,
        sizes=sizes,
        replies=replies,
        mesh=mesh,
        compiles=compiles,
        absent=inputs.absent,
    )


def _image_plan(
    run: RunConfig,
    devices: int,
    mesh: tuple[int, int, int] | None,
    device: plan.Device,
    model_config: str | None,
    compiles: bool,
) -> dict[str, Any]:
    """The plan of a config of images; every device is a group."""
    population, fsdp, tensor = mesh or (devices, 1, 1)
    if (fsdp, tensor) != (1, 1):
        raise InputError(
            f"expected fsdp 1 and tensor 1 with a config of images, got --mesh {population},{fsdp},{tensor}; give "
            f"--mesh {devices},1,1"
        )
    assert run.model.base is not None
    shape = plan.sam_shape(run.model.base, model_config)
    inputs = resolve(run, architecture=shape.replace(dtype=run.model.dtype or shape.dtype))
    assert isinstance(inputs.architecture, SamConfig)
    sizes: dict[Split, list[int]] = {split: [task.size(split) for task in inputs.tasks] for split in SPLITS}
    work = plan.image_workload(run, inputs.architecture, sizes)
    return plan.image_summary(run, work, population, device, sizes=sizes, compiles=compiles)


def _parsed(text: str, devices: int | None) -> tuple[int, tuple[int, int, int]]:
    """The number of devices and the mesh of ``--mesh``."""
    try:
        population, fsdp, tensor = (int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"expected --mesh population,fsdp,tensor such as 1,1,8, got {text!r}; give three numbers") from error
    count = population * fsdp * tensor
    if min(population, fsdp, tensor) < 1 or count != (count if devices is None else devices):
        raise InputError(
            f"expected three positive sizes whose product is the number of devices, got {text} in --mesh; correct --mesh or "
            "--devices"
        )
    return count, (population, fsdp, tensor)
