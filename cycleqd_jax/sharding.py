"""Meshes, and which mesh axis each logical axis of an array is split over.

Code names what an axis *is* (``"embed"``, ``"heads"``, ``"population"``); rules say where such axes go. A model is therefore
written once, and the same tree of logical axes gives the layout on one device, on eight, or on many hosts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cycleqd_jax.types import InputError, leaf_path

__all__ = ["MESH_AXES", "RULES", "Axes", "make_mesh", "partition_spec", "shardings"]

Axes = tuple[str | None, ...]
"""A logical axis name for every dimension of an array; ``None`` is never split."""

MESH_AXES = ("population", "fsdp", "tensor")
"""The mesh axes: individuals, slices of every weight, and heads or hidden units of one matrix product."""

RULES: Mapping[str, str | None] = {
    "population": "population",
    "batch": "fsdp",
    "layer": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "hidden": "tensor",
    "vocab": "tensor",
}
"""Logical axis → mesh axis: Megatron's layout over ``tensor``, the other side of every matrix over ``fsdp``."""


def make_mesh(*, population: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices as ``[population, fsdp, tensor]``.

    Args:
        population: groups of devices that hold different individuals.
        fsdp: devices that share the slices of every weight.
        tensor: devices that share the heads and hidden units of every layer.
        devices: the devices to use, all of the process by default; the first ``population * fsdp * tensor`` are taken.

    Returns:
        A mesh with the axes :data:`MESH_AXES`.

    Raises:
        InputError: a size is below one, or there are not enough devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = (population, fsdp, tensor)
    needed = math.prod(sizes)
    if min(sizes) < 1 or needed > len(devices):
        raise InputError(
            f"expected a mesh population × fsdp × tensor of at most {len(devices)} devices with every size at least 1, "
            f"got {' × '.join(map(str, sizes))}: choose sizes whose product is at most {len(devices)}"
        )
    return Mesh(np.asarray(devices[:needed]).reshape(sizes), MESH_AXES)


def partition_spec(axes: Axes, rules: Mapping[str, str | None] = RULES) -> PartitionSpec:
    """Where the dimensions of one array go.

    Args:
        axes: its logical axes.
        rules: logical axis → mesh axis, or ``None`` for an axis that is not split.

    Returns:
        One entry per dimension.

    Raises:
        InputError: an axis has no rule, or two dimensions would be split over the same mesh axis.
    """
    used: dict[str, str] = {}
    entries = []
    for axis in axes:
        if axis is not None and axis not in rules:
            raise InputError(
                f"expected one of the logical axes {', '.join(sorted(rules))}, got {axis!r} in {axes}: "
                "add a rule for it or correct the name"
            )
        target = None if axis is None else rules[axis]
        if target is not None:
            if target in used:
                raise InputError(
                    f"expected different mesh axes for the dimensions of {axes}, got {target!r} for both {used[target]!r} "
                    f"and {axis!r}: send one of them elsewhere in the rules"
                )
            used[target] = str(axis)
        entries.append(target)
    return PartitionSpec(*entries)


def shardings(mesh: Mesh, shapes: Any, axes: Any, rules: Mapping[str, str | None] = RULES) -> Any:
    """Shardings for a tree of arrays.

    Args:
        mesh: where the arrays will live.
        shapes: a tree of arrays or ``jax.ShapeDtypeStruct``.
        axes: a tree of the same structure with an :data:`Axes` tuple for each leaf.
        rules: logical axis → mesh axis.

    Returns:
        A tree of ``NamedSharding``, as ``jax.device_put`` and ``jax.jit`` take it.

    Raises:
        InputError: see :func:`partition_spec`; or a dimension does not divide by the mesh axis it is split over.
    """

    def leaf(path: Any, array: Any, names: Axes) -> NamedSharding:
        spec = partition_spec(names, rules)
        where = leaf_path(path)
        if len(names) != len(array.shape):
            raise InputError(f"expected {len(array.shape)} logical axes for {where}, got {names}: name every dimension")
        for size, name, target in zip(array.shape, names, spec, strict=True):
            if target is not None and size % mesh.shape[target]:
                raise InputError(
                    f"expected the {name!r} axis of {where} to divide by the {mesh.shape[target]} devices of mesh axis "
                    f"{target!r}, got size {size}: choose a smaller {target!r} axis"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(leaf, shapes, axes)
