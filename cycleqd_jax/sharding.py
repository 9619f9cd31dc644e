"""Meshes, and the mesh axis over which each logical axis of an array is split.

Models declare logical axes (``"embed"``, ``"heads"``, ``"population"``), and rules map them to mesh axes. The same tree of
logical axes gives the layout on one device, on eight, or on many hosts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

from cycleqd_jax.types import InputError, PyTree, leaf_path

__all__ = [
    "MESH_AXES",
    "RULES",
    "Axes",
    "Shardings",
    "device_groups",
    "make_mesh",
    "mesh_sizes",
    "partition_spec",
    "put",
    "shardings",
    "to_host",
]

Axes = tuple[str | None, ...]
"""The logical axis of every dimension of an array; ``None`` is never split."""

Shardings = Union[PyTree[Sharding], Callable[..., PyTree[Sharding]], None]  # noqa: UP007  (a PyTree has no operator |)
"""Where weights are put: a tree of ``jax.sharding.Sharding`` like them, or a function from the config to such a tree."""

MESH_AXES = ("population", "fsdp", "tensor")
"""The mesh axes: individuals; slices of every weight; and heads or hidden units of one matrix product."""

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
"""Logical axis → mesh axis, or ``None`` for an axis that is not split: Megatron's layout over ``tensor``, and the other side of
every matrix over ``fsdp``."""


def mesh_sizes(devices: int, *, population: int = 1, fsdp: int = 1, tensor: int = 1) -> tuple[int, int, int]:
    """The sizes of a mesh; one of them may be -1, for all remaining devices.

    Args:
        devices: the number of devices.
        population: groups of devices with different individuals.
        fsdp: devices that share the slices of every weight.
        tensor: devices that share the heads and hidden units of every layer.

    Returns:
        The sizes of the axes :data:`MESH_AXES`.

    Raises:
        InputError: a size is neither positive nor -1, several are -1, there are not enough devices, or the other axes do not
            divide them.
    """
    sizes = (population, fsdp, tensor)
    text = " × ".join(map(str, sizes))
    if min(sizes) < -1 or 0 in sizes or sizes.count(-1) > 1:
        raise InputError(
            f"expected positive sizes, or one of -1, for a mesh population × fsdp × tensor, got {text}; correct the mesh"
        )
    known = math.prod(size for size in sizes if size > 0)
    if known > devices or (-1 in sizes and devices % known):
        rule = "a divisor of" if -1 in sizes else "at most"
        raise InputError(
            f"expected a mesh population × fsdp × tensor of {devices} devices, got {text}; choose sizes whose product is "
            f"{rule} {devices}"
        )
    left = devices // known
    return population if population > 0 else left, fsdp if fsdp > 0 else left, tensor if tensor > 0 else left


def make_mesh(*, population: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices as ``[population, fsdp, tensor]``.

    Args:
        population: groups of devices with different individuals; one of the axes may be -1, for all remaining devices.
        fsdp: devices that share the slices of every weight.
        tensor: devices that share the heads and hidden units of every layer.
        devices: all devices by default; the first ``population * fsdp * tensor`` are used.

    Returns:
        A mesh with the axes :data:`MESH_AXES`.

    Raises:
        InputError: see :func:`mesh_sizes`.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(len(devices), population=population, fsdp=fsdp, tensor=tensor)
    return Mesh(np.asarray(devices[: math.prod(sizes)]).reshape(sizes), MESH_AXES)


def device_groups(mesh: Mesh) -> list[Mesh]:
    """The groups of devices along the axis ``population``, each as a mesh with the same axes."""
    return [Mesh(mesh.devices[i : i + 1], mesh.axis_names) for i in range(mesh.shape["population"])]


def partition_spec(axes: Axes) -> PartitionSpec:
    """The partition spec of one array.

    Args:
        axes: its logical axes; see :data:`RULES`.

    Returns:
        One entry per dimension.

    Raises:
        InputError: an axis has no rule, or two dimensions would be split over the same mesh axis.
    """
    used: dict[str, str] = {}
    entries = []
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise InputError(
                f"expected one of the logical axes {', '.join(sorted(RULES))}, got {axis!r} in {axes}; "
                "add a rule for it or correct the name"
            )
        target = None if axis is None else RULES[axis]
        if target is not None:
            if target in used:
                raise InputError(
                    f"expected different mesh axes for the dimensions of {axes}, got {target!r} for both {used[target]!r} "
                    f"and {axis!r}; change one of the rules"
                )
            used[target] = str(axis)
        entries.append(target)
    return PartitionSpec(*entries)


def shardings(mesh: Mesh | AbstractMesh, shapes: Any, axes: Any) -> Any:
    """Shardings for a tree of arrays.

    Args:
        mesh: the devices.
        shapes: a tree of arrays or ``jax.ShapeDtypeStruct``.
        axes: a tree of the same structure with an :data:`Axes` tuple for each leaf.

    Returns:
        A tree of ``NamedSharding``, for ``jax.device_put`` and ``jax.jit``.

    Raises:
        InputError: see :func:`partition_spec`; also if a mesh axis does not divide the dimension that it splits.
    """

    def leaf(path: Any, array: Any, names: Axes) -> NamedSharding:
        spec = partition_spec(names)
        where = leaf_path(path)
        if len(names) != len(array.shape):
            raise InputError(f"expected {len(array.shape)} logical axes for {where}, got {names}; name every dimension")
        for size, name, target in zip(array.shape, names, spec, strict=True):
            if target is not None and size % mesh.shape[target]:
                raise InputError(
                    f"expected the {name!r} axis of {where} to divide by the {mesh.shape[target]} devices of mesh axis "
                    f"{target!r}, got size {size}; choose a smaller {target!r} axis"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(leaf, shapes, axes)


def put(tree: Any, places: Any) -> Any:
    """Copies a tree of arrays to devices, which may belong to several processes.

    Arrays that are already there are not copied. Every process calls it, with arrays of the same values.

    Args:
        tree: arrays of this process, or of all processes.
        places: a sharding for each of them, or one for all.
    """
    if all(place.is_fully_addressable for place in jax.tree.leaves(places)):
        return jax.device_put(tree, places)

    def leaf(array: Any, place: Sharding) -> Any:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, place)
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, place, lambda index: host[index])

    one = isinstance(places, Sharding)
    return jax.tree.map(lambda array: leaf(array, places), tree) if one else jax.tree.map(leaf, tree, places)


def to_host(array: Any) -> np.ndarray:
    """The values of an array, also where they are divided between processes; every process calls it then."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)
