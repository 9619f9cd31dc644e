"""What several searchers share: how children are bred, and checks of arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from qdax.core.containers.ga_repertoire import GARepertoire

from cycleqd_jax.algorithms.selection import DistinctSelector
from cycleqd_jax.operators.crossover import crossover_weights
from cycleqd_jax.types import (
    AnyArray,
    Array,
    Float,
    Genome,
    GenomeSpace,
    InputError,
    Int,
    Lineage,
    PRNGKeyArray,
    UInt32,
)

__all__ = [
    "breed",
    "breed_without_task",
    "check_box",
    "check_children",
    "check_experts",
    "check_key",
    "coefficient_lineage",
    "coefficients_of",
    "default_promotion",
    "mean_scores",
    "one_genome",
    "rebuild_child",
    "with_coefficients",
]


@contextlib.contextmanager
def default_promotion() -> Iterator[None]:
    """JAX's default promotion of ranks and dtypes, on which QDax and evosax rely; users may have set stricter rules."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def breed(
    space: GenomeSpace,
    selector: DistinctSelector,
    archive: GARepertoire,
    genome_of: Callable[[Array], Genome],
    key: PRNGKeyArray,
    n: int,
    active_of: Callable[[PRNGKeyArray], Int[Array, ""]],
    mu: float,
    sigma: float,
) -> tuple[Genome, Lineage]:
    """Children: for each, two parents are selected, crossed and mutated along the directions of one expert.

    Child j depends on ``fold_in(key, j)`` only, not on ``n``.

    Args:
        space: the genome space.
        selector: selects the parents.
        archive: the repertoire of the parents, with the number of each cell as its genotype and ``id`` in its extra scores.
            Selecting genomes would copy the whole archive.
        genome_of: the genome of a cell.
        key: the key of the ``ask``; consumed.
        n: number of children.
        active_of: the active task of a child, from the child's key.
        mu: mean μ of the raw crossover weights.
        sigma: standard deviation σ of the raw crossover weights.

    Returns:
        The genomes and their lineage, leading axis ``n``.
    """

    def child(j: Array) -> tuple[Genome, Lineage]:
        child_key = jax.random.fold_in(key, j)
        active = active_of(child_key)
        select_key, cross_key, mutate_key = jax.random.split(child_key, 3)
        parents: Any = selector.select(archive, select_key, 2)
        first, second = genome_of(parents.genotypes[0]), genome_of(parents.genotypes[1])
        omega = crossover_weights(cross_key, mu, sigma)
        genome = _cross_and_mutate(space, first, second, omega, mutate_key, active)
        return genome, Lineage(parents.extra_scores["id"], active, jax.random.key_data(child_key), omega)

    # A loop instead of vmap: the arithmetic of a child must not depend on n.
    return jax.lax.map(child, jnp.arange(n))


def _cross_and_mutate(
    space: GenomeSpace, first: Genome, second: Genome, omega: Float[Array, 2], key: PRNGKeyArray, active: Int[Array, ""]
) -> Genome:
    """A child of two genomes.

    The barriers keep the compiler from merging these operations with others, which may change the last bits. So a child that is
    rebuilt has the bits that it had in the search.
    """
    first, second, omega, active = jax.lax.optimization_barrier((first, second, omega, active))
    return jax.lax.optimization_barrier(space.mutate(key, space.crossover(first, second, omega), active))


@jax.jit
def rebuild_child(
    space: GenomeSpace,
    first: Genome,
    second: Genome,
    omega: Float[Array, 2],
    key: UInt32[Array, 2],
    active: Int[Array, ""],
) -> Genome:
    """The genome of a child of :func:`breed`, from what its :class:`~cycleqd_jax.types.Lineage` says.

    Args:
        space: the genome space of the search.
        first: the genome of the first parent.
        second: the genome of the second parent.
        omega: the raw crossover weights of the child.
        key: the raw data of the child's key.
        active: the index of the active task.
    """

    def child(_: Array) -> Genome:
        mutate_key = jax.random.split(jax.random.wrap_key_data(key), 3)[2]
        return _cross_and_mutate(space, first, second, omega, mutate_key, active)

    return jax.tree.map(lambda leaf: leaf[0], jax.lax.map(child, jnp.arange(1)))  # a loop, as in breed


def breed_without_task(
    space: GenomeSpace, selector: DistinctSelector, repertoire: GARepertoire, key: PRNGKeyArray, n: int, mu: float, sigma: float
) -> tuple[Genome, Lineage]:
    """Children of one repertoire where no task is active: each is mutated along the directions of an expert that is drawn.

    The arguments and the result are those of :func:`breed`.
    """
    cells = repertoire.replace(genotypes=jnp.arange(repertoire.fitnesses.shape[0]))

    def genome_of(cell: Array) -> Genome:
        return jax.tree.map(lambda leaf: leaf[cell], repertoire.genotypes)

    def drawn(child_key: PRNGKeyArray) -> Int[Array, ""]:
        # The keys that breed splits off stay unused.
        return jax.random.randint(jax.random.fold_in(child_key, 3), (), 0, space.num_experts, jnp.int32)

    return breed(space, selector, cells, genome_of, key, n, drawn, mu, sigma)


def coefficient_lineage(key: PRNGKeyArray, coefficients: Float[Array, "batch g k"]) -> Lineage:
    """The lineage of children that are merging coefficients: no parents, no active task, ω of zero, and the coefficients.

    Args:
        key: the key of the ``ask``; the key of child j is ``fold_in(key, j)``.
        coefficients: merging coefficients c of every child, ``[batch, G, K]``.
    """
    n = coefficients.shape[0]
    keys = jax.vmap(lambda j: jax.random.key_data(jax.random.fold_in(key, j)))(jnp.arange(n))
    none = jnp.full((n, 2), -1, jnp.int32)
    return Lineage(none, none[:, 0], keys, jnp.zeros((n, 2), jnp.float32), coefficients)


def mean_scores(scores: Float[Array, "batch task"]) -> Float[Array, " batch"]:
    """The average over the tasks; −inf for rows with NaN or infinity."""
    return jnp.where(jnp.all(jnp.isfinite(scores), axis=1), jnp.mean(scores, axis=1), -jnp.inf)


def one_genome(genomes: Genome) -> Genome:
    """Zeros of the shapes and dtypes of one genome of a batch."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:], leaf.dtype), genomes)


def coefficients_of(genomes: Genome, name: str) -> Float[Array, "batch g k"]:
    """The merging coefficients of a batch of genomes that have nothing else.

    Args:
        genomes: leading axis ``batch``.
        name: the searcher, for messages.

    Raises:
        InputError: the genomes are not those of a :class:`~cycleqd_jax.genome.CoefficientSpace`.
    """
    leaves = jax.tree.leaves(genomes)
    if len(leaves) != 1 or leaves[0].ndim != 3:
        shapes = [tuple(leaf.shape) for leaf in leaves[:3]]
        raise InputError(
            f"expected genomes of one array [batch, group, expert], got {len(leaves)} of shapes {shapes} in {name}; use a "
            "CoefficientSpace"
        )
    return leaves[0]


def with_coefficients(like: Genome, coefficients: Float[Array, "batch g k"]) -> Genome:
    """Genomes of the structure of ``like`` with these merging coefficients."""
    return jax.tree.unflatten(jax.tree.structure(like), [coefficients])


def check_box(low: float, high: float, name: str) -> None:
    """Checks the range of coefficients.

    Raises:
        InputError: an end is not finite, or the range is empty.
    """
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"expected finite coefficients low < high, got {low} and {high} in {name}; correct them")


def check_key(key: PRNGKeyArray, name: str) -> None:
    """Checks that a PRNG key is a typed one.

    Raises:
        InputError: it is raw data.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise InputError(f"expected a typed PRNG key, got dtype {key.dtype} in {name}.ask; make it with jax.random.key")


def check_experts(genomes: Genome, scores: AnyArray, name: str) -> np.ndarray:
    """Checks the arguments of a searcher's ``init``.

    Args:
        genomes: the experts, leading axis ``batch``.
        scores: their scores.
        name: the searcher, for messages.

    Returns:
        The scores, float32.

    Raises:
        InputError: there are fewer than two tasks, fewer experts than tasks, not one row of scores for each genome, or scores
            that are not finite.
    """
    table = np.asarray(scores, np.float32)
    if table.ndim != 2 or table.shape[1] < 2:
        raise InputError(f"expected scores of at least two tasks, got shape {table.shape} in {name}.init; pass [expert, task]")
    if table.shape[0] < table.shape[1]:
        raise InputError(
            f"expected an expert for each of {table.shape[1]} tasks, got {table.shape[0]} in {name}.init; add experts"
        )
    count = jax.tree.leaves(genomes)[0].shape[0]
    if count != table.shape[0]:
        raise InputError(
            f"expected one row of scores for each of {count} genomes, got {table.shape[0]} in {name}.init; pass as many"
        )
    if not np.isfinite(table).all():
        broken = np.flatnonzero(~np.isfinite(table).all(axis=1)).tolist()
        raise InputError(
            f"expected finite scores of every expert, got NaN or infinity for {broken} in {name}.init; correct these experts"
        )
    return table


def check_children(genomes: Genome, scores: AnyArray, tasks: int, name: str) -> Float[Array, "batch task"]:
    """Checks the arguments of a searcher's ``tell``.

    Args:
        genomes: the children, leading axis ``batch``.
        scores: their scores.
        tasks: the number K of tasks.
        name: the searcher, for messages.

    Returns:
        The scores, float32.

    Raises:
        InputError: ``scores`` has another shape.
    """
    table = jnp.asarray(scores, jnp.float32)
    expected = (jax.tree.leaves(genomes)[0].shape[0], tasks)
    if table.shape != expected:
        raise InputError(
            f"expected scores of shape {expected} (children, tasks), got {table.shape} in {name}.tell; pass one row for each "
            "child"
        )
    return table
