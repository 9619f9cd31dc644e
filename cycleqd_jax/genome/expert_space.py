"""The space of all models that linear crossover and SVD mutation can reach from K experts, in coefficients.

Every such model is, for each matrix,

    θ = θ_base + Σ_k a_k τ_k + Σ_k U_k diag(d_k ⊙ s_k) V_kᵀ

(vectors and scalars have the first sum only). Both operators are linear in ``(a, d)``, so evolution works on these few
numbers instead of the weights, exactly.

Where all experts change a leaf by low-rank updates (LoRA adapters), τ_k = U_k diag(s_k) V_kᵀ, so that its factors alone give

    θ = θ_base + Σ_k U_k diag((a_k + d_k) ⊙ s_k) V_kᵀ

and nothing of the size of the leaf is held for any expert. A leaf that no expert changes is θ_base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from cycleqd_jax.genome.experts import check_expert, check_experts, sort_leaves, stacked_factors, stacked_task_vectors
from cycleqd_jax.operators import crossover, mutation
from cycleqd_jax.operators.svd import HIGHEST, Factors, MatrixPredicate, factorize, is_matrix
from cycleqd_jax.types import Adapter, Array, Float, InputError, Int, Params, PRNGKeyArray, leaf_path, tree_paths

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
        task_vectors: τ, for the path of every leaf that some expert changes densely, float32 ``[K, *shape]``.
        factors: for the path of every matrix leaf that experts change, the singular directions that mutation acts on, with a
            leading axis of experts. Of a leaf without task vectors they are the experts' updates themselves.
        remainders: of leaves without task vectors, the directions that mutation leaves alone: those beyond the rank, or all
            where the predicate says so.
        w_max: upper end of the mutation's uniform distribution; 0 switches mutation off.
    """

    base: Params
    task_vectors: dict[str, Array]
    factors: dict[str, Factors]
    remainders: dict[str, Factors] = flax.struct.field(default_factory=dict)
    w_max: float = flax.struct.field(pytree_node=False, default=0.3)

    @classmethod
    def from_experts(
        cls,
        base: Params,
        experts: Sequence[Params | Adapter],
        *,
        rank: int | None = None,
        w_max: float = 0.3,
        predicate: MatrixPredicate = is_matrix,
        densify: bool = False,
    ) -> ExpertSpace:
        """The space spanned by fine-tuned experts that share a base.

        Args:
            base: weights θ_base.
            experts: of each task, in task order: its weights, or an adapter, whose low-rank updates are never multiplied out
                unless ``densify`` says so. Adapters may differ in rank and in the leaves they change.
            rank: singular directions kept per matrix; None keeps all, which is the reference's operator exactly. Crossover is
                exact at any rank.
            w_max: upper end of the mutation's uniform distribution (paper: 0.3).
            predicate: which leaves mutation acts on.
            densify: multiply low-rank updates out where another expert changes the whole leaf, as every expert does that is
                given by its weights. They are refused otherwise.

        Raises:
            InputError: see :func:`~cycleqd_jax.genome.experts.check_experts` and
                :func:`~cycleqd_jax.genome.experts.sort_leaves`; also for a negative ``w_max`` or a ``rank`` below one.
        """
        if not w_max >= 0:
            raise InputError(f"w_max must be zero or positive, but is {w_max}.")
        check_experts(base, experts)
        dense, low_rank = sort_leaves(base, experts, densify)
        # decided on the leaves of the model: the stacked ones have one more axis, which would make matrices of vectors
        one = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in tree_paths(base)}
        chosen = {path for path in (*dense, *low_rank) if predicate(path, one[path])}
        taus = stacked_task_vectors(base, experts, dense)
        factors, remainders = factorize(taus, rank, lambda path, _: path in chosen), {}
        for path, whole in stacked_factors(base, experts, low_rank).items():
            full = whole.s.shape[-1]
            kept = 0 if path not in chosen else full if rank is None else min(rank, full)
            if kept > 0:
                factors[path] = _directions(whole, slice(0, kept))
            if kept < full:
                remainders[path] = _directions(whole, slice(kept, full))
        return cls(base=base, task_vectors=taus, factors=factors, remainders=remainders, w_max=w_max)

    @property
    def num_experts(self) -> int:
        """Number K of experts."""
        return jax.tree.leaves((self.task_vectors, self.factors, self.remainders))[0].shape[0]

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

        def along(f: Factors, c: Array) -> Array:
            return jnp.einsum("k...mr,k...r,k...rn->...mn", f.u, c * f.s, f.vt, precision=HIGHEST)

        def mixing(f: Factors) -> Array:
            return jnp.reshape(genome.mixing, (-1, *(1,) * (f.s.ndim - 1)))

        def leaf(path, base: Array) -> Array:
            name = leaf_path(path)
            total = base.astype(jnp.float32)
            dense = name in self.task_vectors
            if dense:
                total += jnp.tensordot(genome.mixing, self.task_vectors[name], axes=1, precision=HIGHEST)
            if name in self.factors:
                f, d = self.factors[name], genome.mutation[name]
                total += along(f, d if dense else mixing(f) + d)
            if name in self.remainders:
                f = self.remainders[name]
                total += along(f, mixing(f))
            return total.astype(base.dtype)

        return jax.tree_util.tree_map_with_path(leaf, self.base)


def _directions(factors: Factors, some: slice) -> Factors:
    return Factors(factors.u[..., :, some], factors.s[..., some], factors.vt[..., some, :])
