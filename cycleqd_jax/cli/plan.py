"""``cycleqd plan``: what a run needs, and whether it fits, before any device is rented."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax import plan
from cycleqd_jax.config import RunConfig, TaskConfig, load_config
from cycleqd_jax.models.files import peft
from cycleqd_jax.models.files.checkpoint import open_checkpoint
from cycleqd_jax.models.folder import read_json
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.plan.compiled import replace_estimates
from cycleqd_jax.plan.estimate import Mesh, estimate
from cycleqd_jax.plan.layout import generation_seconds
from cycleqd_jax.sharding import mesh_sizes
from cycleqd_jax.tasks import task_class
from cycleqd_jax.types import InputError

__all__ = ["plan_run"]

PREALLOCATED = 0.75
"""Share of a GPU's memory that JAX takes unless it is told otherwise."""

_LLAMA3 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}
_8B = {**_LLAMA3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
_70B = {**_LLAMA3, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "meta-llama/Meta-Llama-3-8B": _8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _8B,
    "meta-llama/Meta-Llama-3-70B": _70B,
    "meta-llama/Meta-Llama-3-70B-Instruct": _70B,
}
"""Published shapes of models whose repositories ask for a licence first: nothing need be fetched to plan with them."""


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
        overrides: of its keys.
        devices: how many; by default those of the config's mesh, or one.
        device: of which kind.
        mesh: how they are arranged, ``population,fsdp,tensor``; by default as the config says or, if it does not, as is best.
        model_config: a ``config.json`` to take the model's shape from; that of the config's base by default.
        prompt: tokens of a prompt that times are estimated for; the most there can be by default.
        reply: tokens of a reply likewise.
        compiles: compile the real programs and report the compiler's figures.
        as_json: print one JSON object.

    Raises:
        InputError: for a bad config, model, mesh or number; or nothing to compile with.
    """
    run = load_config(config, overrides)
    devices, arranged = _arranged(run, devices, mesh)
    kind = plan.this_machine(devices) if device == "cpu" else plan.DEVICES[device]
    own = _model(run, model_config)
    adapters, unseen = _adapters(run, own)
    work = dataclasses.replace(_workload(run, _evaluated(run, own), prompt, reply), adapters=adapters)
    if arranged is None:
        shape, stages = plan.choose_mesh(work, devices, kind)
    else:
        shape, stages = arranged, estimate(work, arranged, kind)
    programs = plan.compile_programs(work, shape, kind) if compiles else []
    estimated, stages = plan.peak(stages).total, replace_estimates(stages, programs)
    facts = {
        "name": run.name,
        "device": dataclasses.asdict(kind),
        "devices": devices,
        "mesh": dict(zip(("population", "fsdp", "tensor"), shape, strict=True)),
        "parameters": sum(math.prod(leaf.shape) for leaf in _leaves(work.model)),
        "dtype": work.model.dtype,
        "rank": work.rank,
        "experts": work.experts,
        "full_experts": work.full,
        "weights": stages[0].device["base"],
        "replies": sum(work.rounds),
        "tokens": {"prompt": work.prompt, "reply": work.reply},
        "stages": [{**dataclasses.asdict(stage), "total": stage.total} for stage in stages],
        "fits": plan.fits(stages, kind),
        "usable": plan.USABLE * kind.memory,
        "advice": plan.advice(work, devices, kind, plan.peak(stages).total / estimated, arranged),
        "seconds_per_generation": generation_seconds(stages, work, shape),
        "generations": run.search.generations,
        "notes": _notes(run, work, shape, unseen),
        "programs": [dataclasses.asdict(program) for program in programs],
    }
    print(json.dumps(facts, indent=2, allow_nan=False) if as_json else _text(facts, asked=mesh is not None))


def _leaves(model: LlamaConfig) -> list[Any]:
    import jax

    from cycleqd_jax.models import llama

    return jax.tree.leaves(llama.abstract_params(model))


def _model(run: RunConfig, file: str | None) -> LlamaConfig:
    """The shape of the base, as it is given."""
    base = run.model.base
    if file is not None:
        config = LlamaConfig.from_hf(read_json(Path(file)), file)
    elif base is None:
        from cycleqd_jax.runs.models import tiny_llama

        config = tiny_llama(run, run.model.tiny.vocab_size)
    elif base.partition("@")[0] in SHAPES and not Path(base).exists():
        config = LlamaConfig.from_hf(SHAPES[base.partition("@")[0]], base)
    else:
        try:
            config = open_checkpoint(base, weights=False).config
        except InputError as error:
            raise InputError(f"{error}; or give its shape with --model-config config.json") from error
    return config


def _evaluated(run: RunConfig, config: LlamaConfig) -> LlamaConfig:
    """The shape that base and experts are evaluated in."""
    options = run.model
    config = config.replace(dtype=options.dtype or config.dtype, vocab_size=options.vocab_size or config.vocab_size)
    if run.engine.max_len > config.context_length:
        raise InputError(f"engine.max_len is {run.engine.max_len}, but the model has {config.context_length} positions.")
    return config


def _adapters(run: RunConfig, base: LlamaConfig) -> tuple[tuple[dict[str, int | None] | None, ...], list[str]]:
    """What the adapters among the experts change, from their headers; and the names of experts that are not at hand."""
    found, unseen = [], []
    for name in run.task_names:
        expert = (run.model.experts or {}).get(name)
        here = expert is not None and os.path.exists(expert)
        found.append(peft.check_adapter(expert, base) if expert is not None and here and peft.is_adapter(expert) else None)
        if expert is not None and not here:
            unseen.append(name)
    given = [adapter for adapter in found if adapter is not None]
    paths = {path for adapter in given for path, rank in adapter.items() if rank is not None}
    whole = {path for adapter in given for path, rank in adapter.items() if rank is None}
    if given and (len(given) < len(found) or paths & whole) and not run.genome.densify:
        raise InputError(
            "expected experts that are all adapters, or all whole models, got leaves of both kinds: set genome.densify=true, "
            "which multiplies the adapters out"
        )
    return tuple(found), unseen


def _notes(run: RunConfig, work: plan.Workload, mesh: Mesh, unseen: Sequence[str]) -> list[str]:
    """What the figures do not say."""
    notes = []
    if unseen:
        notes.append(f"not at hand, so counted as full weights: the experts {', '.join(unseen)}")
    if mesh[0] > work.children:
        notes.append(
            f"{mesh[0] - work.children} of {mesh[0]} groups of devices are idle: search.batch_size is {work.children}; "
            "make it larger, or the population axis smaller"
        )
    if run.engine.population > 1:
        notes.append(f"individuals are counted one by one, though {run.engine.population} are decoded together")
    axes = ("population", "fsdp", "tensor")
    if mesh not in ((1, 1, 1), run.mesh.sizes) and -1 not in run.mesh.sizes:
        keys = " ".join(f"mesh.{axis}={size}" for axis, size in zip(axes, mesh, strict=True))
        notes.append(f"cycleqd run arranges devices like this with {keys}")
    return notes


def _workload(run: RunConfig, model: LlamaConfig, prompt: int | None, reply: int | None) -> plan.Workload:
    if run.genome.space != "expert":
        raise InputError("cycleqd plan knows the expert space alone: a dense genome is as large as the model in float32.")
    new = max(task.max_new_tokens for task in run.tasks)
    room = run.engine.max_len - new
    for name, value, most in (("--prompt-tokens", prompt, room), ("--reply-tokens", reply, new)):
        if value is not None and not 1 <= value <= most:
            raise InputError(f"expected {name} from 1 to the {most} that the config allows, got {value}: correct it")
    sizes, replies = [_size(task) for task in run.tasks], [_replies(task) for task in run.tasks]
    rounds = range(max(replies))
    return plan.Workload(
        model=model,
        experts=len(run.tasks),
        rank=run.genome.rank,
        method=run.genome.method,
        slots=run.engine.slots,
        max_len=run.engine.max_len,
        new=new,
        rounds=tuple(sum(size for size, most in zip(sizes, replies, strict=True) if most > i) for i in rounds),
        prompt=prompt or room,
        reply=reply or new,
        children=run.search.batch_size,
        cells=len(run.tasks) * run.search.bins ** (len(run.tasks) - 1),
        keep=run.checkpoint.keep,
        workers=run.sandbox.workers or os.cpu_count() or 1,
        sandbox_memory=run.sandbox.memory_mb << 20,
        sandbox_disk=run.sandbox.disk_mb << 20,
        factor_dtype=run.genome.factor_dtype,
    )


def _size(task: TaskConfig) -> int:
    """Problems that a child is scored on."""
    if task.train_size is not None:
        return task.train_size
    if task.train is None:
        raise InputError(f"expected to know how many problems task {task.name!r} has, got neither its file nor train_size.")
    count = task_class(task.kind).count(task.train)
    return count if task.test is not None else math.ceil(count / 2)


def _replies(task: TaskConfig) -> int:
    """Most replies of one episode."""
    return task_class(task.kind).max_replies(**task.options)


def _arranged(run: RunConfig, devices: int | None, mesh: str | None) -> tuple[int, Mesh | None]:
    """How many devices there are, and their arrangement where the command or the config says it."""
    if devices is not None and devices < 1:
        raise InputError(f"expected at least one device, got {devices}: correct --devices")
    if mesh is not None:
        return _mesh(mesh, devices)
    population, fsdp, tensor = run.mesh.sizes
    if (population, fsdp, tensor) == (1, 1, 1):
        return devices or 1, None
    if devices is None:
        devices = max(1, math.prod(size for size in run.mesh.sizes if size > 0))
    sizes = mesh_sizes(devices, population=population, fsdp=fsdp, tensor=tensor)
    return math.prod(sizes), sizes


def _mesh(text: str, devices: int | None) -> tuple[int, Mesh]:
    try:
        population, fsdp, tensor = (int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"expected --mesh population,fsdp,tensor such as 1,1,8, got {text!r}: give three numbers") from error
    count = population * fsdp * tensor
    if min(population, fsdp, tensor) < 1 or count != (count if devices is None else devices):
        raise InputError(f"expected --mesh of {devices} devices in all, got {text}: correct it or --devices")
    return count, (population, fsdp, tensor)


def _text(facts: dict[str, Any], *, asked: bool) -> str:
    device, usable = facts["device"], facts["usable"]
    mesh = " × ".join(f"{name} {size}" for name, size in facts["mesh"].items())
    rank = "full rank" if facts["rank"] is None else f"rank {facts['rank']}"
    lines = [
        f"{facts['name']}: {facts['parameters']:,} parameters, {facts['dtype']}, {rank}",
        f"{facts['devices']} × {device['name']}, {_gb(device['memory'])} each, {_gb(usable)} of it for use: {mesh}",
        f"{'stage':10}{'each device':>13}{'host':>11}{'disk':>11}{'seconds':>11}   of each device",
    ]
    for stage in facts["stages"]:
        once = stage["name"] in ("load", "basis")
        seconds = f"{stage['seconds']:.3g}" if stage["seconds"] else "–"
        parts = ", ".join(f"{name} {_gb(size)}" for name, size in stage["device"].items() if size)
        over = "" if stage["total"] <= usable else "  ← does not fit"
        lines.append(
            f"{stage['name']:10}{_gb(stage['total']):>13}{_gb(stage['host']):>11}{_gb(stage['disk']):>11}"
            f"{seconds:>11}   {'XLA: ' if stage['source'] == 'XLA' else ''}{parts}{over}{' (once)' if once else ''}"
        )
    for program in facts["programs"]:
        found = [f"{c['count']} × {c['kind']} of {_gb(c['bytes'])}" for c in program["collectives"]]
        lines.append(
            f"  {program['name']}: arguments {_gb(program['arguments'])}, outputs {_gb(program['outputs'])} of which "
            f"{_gb(program['aliased'])} in place, temporaries {_gb(program['temporaries'])}; "
            f"collectives: {', '.join(found) or 'none'}"
        )
    tokens, seconds = facts["tokens"], facts["seconds_per_generation"]
    lines.append(
        f"a generation takes at least {seconds:.3g} s of device time, {facts['generations']} of them "
        f"{seconds * facts['generations'] * facts['devices'] / 3600:.3g} device-hours: {facts['replies']} replies of "
        f"{tokens['reply']} tokens to prompts of {tokens['prompt']}, at the devices' limits; sandboxes come on top"
    )
    lines += [f"note: {note}" for note in facts["notes"]]
    if facts["fits"]:
        lines.append("it fits")
        worst = max(stage["total"] for stage in facts["stages"])
        if device["name"] != "cpu" and worst > PREALLOCATED * device["memory"]:
            lines.append(f"  with XLA_PYTHON_CLIENT_MEM_FRACTION={plan.USABLE}: JAX takes {PREALLOCATED} by itself")
        lines += [f"  and with {change}" for change in facts["advice"]]
        return "\n".join(lines)
    over = {stage["name"]: stage for stage in facts["stages"] if stage["total"] > usable}
    lines.append(f"it does not fit: {_gb(usable)} are to be had of each device")
    for name, stage in over.items():
        part, size = max(stage["device"].items(), key=lambda item: item[1])
        lines.append(f"  {name} needs {_gb(stage['total'])}, {_gb(size)} of it {part}")
    weights = facts["weights"] * (facts["full_experts"] + 2)
    rearranged = [change for change in facts["advice"] if change.startswith("--mesh")]
    if weights > usable and not rearranged:
        lines.append(f"  base, {facts['full_experts']} experts and a child are {_gb(weights)} already: only other devices help")
    lines += ["what would fit, each line alone:"] if facts["advice"] else ["no change that is known of here would fit"]
    lines += [f"  {change}{' (or leave --mesh out)' * (asked and change in rearranged)}" for change in facts["advice"]]
    return "\n".join(lines)


def _gb(size: float) -> str:
    if size == 0:
        return "–"
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB" if size >= 1e5 else f"{size / 1e3:.3g} kB"
