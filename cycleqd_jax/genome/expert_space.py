"""The space of all models that linear crossover and SVD mutation can reach from K experts, in coefficients.

Every such model is, for each matrix,

    θ = θ_base + Σ_k a_k τ_k + Σ_k U_k diag(d_k ⊙ s_k) V_kᵀ

(vectors and scalars have the first sum only). Both operators are linear in ``(a, d)``, so evolution works on these few
numbers instead of the weights, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from cycleqd_jax.genome.experts import check_expert, stacked_task_vectors
from cycleqd_jax.operators import crossover, mutation
from cycleqd_jax.operators.svd import HIGHEST, Factors, MatrixPredicate, factorize, is_matrix
from cycleqd_jax.types import Array, Float, InputError, Int, Params, PRNGKeyArray, PyTree, leaf_path, tree_paths

__all__ = ["ExpertGenome", "ExpertSpace"]


class ExpertGenome(NamedTuple):
    """Coefficients of one model.

    Attributes:
        mixing: a, one weight per expert for the whole model, ``[K]``.
        mutation: d, for the path of every matrix leaf ``[K, *stack, r]``.
    """

    mixing: Float[Array, " k"]
    mutation: dict[str, Float[Array, "k *stack r"]]


class ExpertSpace(flax.struct.PyTreeNode):
    """Genomes as coefficients over K experts; a pytree, so it may be passed through ``jax.jit``.

    Build it with :meth:`from_experts`.

    Attributes:
        base: weights θ_base.
        task_vectors: τ, a tree like ``base`` with float32 leaves ``[K, *shape]``.
        factors: for the path of every matrix leaf its SVD, with a leading axis of experts.
        w_max: upper end of the mutation's uniform distribution; 0 switches mutation off.
    """

    base: Params
    task_vectors: PyTree[Array]
    factors: dict[str, Factors]
    w_max: float = flax.struct.field(pytree_node=False, default=0.3)

    @classmethod
    def from_experts(
        cls,
        base: Params,
        experts: Sequence[Params],
        *,
        rank: int | None = None,
        w_max: float = 0.3,
        predicate: MatrixPredicate = is_matrix,
    ) -> ExpertSpace:
        """The space spanned by fine-tuned experts that share a base.

        Args:
            base: weights θ_base.
            experts: weights of the expert of each task, in task order.
            rank: singular directions kept per matrix; None keeps all, which is the reference's operator exactly. Crossover is
                exact at any rank.
            w_max: upper end of the mutation's uniform distribution (paper: 0.3).
            predicate: which leaves mutation acts on.

        Raises:
            InputError: see :func:`~cycleqd_jax.genome.experts.stacked_task_vectors`; also for a negative ``w_max``.
        """
        if not w_max >= 0:
            raise InputError(f"w_max must be zero or positive, but is {w_max}.")
        taus = stacked_task_vectors(base, experts)
        # decided on the leaves of the model: the stacked ones have one more axis, which would make matrices of vectors
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), taus)
        chosen = {path for path, leaf in tree_paths(one) if predicate(path, leaf)}
        factors = factorize(taus, rank, lambda path, _: path in chosen)
        return cls(base=base, task_vectors=taus, factors=factors, w_max=w_max)

    @property
    def num_experts(self) -> int:
        """Number K of experts."""
        return jax.tree.leaves(self.task_vectors)[0].shape[0]

    def expert(self, k: int | Int[Array, ""]) -> ExpertGenome:
        """The genome of expert k: a = e_k, d = 0."""
        check_expert(k, self.num_experts)
        mixing = jax.nn.one_hot(k, self.num_experts, dtype=jnp.float32)
        return ExpertGenome(mixing, {path: jnp.zeros_like(f.s) for path, f in self.factors.items()})

    def crossover(self, parent1: ExpertGenome, parent2: ExpertGenome, omega: Float[Array, 2]) -> ExpertGenome:
        """Linear crossover; equal to crossing the weights."""
        return crossover.linear_crossover(parent1, parent2, omega)

    def mutate(self, key: PRNGKeyArray, genome: ExpertGenome, active: int | Int[Array, ""]) -> ExpertGenome:
        """SVD mutation with the decomposition of the active task's expert: d_active += w, w ~ U[0, w_max]^r.

        Args:
            key: consumed; a typed PRNG key.
            genome: of the child.
            active: index i of the active task.
        """

        def add(path: str, d: Array) -> Array:
            w = mutation.mutation_coefficients(key, path, d.shape[1:-1], d.shape[-1], self.w_max)
            return d.at[active].add(w)

        return genome._replace(mutation={path: add(path, d) for path, d in genome.mutation.items()})

    @jax.jit
    def express(self, genome: ExpertGenome) -> Params:
        """The weights θ of a genome: float32 sums, cast once to the dtypes of the base.

        Args:
            genome: one individual; use ``jax.vmap(space.express)`` for a population.
        """

        def leaf(path, base: Array, tau: Array) -> Array:
            total = base.astype(jnp.float32) + jnp.tensordot(genome.mixing, tau, axes=1, precision=HIGHEST)
            name = leaf_path(path)
            if name in self.factors:
                f = self.factors[name]
                scale = genome.mutation[name] * f.s
                total += jnp.einsum("k...mr,k...r,k...rn->...mn", f.u, scale, f.vt, precision=HIGHEST)
            return total.astype(base.dtype)

        return jax.tree_util.tree_map_with_path(leaf, self.base, self.task_vectors)
