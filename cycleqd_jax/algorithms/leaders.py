"""The individuals that lead a search: those with the highest averages over all tasks, by one rule for every searcher."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.algorithms.common import mean_scores
from cycleqd_jax.types import AnyArray, Array, ArrayLeaf, Bool, Float, Genome, InputError, Int, Scores

__all__ = ["Leaders", "leading_of"]


def leading_of(
    genomes: Genome,
    scores: Float[AnyArray, "*place task"],
    ids: Int[AnyArray, "*place"],
    held: Bool[AnyArray, "*place"],
    count: int,
) -> tuple[Genome, Scores, Int[AnyArray, " individual"]]:
    """The individuals with the highest averages over all tasks, each once; ties are broken by the smallest id.

    This function does not work under ``jax.jit``: the number of individuals depends on the values.

    Args:
        genomes: leading axes ``place``.
        scores: the scores of the individual in each place.
        ids: the ids of the individual in each place. One individual may be in several places.
        held: which places hold an individual.
        count: the most individuals; fewer are returned where there are fewer.

    Returns:
        Genomes (leading axis ``individual``), scores and ids, from the highest average.

    Raises:
        InputError: ``count`` is below 1.
    """
    if count < 1:
        raise InputError(f"expected to ask for at least one leading individual, got {count}; correct the count")
    means = np.asarray(jnp.where(held, jnp.mean(scores, axis=-1), -jnp.inf)).ravel()
    flat, places = np.asarray(ids).ravel(), {}
    for place in np.lexsort((flat, -means))[: int(np.sum(held))].tolist():
        places.setdefault(int(flat[place]), place)
    where = np.unravel_index([*places.values()][:count], np.shape(ids))
    return jax.tree.map(lambda leaf: leaf[where], (genomes, scores, ids))


class Leaders(flax.struct.PyTreeNode):
    """A leaderboard: the individuals with the highest averages so far, in a fixed number of places.

    Searchers without an archive keep it. Individuals are in the order of their places: the highest average first; ties are
    broken by the smallest id.

    Attributes:
        genomes: leading axis ``place``; zeros in empty places.
        scores: −inf in empty places.
        ids: −1 in empty places.
    """

    genomes: Genome
    scores: Float[ArrayLeaf, "*batch place task"]
    ids: Int[ArrayLeaf, "*batch place"]

    @classmethod
    def empty(cls, genome: Genome, tasks: int, places: int) -> Leaders:
        """Empty places.

        Args:
            genome: one genome, for shapes and dtypes.
            tasks: the number K of tasks.
            places: the number of places.

        Raises:
            InputError: there is no place.
        """
        if places < 1:
            raise InputError(f"expected at least one place for leading individuals, got {places}; increase leaders")
        zeros = jax.tree.map(lambda leaf: jnp.zeros((places, *leaf.shape), leaf.dtype), genome)
        return cls(zeros, jnp.full((places, tasks), -jnp.inf, jnp.float32), jnp.full(places, -1, jnp.int32))

    def update(self, genomes: Genome, scores: Float[Array, "batch task"], ids: Int[Array, " batch"]) -> Leaders:
        """The leaders of these and a batch, whose rows with NaN or infinity do not count.

        Args:
            genomes: leading axis ``batch``.
            scores: the scores of the batch.
            ids: the ids of the batch, ascending and above all earlier ones.
        """
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), self, Leaders(genomes, scores, ids))
        # The sort is stable: of equals the earlier one keeps its place, and rows without an average do not fill empty places.
        kept = jnp.argsort(-mean_scores(both.scores), stable=True)[: self.ids.shape[0]]
        return jax.tree.map(lambda leaf: leaf[kept], both)

    def leading(self, count: int) -> tuple[Genome, Scores, Int[AnyArray, " individual"]]:
        """See :func:`leading_of`; at most as many as there are places."""
        return leading_of(self.genomes, self.scores, self.ids, self.ids >= 0, count)
