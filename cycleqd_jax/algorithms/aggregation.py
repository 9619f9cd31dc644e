"""Aggregation of the archives into one model."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from cycleqd_jax.algorithms.archive import Archives
from cycleqd_jax.operators.merge import softmax_weights, weighted_sum
from cycleqd_jax.types import Array, Float, Genome, Int

__all__ = ["Aggregate", "aggregate"]


class Aggregate(NamedTuple):
    """The merge of the archives' elites.

    Attributes:
        genome: the genome of the aggregated model.
        beta: the weight β_k of the elite of archive k.
        elites: the ids of the elites.
    """

    genome: Genome
    beta: Float[Array, " task"]
    elites: Int[Array, " task"]


def aggregate(archives: Archives) -> Aggregate:
    """τ_agg = Σ_k β_k τ_k* with β = softmax(f_1*, …, f_K*): the paper's aggregation (equation 5).

    τ_k* is the best elite of archive A_k, and f_k* its quality. Of elites with equal quality, the one with the highest average
    over all tasks is taken (:meth:`Archives.best`). Task vectors are linear in the genome in every genome space, so the genomes
    are summed.

    Args:
        archives: archives of a finished search.

    Returns:
        The genome, the weights β and the ids of the elites.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.algorithms import CycleQD
    >>> from cycleqd_jax.algorithms import aggregate
    >>> from cycleqd_jax.genome import ExpertSpace
    >>> space = ExpertSpace.from_experts({"w": jnp.eye(4)}, [{"w": 2 * jnp.eye(4)}, {"w": 4 * jnp.eye(4)}])
    >>> state = CycleQD(space).init(jax.vmap(space.expert)(jnp.arange(2)), jnp.array([[0.9, 0.2], [0.1, 0.9]]))
    >>> merged = aggregate(state.archives)
    >>> merged.beta.tolist(), merged.elites.tolist()
    ([0.5, 0.5], [0, 1])
    """
    genomes, scores, ids = archives.best()
    beta = softmax_weights(jnp.diagonal(scores))
    return Aggregate(weighted_sum(genomes, beta), beta, ids)
