"""Whether a plan fits its devices, the best mesh for it, and the smallest changes that would make it fit."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from cycleqd_jax.config import RunConfig
from cycleqd_jax.plan.device import DEVICES, Device
from cycleqd_jax.plan.estimate import Stage, estimate
from cycleqd_jax.plan.workload import GenomeWorkload, Mesh, Workload
from cycleqd_jax.sharding import mesh_sizes
from cycleqd_jax.types import InputError

__all__ = [
    "USABLE_MEMORY",
    "alternatives",
    "choose_mesh",
    "configured_mesh",
    "fits",
    "generation_seconds",
    "mesh_text",
    "peak_stage",
]

USABLE_MEMORY = 0.95
"""The usable share of a device's memory, if ``XLA_PYTHON_CLIENT_MEM_FRACTION`` is set to it; JAX's own default is 0.75."""

MOST_DEVICES = 64


def peak_stage(stages: Sequence[Stage]) -> Stage:
    """The stage that needs the most memory on a device."""
    return max(stages, key=lambda stage: stage.total)


def fits(stages: Sequence[Stage], device: Device) -> bool:
    """Whether every stage fits the usable memory of the devices."""
    return peak_stage(stages).total <= USABLE_MEMORY * device.memory


def generation_seconds(stages: Sequence[Stage], work: GenomeWorkload, mesh: Mesh) -> float:
    """Seconds of one generation, its children spread over the population axis; time in sandboxes is not included."""
    child = sum(stage.seconds for stage in stages if stage.name in ("express", "decode", "segment", "evaluate"))
    return math.ceil(work.children / mesh[0]) * child


def configured_mesh(run: RunConfig, devices: int | None) -> tuple[int, Mesh | None]:
    """The number of devices of a config, and its mesh.

    Args:
        run: the config.
        devices: the number of devices that were asked for; None takes those of the config's mesh, or one.

    Returns:
        The number of devices, and the mesh, or None where the config leaves it open.

    Raises:
        InputError: there are not enough devices for the config's mesh.
    """
    population, fsdp, tensor = run.mesh.sizes
    if (population, fsdp, tensor) == (1, 1, 1):
        return devices or 1, None
    if devices is None:
        devices = max(1, math.prod(size for size in run.mesh.sizes if size > 0))
    sizes = mesh_sizes(devices, population=population, fsdp=fsdp, tensor=tensor)
    return math.prod(sizes), sizes


def _meshes(devices: int, work: Workload) -> Iterator[Mesh]:
    """Meshes that do not split a KV head and give every group of devices a child."""
    for population in range(1, min(devices, work.children) + 1):
        for fsdp in range(1, devices // population + 1):
            tensor = devices // (population * fsdp)
            if population * fsdp * tensor == devices and work.model.num_key_value_heads % tensor == 0:
                yield population, fsdp, tensor


def choose_mesh(work: Workload, devices: int, device: Device) -> tuple[Mesh, list[Stage]]:
    """The fastest mesh that fits; if none fits, the one that needs the least memory.

    Args:
        work: what is to be computed.
        devices: the number of devices.
        device: the kind of device.

    Returns:
        The mesh and its stages.

    Raises:
        InputError: no mesh divides the model.
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
            tried.append(((1, peak_stage(stages).total, mesh), stages))
    if not tried:
        raise InputError(
            f"expected a number of devices that divides the model's {work.model.num_key_value_heads} key/value heads and "
            f"{work.model.hidden_size} hidden units, got {devices}; choose another with --devices"
        )
    (*_, mesh), stages = min(tried, key=lambda item: item[0])
    return mesh, stages


def alternatives(work: Workload, devices: int, device: Device, scale: float = 1.0, mesh: Mesh | None = None) -> list[str]:
    """Changes that would make a plan fit, the smallest first; if it fits, the fewest devices on which it still does.

    Args:
        work: what is to be computed.
        devices: the number of devices.
        device: the kind of device.
        scale: measured memory over estimated memory.
        mesh: how the devices are arranged; None is the best mesh for each plan.

    Returns:
        Arguments and overrides of ``cycleqd plan`` that replace the given ones. Those of one line belong together.
    """

    def arranged(changed: Workload, count: int = devices, kind: Device = device) -> Mesh | None:
        """The best mesh, if it fits."""
        try:
            best, stages = choose_mesh(changed, count, kind)
        except InputError:
            return None
        return best if scale * peak_stage(stages).total <= USABLE_MEMORY * kind.memory else None

    def works(changed: Workload, count: int = devices, kind: Device = device) -> bool:
        if mesh is None or count != devices:
            return arranged(changed, count, kind) is not None
        return scale * peak_stage(estimate(changed, mesh, kind)).total <= USABLE_MEMORY * kind.memory

    def number(count: int) -> str:
        # a given mesh is for another number of devices
        best = None if mesh is None else choose_mesh(work, count, device)[0]
        return f"--devices {count}" + ("" if best is None else f" --mesh {mesh_text(best)}")

    alone = device.shares_host  # more simulated devices are smaller devices
    if works(work):
        fewer = next((count for count in range(1, 1 if alone else devices) if works(work, count)), None)
        return [] if fewer is None else [number(fewer)]
    found = []
    other = None if mesh is None else arranged(work)
    more = None
    if other is not None:
        found.append(f"--mesh {mesh_text(other)}")
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


def mesh_text(mesh: Mesh) -> str:
    """A mesh as the command line takes it."""
    return ",".join(map(str, mesh))


def _smaller(work: Workload, works: Callable[[Workload], bool]) -> list[list[str]]:
    """The fewest halvings that fit of slots, lengths or rank alone; if none of them fits alone, of several together."""
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
