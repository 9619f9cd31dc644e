"""A whole plan as one record, and that record as text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cycleqd_jax.config import RunConfig, idle_groups
from cycleqd_jax.models import llama, sam
from cycleqd_jax.plan.compiled import Program, compile_programs, replace_estimates
from cycleqd_jax.plan.device import Device
from cycleqd_jax.plan.estimate import Stage, estimate
from cycleqd_jax.plan.evaluations import evaluations_of
from cycleqd_jax.plan.images import ImageWorkload, compile_images, estimate_images, image_alternatives, segment_seconds
from cycleqd_jax.plan.mesh import USABLE_MEMORY, alternatives, choose_mesh, fits, generation_seconds, peak_stage
from cycleqd_jax.plan.workload import GenomeWorkload, Mesh, Workload
from cycleqd_jax.sharding import MESH_AXES
from cycleqd_jax.types import Split

__all__ = ["as_text", "image_summary", "summary"]

PREALLOCATED = 0.75
"""The share of a GPU's memory that JAX allocates by default."""


def summary(
    run: RunConfig,
    work: Workload,
    devices: int,
    device: Device,
    *,
    sizes: Mapping[Split, Sequence[int]],
    replies: Sequence[int],
    mesh: Mesh | None = None,
    compiles: bool = False,
    absent: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything that ``cycleqd plan`` prints.

    Args:
        run: the config.
        work: its workload.
        devices: the number of devices.
        device: the kind of device.
        sizes: by split, the number of problems of every task.
        replies: for every task, the most replies of one episode.
        mesh: how they are arranged; None chooses the best mesh.
        compiles: compile the real programs and report the compiler's figures.
        absent: names of experts that are not on this machine.

    Returns:
        A record that can be written as JSON.

    Raises:
        InputError: the mesh does not divide the model, or programs cannot be compiled here.
    """
    if mesh is None:
        shape, stages = choose_mesh(work, devices, device)
    else:
        shape, stages = mesh, estimate(work, mesh, device)
    programs = compile_programs(work, shape, device) if compiles else []
    evaluations = evaluations_of(run, sizes, replies, shape[0])
    estimated, stages = peak_stage(stages).total, replace_estimates(stages, programs)
    found = [
        {
            "stage": one.stage,
            "models": one.models,
            "problems": one.problems,
            "replies": sum(one.rounds),
            "seconds": one.seconds(work, shape, device),
        }
        for one in evaluations
    ]
    return {
        **_facts(run, work, device, stages, shape, programs),
        "parameters": llama.num_params(work.model),
        "replies": sum(work.rounds),
        "tokens": {"prompt": work.prompt, "reply": work.reply},
        "alternatives": alternatives(work, devices, device, peak_stage(stages).total / estimated, mesh),
        "evaluations": found,
        "notes": _notes(run, shape, absent),
    }


def image_summary(
    run: RunConfig,
    work: ImageWorkload,
    population: int,
    device: Device,
    *,
    sizes: Mapping[Split, Sequence[int]],
    compiles: bool = False,
) -> dict[str, Any]:
    """Everything that ``cycleqd plan`` prints about models that segment images.

    Args:
        run: the config.
        work: its workload.
        population: groups of one device.
        device: the kind of device.
        sizes: by split, the number of images of every task.
        compiles: compile the real programs and report the compiler's figures.

    Returns:
        A record that can be written as JSON.

    Raises:
        InputError: programs cannot be compiled here.
    """
    programs = compile_images(work, device) if compiles else []
    stages = replace_estimates(estimate_images(work, population, device), programs)
    express = next(stage.seconds for stage in stages if stage.name == "express")
    found = [
        {
            "stage": one.stage,
            "models": one.models,
            "problems": one.problems,
            "seconds": one.waves * (express + segment_seconds(work, one.problems, device)),
        }
        for one in evaluations_of(run, sizes, [1] * len(run.tasks), population)
    ]
    return {
        **_facts(run, work, device, stages, (population, 1, 1), programs),
        "parameters": sam.num_params(work.model),
        "images": {"child": work.images, "embedded": work.kept},
        "alternatives": [] if fits(stages, device) else image_alternatives(work, population, device),
        "evaluations": found,
        "notes": _notes(run, (population, 1, 1), ()),
    }


def _facts(
    run: RunConfig, work: GenomeWorkload, device: Device, stages: Sequence[Stage], mesh: Mesh, programs: Sequence[Program]
) -> dict[str, Any]:
    """What the plans of all families have."""
    return {
        "name": run.name,
        "device": dataclasses.asdict(device),
        "devices": math.prod(mesh),
        "mesh": dict(zip(MESH_AXES, mesh, strict=True)),
        "dtype": work.model.dtype,
        "rank": work.rank,
        "experts": work.experts,
        "full_experts": work.full,
        "weights": stages[0].device["base"],
        "stages": [{**dataclasses.asdict(stage), "total": stage.total} for stage in stages],
        "fits": fits(stages, device),
        "usable": USABLE_MEMORY * device.memory,
        "seconds_per_generation": generation_seconds(stages, work, mesh),
        "generations": run.search.generations,
        "programs": [dataclasses.asdict(program) for program in programs],
    }


def _notes(run: RunConfig, mesh: Mesh, absent: Sequence[str]) -> list[str]:
    """Facts that the figures do not show."""
    notes = []
    if absent:
        notes.append(f"experts that are not on this machine, counted as full weights: {', '.join(absent)}")
    if (note := idle_groups(run, mesh[0])) is not None:
        notes.append(note)
    if run.engine.population > 1:
        notes.append(f"times are those of one individual after the other, though {run.engine.population} are decoded together")
    trained = {"finetune": run.model.experts is None, "model.prepare": run.model.prepare, "gradient": run.gradient}
    if names := [name for name, given in trained.items() if given]:
        notes.append(f"memory and time of training are not counted: {', '.join(names)}")
    if mesh not in ((1, 1, 1), run.mesh.sizes) and -1 not in run.mesh.sizes:
        keys = " ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, mesh, strict=True))
        notes.append(f"for this mesh, run cycleqd with {keys}")
    return notes


def as_text(plan: dict[str, Any], *, mesh_given: bool = False) -> str:
    """A plan for a reader.

    Args:
        plan: the result of :func:`summary`.
        mesh_given: whether the user has chosen the mesh.
    """
    lines = [
        *_head(plan),
        *map(_program, plan["programs"]),
        _time(plan),
        *_evaluations(plan),
        *(f"note: {note}" for note in plan["notes"]),
    ]
    return "\n".join([*lines, *(_fits(plan) if plan["fits"] else _does_not_fit(plan, mesh_given))])


def _head(plan: dict[str, Any]) -> list[str]:
    device, usable = plan["device"], plan["usable"]
    mesh = " × ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    rank = "full rank" if plan["rank"] is None else f"rank {plan['rank']}"
    lines = [
        f"{plan['name']}: {plan['parameters']:,} parameters, {plan['dtype']}, {rank}",
        f"{plan['devices']} × {device['name']}, {_gb(device['memory'])} each, {_gb(usable)} usable: {mesh}",
        f"{'stage':10}{'per device':>13}{'host':>11}{'disk':>11}{'seconds':>11}   on each device",
    ]
    for stage in plan["stages"]:
        seconds = f"{stage['seconds']:.3g}" if stage["seconds"] else "–"
        parts = ", ".join(f"{name} {_gb(size)}" for name, size in stage["device"].items() if size)
        over = "" if stage["total"] <= usable else "  ← does not fit"
        once = " (once)" if stage["name"] in ("load", "basis", "embed") else ""
        source = "XLA: " if stage["source"] == "XLA" else ""
        lines.append(
            f"{stage['name']:10}{_gb(stage['total']):>13}{_gb(stage['host']):>11}{_gb(stage['disk']):>11}{seconds:>11}   "
            f"{source}{parts}{over}{once}"
        )
    return lines


def _program(program: dict[str, Any]) -> str:
    found = [f"{c['count']} × {c['kind']} of {_gb(c['bytes'])}" for c in program["collectives"]]
    return (
        f"  {program['name']}: arguments {_gb(program['arguments'])}, outputs {_gb(program['outputs'])} of which "
        f"{_gb(program['aliased'])} in place, temporaries {_gb(program['temporaries'])}; "
        f"collectives: {', '.join(found) or 'none'}"
    )


def _time(plan: dict[str, Any]) -> str:
    seconds = plan["seconds_per_generation"]
    hours = seconds * plan["generations"] * plan["devices"] / 3600
    if "images" in plan:
        child, embedded = plan["images"]["child"], plan["images"]["embedded"]
        once = f"; {embedded} images are embedded once by every group" if embedded else ""
        what = f"{child} images a child, at the devices' limits{once}"
    else:
        tokens = plan["tokens"]
        what = (
            f"{plan['replies']} replies of {tokens['reply']} tokens to prompts of {tokens['prompt']}, at the devices' limits; "
            "time in sandboxes comes on top"
        )
    return (
        f"a generation takes at least {seconds:.3g} s of device time, {plan['generations']} generations {hours:.3g} "
        f"device-hours: {what}"
    )


def _evaluations(plan: dict[str, Any]) -> list[str]:
    """What every stage evaluates."""

    def hours(stages: Sequence[dict[str, Any]]) -> str:
        return f"{sum(one['seconds'] for one in stages) * plan['devices'] / 3600:.3g} device-hours"

    found = plan["evaluations"]
    once = [stage for stage in plan["stages"] if stage["name"] == "embed"]
    lines = [f"  {s['stage']}: at most {s['models']:,} models on {s['problems']:,} problems, {hours([s])}" for s in found]
    lines += [f"  embedding, once: {hours(once)}"] if once else []
    return ["evaluations of the whole run, " + hours([*found, *once]) + ":", *lines]


def _fits(plan: dict[str, Any]) -> list[str]:
    lines = ["it fits"]
    device = plan["device"]
    worst = max(stage["total"] for stage in plan["stages"])
    if device["name"] != "cpu" and worst > PREALLOCATED * device["memory"]:
        lines.append(f"  with XLA_PYTHON_CLIENT_MEM_FRACTION={USABLE_MEMORY}; JAX's default is {PREALLOCATED}")
    return lines + [f"  and with {change}" for change in plan["alternatives"]]


def _does_not_fit(plan: dict[str, Any], mesh_given: bool) -> list[str]:
    usable = plan["usable"]
    lines = [f"it does not fit: {_gb(usable)} usable per device"]
    for stage in plan["stages"]:
        if stage["total"] > usable:
            part, size = max(stage["device"].items(), key=lambda item: item[1])
            lines.append(f"  {stage['name']} needs {_gb(stage['total'])}, {_gb(size)} of it {part}")
    weights = plan["weights"] * (plan["full_experts"] + 2)
    other_meshes = [change for change in plan["alternatives"] if change.startswith("--mesh")]
    if weights > usable and not other_meshes:
        lines.append(f"  base, {plan['full_experts']} experts and a child alone need {_gb(weights)}: only other devices help")
    lines.append("what would fit, each line alone:" if plan["alternatives"] else "no known change would make it fit")
    return lines + [
        f"  {change}{' (or leave --mesh out)' * (mesh_given and change in other_meshes)}" for change in plan["alternatives"]
    ]


def _gb(size: int | float) -> str:
    if size == 0:
        return "–"
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB" if size >= 1e5 else f"{size / 1e3:.3g} kB"
