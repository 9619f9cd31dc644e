"""The cells of archives: their bounds, their bins, and which cell an individual belongs to."""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from qdax.core.containers.mapelites_repertoire import MapElitesRepertoire, compute_cvt_centroids
from threadpoolctl import threadpool_limits

from cycleqd_jax.algorithms.common import default_promotion
from cycleqd_jax.types import AnyArray, Array, Bool, Float, Genome, InputError, Int, Scores

__all__ = [
    "add_to_cells",
    "bin_centres",
    "bin_edges",
    "bin_indices",
    "cell_winners",
    "check_bounds",
    "cvt_centroids",
    "expert_bounds",
    "given_bounds",
    "grid_cells",
    "nearest_cells",
]

_SAMPLES = 25
"""Random points for each cell of a CVT, at least 25,000 in all."""


def expert_bounds(scores: Scores, low: float = 0.85, high: float = 1.15) -> np.ndarray:
    """The paper's grid: each axis spans 0.85 × the weakest expert's score to 1.15 × the strongest's on that task.

    Args:
        scores: scores of the experts, ``[K, task]``; rows with NaN are ignored.
        low: factor on the lowest score of a task.
        high: factor on the highest score of a task.

    Returns:
        Lower and upper end of each task's axis, float32 ``[task, 2]``; [0, 1] for a task on which every expert scores zero,
        because its axis would have no length.
    """
    table = np.asarray(scores, np.float64)
    table = table[np.isfinite(table).all(axis=1)]
    bounds = np.stack([low * table.min(0), high * table.max(0)], axis=1)
    bounds[bounds[:, 1] <= bounds[:, 0]] = (0.0, 1.0)
    return bounds.astype(np.float32)


def given_bounds(bounds: tuple[tuple[float, float], ...] | None, scores: Scores, name: str) -> np.ndarray:
    """The bounds that a searcher was given, float32 ``[task, 2]``; without them :func:`expert_bounds`.

    Args:
        bounds: a ``(low, high)`` pair for each task, or None.
        scores: scores of the experts, ``[K, task]``.
        name: the class of the searcher, for messages.

    Raises:
        InputError: they are not a tuple, there are not as many as tasks, or an axis is empty.
    """
    if bounds is None:
        return expert_bounds(scores)
    if not isinstance(bounds, tuple):
        raise InputError(
            f"expected a tuple of (low, high) tuples, got a {type(bounds).__name__} in {name}.bounds; pass a tuple, which is "
            "hashable"
        )
    tasks = scores.shape[1]
    if len(bounds) != tasks:
        raise InputError(
            f"expected a (low, high) pair for each of {tasks} tasks, got {len(bounds)} in {name}.bounds; pass as many, or None"
        )
    return check_bounds(bounds).astype(np.float32)


def check_bounds(bounds: Any) -> np.ndarray:
    """Checks the bounds of the axes of archives, and returns them as float64 ``[K, 2]``.

    Raises:
        InputError: there are fewer than two axes, or one is empty.
    """
    ends = np.asarray(bounds, np.float64)
    if ends.ndim != 2 or ends.shape[1] != 2 or len(ends) < 2:
        raise InputError(
            f"expected a lower and an upper bound for each of at least two tasks, got shape {ends.shape} in the bounds of "
            "the archives; pass an array of shape [tasks, 2]"
        )
    single = ends.astype(np.float32)  # as the edges are
    if not (np.isfinite(ends).all() and (single[:, 0] < single[:, 1]).all()):
        raise InputError(
            f"expected a finite lower bound below a finite upper bound for every task, got {ends.tolist()} in the bounds "
            "of the archives; correct them"
        )
    return ends


@functools.cache
def cvt_centroids(cells: int, axes: int) -> np.ndarray:
    """The centroids of a centroidal Voronoi tessellation of the unit cube, float32 ``[cell, axis]``, read-only.

    They are the same in every run. They are computed in one thread and rounded to six digits, so that they do not depend on the
    number of cores.

    Args:
        cells: number of cells.
        axes: number of dimensions.
    """
    samples = max(25_000, _SAMPLES * cells)
    with threadpool_limits(1), default_promotion():
        found = compute_cvt_centroids(axes, samples, cells, 0.0, 1.0, jax.random.key(0))
    rounded = np.asarray(found, np.float64).round(6).astype(np.float32)
    rounded.setflags(write=False)
    return rounded


def bin_edges(bounds: np.ndarray, bins: int) -> np.ndarray:
    """The edges of ``bins`` equal bins on each task's axis, float32 ``[K, bins + 1]``.

    Args:
        bounds: lower and upper end of each axis, ``[K, 2]``.
        bins: number of bins.
    """
    ends = np.asarray(bounds, np.float64)
    return np.linspace(ends[:, 0], ends[:, 1], bins + 1, axis=1).astype(np.float32)


def bin_indices(edges: AnyArray, scores: Scores) -> Int[Array, "batch task"]:
    """The bin of each score on its task's axis, 0 to bins − 1; see :meth:`Archives.bin_indices`.

    Args:
        edges: ``[K, bins + 1]``.
        scores: ``[batch, K]``.
    """
    above = jnp.sum(scores[:, :, None] >= edges[None, :, :], axis=-1)
    return jnp.clip(above - 1, 0, edges.shape[1] - 2)


def bin_centres(edges: Float[Array, "axis edge"], place: Int[Array, "batch axis"]) -> Float[Array, "batch axis"]:
    """The centres of bins of equal width.

    Args:
        edges: the edges of the bins of each axis.
        place: the bin on each axis.
    """
    low, high = edges[None, :, 0], edges[None, :, -1]
    return low + (place.astype(jnp.float32) + 0.5) / (edges.shape[1] - 1) * (high - low)


def grid_cells(place: Int[Array, "batch axis"], bins: int) -> Int[Array, " batch"]:
    """The position in a QDax repertoire of the cells of a grid.

    ``compute_euclidean_centroids`` orders the cells by ``jnp.meshgrid``, which swaps the first two axes.

    Args:
        place: the bin on each axis.
        bins: number of bins of every axis.
    """
    axes = [1, 0, *range(2, place.shape[1])] if place.shape[1] > 1 else [0]
    strides = bins ** jnp.arange(len(axes) - 1, -1, -1)
    return jnp.sum(place[:, jnp.asarray(axes)] * strides[None], axis=1)


def nearest_cells(
    points: Float[Array, "batch axis"],
    centroids: Float[Array, "cell axis"],
    low: Float[Array, " axis"],
    high: Float[Array, " axis"],
) -> Int[Array, " batch"]:
    """The cell whose centroid is nearest to each point, on axes of which each has length 1; points outside are clipped.

    Args:
        points: of the batch.
        centroids: of the cells.
        low: the lower end of each axis.
        high: its upper end.
    """
    low, width = low[None], (high - low)[None]
    unit = jnp.clip((points - low) / width, 0.0, 1.0)
    return jnp.argmin(jnp.sum(jnp.square(unit[:, None] - ((centroids - low) / width)[None]), axis=-1), axis=1)


def cell_winners(cells: Int[Array, " batch"], fitness: Float[Array, " batch"]) -> Bool[Array, " batch"]:
    """Which individuals of a batch are the fittest of their cell; of equals, the first.

    ``MapElitesRepertoire.add`` keeps all individuals that tie in a cell and scatters them to one index, in undefined order for
    each leaf: an elite could get the genotype of one individual and the descriptor of another. With one candidate per cell, the
    result is that of inserting the batch one by one, in order.

    Args:
        cells: cell of each individual.
        fitness: quality of each individual.

    Returns:
        A mask over the batch.
    """
    order = jnp.arange(cells.shape[0])
    same_cell = cells[:, None] == cells[None, :]
    better = fitness[None, :] > fitness[:, None]
    earlier_equal = (fitness[None, :] == fitness[:, None]) & (order[None, :] < order[:, None])
    return ~jnp.any(same_cell & (better | earlier_equal), axis=1)


def add_to_cells(
    repertoire: MapElitesRepertoire,
    genomes: Genome,
    cells: Int[Array, " batch"],
    centres: Float[Array, "batch axis"],
    fitness: Float[Array, " batch"],
    extra: dict[str, Array],
) -> MapElitesRepertoire:
    """Adds a batch to a repertoire, with the result of adding one by one in batch order.

    QDax gets the centre of the cell as the descriptor: the caller has decided about the cell, and a search for the nearest
    centroid would have ties at the edges of a grid. The caller restores the true descriptors.

    Args:
        repertoire: what the batch is added to.
        genomes: leading axis ``batch``.
        cells: cell of each individual.
        centres: centre of its cell.
        fitness: quality of each individual; −inf does not enter.
        extra: the repertoire's ``extra_scores`` of each individual.
    """
    fitness = jnp.where(cell_winners(cells, fitness), fitness, -jnp.inf)
    with default_promotion():
        return repertoire.add(genomes, centres, fitness, cast(Any, extra))
