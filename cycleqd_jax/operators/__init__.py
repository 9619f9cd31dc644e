"""Operators of CycleQD on weights: task vectors, adapters, SVD, crossover, mutation, merge; static merges to compare with.

All operators work on any pytree of arrays (Flax Linen or NNX states, plain dicts …). They are pure, jitted and vmapped across
stacked matrices, and need only JAX, so that other projects can import this package alone.

A *matrix* is a leaf with at least two axes; leading axes are a stack of matrices (layers, experts, heads) that are treated
separately. Vectors, scalars and leaves with ``norm`` or ``bias`` in their path are not matrices, and SVD mutation leaves them
unchanged (:func:`is_matrix`; every operator also takes your own predicate).

>>> import jax
>>> import jax.numpy as jnp
>>> from cycleqd_jax import operators
>>> base, first, second = ({"w": scale * jnp.eye(2)} for scale in (1.0, 2.0, 4.0))
>>> taus = [operators.task_vector(expert, base) for expert in (first, second)]
>>> child = operators.linear_crossover(*taus, jnp.ones(2))
>>> operators.apply_task_vector(base, child)["w"].tolist()
[[3.0, 0.0], [0.0, 3.0]]
>>> mutated = operators.svd_mutation(jax.random.key(0), child, operators.factorize(taus[0]), w_max=0.3)
>>> bool(jnp.all(jnp.diag(mutated["w"]) >= jnp.diag(child["w"])))
True
"""

from cycleqd_jax.operators.adapter import apply_adapter, dense_update
from cycleqd_jax.operators.by_leaf import PerExpert, Rescale, keep_counts, stack_axes
from cycleqd_jax.operators.crossover import crossover_weights, linear_crossover, normalize_weights
from cycleqd_jax.operators.merge import merge, softmax_weights, weighted_sum
from cycleqd_jax.operators.mutation import gaussian_mutation, mutation_coefficients, svd_mutation
from cycleqd_jax.operators.static import (
    STATIC_MERGES,
    dare,
    dare_ties,
    linear,
    slerp,
    static_merge,
    task_arithmetic,
    ties,
    uniform,
)
from cycleqd_jax.operators.svd import Factors, compose, decompose, factorize, factorize_low_rank, is_matrix
from cycleqd_jax.operators.task_vector import apply_task_vector, matrix_norm, relative_norm, task_vector
from cycleqd_jax.operators.threads import single_threaded_lapack

__all__ = [
    "STATIC_MERGES",
    "Factors",
    "PerExpert",
    "Rescale",
    "apply_adapter",
    "apply_task_vector",
    "compose",
    "crossover_weights",
    "dare",
    "dare_ties",
    "decompose",
    "dense_update",
    "factorize",
    "factorize_low_rank",
    "gaussian_mutation",
    "is_matrix",
    "keep_counts",
    "linear",
    "linear_crossover",
    "matrix_norm",
    "merge",
    "mutation_coefficients",
    "normalize_weights",
    "relative_norm",
    "single_threaded_lapack",
    "slerp",
    "softmax_weights",
    "stack_axes",
    "static_merge",
    "svd_mutation",
    "task_arithmetic",
    "task_vector",
    "ties",
    "uniform",
    "weighted_sum",
]
