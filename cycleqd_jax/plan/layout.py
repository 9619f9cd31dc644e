"""Whether a plan fits, how devices are best arranged for it, and which single change would make it fit."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from cycleqd_jax.plan.device import DEVICES, Device
from cycleqd_jax.plan.estimate import Mesh, Stage, Workload, estimate
from cycleqd_jax.types import InputError

__all__ = ["USABLE", "advice", "choose_mesh", "fits", "generation_seconds", "peak"]

USABLE = 0.95
"""Share of a device's memory that programs can have, with ``XLA_PYTHON_CLIENT_MEM_FRACTION`` set to it; JAX takes 0.75."""

MOST_DEVICES = 64


def peak(stages: Sequence[Stage]) -> Stage:
    """The stage that needs most memory on a device."""
    return max(stages, key=lambda stage: stage.total)


def fits(stages: Sequence[Stage], device: Device) -> bool:
    """Whether every stage finds room on the devices."""
    return peak(stages).total <= USABLE * device.memory


def generation_seconds(stages: Sequence[Stage], work: Workload, mesh: Mesh) -> float:
    """Of one generation, whose children are spread over the population axis; sandboxes not counted."""
    child = sum(stage.seconds for stage in stages if stage.name in ("express", "decode", "evaluate"))
    return math.ceil(work.children / mesh[0]) * child


def _meshes(devices: int, work: Workload) -> Iterator[Mesh]:
    """Arrangements that leave key/value heads whole, and no group of devices without a child."""
    for population in range(1, min(devices, work.children) + 1):
        for fsdp in range(1, devices // population + 1):
            tensor = devices // (population * fsdp)
            if population * fsdp * tensor == devices and work.model.num_key_value_heads % tensor == 0:
                yield population, fsdp, tensor


def choose_mesh(work: Workload, devices: int, device: Device) -> tuple[Mesh, list[Stage]]:
    """The arrangement that fits and takes least time; if none fits, the one that needs least memory.

    Args:
        work: what is to be computed.
        devices: how many.
        device: of which kind.

    Returns:
        The mesh and its stages.

    Raises:
        InputError: no arrangement divides the model.
    """
    tried = []
    for mesh in _meshes(devices, work):
        try:
            stages = estimate(work, mesh, device)
        except InputError:
            continue
        if fits(stages, device):
            tried.append(((0, generation_seconds(stages, work, mesh), mesh), stages))
        else:
            tried.append(((1, peak(stages).total, mesh), stages))
    if not tried:
        raise InputError(
            f"expected a number of devices that divides the model's {work.model.num_key_value_heads} key/value heads and "
            f"{work.model.hidden_size} hidden units, got {devices}: choose another with --devices"
        )
    (*_, mesh), stages = min(tried, key=lambda item: item[0])
    return mesh, stages


def advice(work: Workload, devices: int, device: Device, scale: float = 1.0, mesh: Mesh | None = None) -> list[str]:
    """What would make a plan fit, the least change first; or, if it fits, with how few devices it still does.

    Args:
        work: what is to be computed.
        devices: how many.
        device: of which kind.
        scale: how many times as much memory as estimated is needed, where that has been measured.
        mesh: how the devices are arranged; as is best for the plan by default.

    Returns:
        Arguments and overrides of ``cycleqd plan``, instead of those given; those of a line belong together.
    """

    def arranged(changed: Workload, count: int = devices, kind: Device = device) -> Mesh | None:
        """The best arrangement, if it fits."""
        try:
            best, stages = choose_mesh(changed, count, kind)
        except InputError:
            return None
        return best if scale * peak(stages).total <= USABLE * kind.memory else None

    def works(changed: Workload, count: int = devices, kind: Device = device) -> bool:
        if mesh is None or count != devices:
            return arranged(changed, count, kind) is not None
        return scale * peak(estimate(changed, mesh, kind)).total <= USABLE * kind.memory

    def number(count: int) -> str:
        # a mesh that was given is of another number of devices
        best = None if mesh is None else choose_mesh(work, count, device)[0]
        return f"--devices {count}" + ("" if best is None else f" --mesh {_text(best)}")

    alone = device.shares_host  # more devices there are smaller ones
    if works(work):
        fewer = next((count for count in range(1, 1 if alone else devices) if works(work, count)), None)
        return [] if fewer is None else [number(fewer)]
    found = []
    other = None if mesh is None else arranged(work)
    more = None
    if other is not None:
        found.append(f"--mesh {_text(other)}")
    elif not alone:
        more = next((count for count in range(devices + 1, MOST_DEVICES + 1) if works(work, count)), None)
        found += [] if more is None else [number(more)]
    if work.model.dtype == "float32":
        half = dataclasses.replace(work, model=work.model.replace(dtype="bfloat16"))
        found += ["model.dtype=bfloat16"] if works(half) else []
    larger = [kind for kind in DEVICES.values() if kind.memory > 1.05 * device.memory]
    options = [([], devices, device), *(([f"--device {kind.name}"], devices, kind) for kind in larger)]
    if more is None and other is None and mesh is None and not alone:
        options += [([f"--devices {times * devices}"], times * devices, device) for times in (2, 4)]
    for prefix, count, kind in options:
        if prefix and works(work, count, kind):
            found += prefix
            continue
        found += [" ".join([*prefix, *names]) for names in _smaller(work, functools.partial(works, count=count, kind=kind))]
    return found


def _text(mesh: Mesh) -> str:
    return ",".join(map(str, mesh))


def _smaller(work: Workload, works: Callable[[Workload], bool]) -> list[list[str]]:
    """The fewest halvings of slots, lengths and rank that fit: of each alone and, if none does, of several."""
    full = min(work.model.hidden_size, work.rank or work.model.hidden_size)
    ranks = [None, *(2**k for k in range(full.bit_length(), 2, -1) if 2**k < full)]
    slots = [None, *(2**k for k in range(work.slots.bit_length(), -1, -1) if 2**k < work.slots)]
    lengths = [None, *(2**k for k in range(work.max_len.bit_length(), 0, -1) if 2 * work.new <= 2**k < work.max_len)]

    def changed(a: int, b: int, c: int) -> Workload:
        length = lengths[b] or work.max_len
        prompt = min(work.prompt, length - work.new)
        return dataclasses.replace(
            work, slots=slots[a] or work.slots, max_len=length, prompt=prompt, rank=ranks[c] or work.rank
        )

    steps = sorted(itertools.product(range(len(slots)), range(len(lengths)), range(len(ranks))), key=sum)
    if not works(changed(len(slots) - 1, len(lengths) - 1, len(ranks) - 1)):
        return []
    found: list[tuple[int, ...]] = []
    for step in steps:
        alone = sum(size > 0 for size in step) == 1
        if any(all(x >= y for x, y in zip(step, other, strict=True)) for other in found) or not (alone or not found):
            continue
        if works(changed(*step)):
            found.append(step)
    names = (("engine.slots", slots), ("engine.max_len", lengths), ("genome.rank", ranks))
    return [[f"{name}={values[i]}" for (name, values), i in zip(names, step, strict=True) if i] for step in found]
