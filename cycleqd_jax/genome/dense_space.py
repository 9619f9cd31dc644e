"""The space of task vectors, for operators that leave the span of the experts' factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import flax.struct
import jax
import numpy as np

from cycleqd_jax.genome.experts import Index, check_expert, check_experts, check_rank, stacked_task_vectors
from cycleqd_jax.operators import crossover, mutation
from cycleqd_jax.operators.svd import Method, factorize
from cycleqd_jax.operators.task_vector import apply_task_vector
from cycleqd_jax.types import Adapter, Array, Float, InputError, Params, PRNGKeyArray, PyTree, tree_paths

__all__ = ["DenseSpace"]


class DenseSpace(flax.struct.PyTreeNode):
    """Genomes are unrestricted task vectors, as large as the model; a pytree.

    For small models, the paper's Gaussian ablation, and SVD mutation along the child's own singular directions. That is the
    literal reading of the paper's h(θ_child). The reference code uses the active expert's, like :class:`ExpertSpace`.

    Attributes:
        base: weights θ_base.
        task_vectors: τ of all experts, a tree like ``base`` with float32 leaves ``[K, *shape]``.
        mutation: ``"svd"`` (the child's own), ``"gaussian"`` or ``"none"``.
        strength: w_max of SVD mutation (paper: 0.3), or the standard deviation σ of Gaussian mutation.
        rank: singular directions that SVD mutation acts on; None is all.
        method: the method of the decomposition of the child; see :func:`~cycleqd_jax.operators.svd.factorize`.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.genome import DenseSpace
    >>> space = DenseSpace.from_experts({"w": jnp.eye(2)}, [{"w": 2 * jnp.eye(2)}, {"w": 3 * jnp.eye(2)}])
    >>> space.num_experts, space.expert(1)["w"].diagonal().tolist()
    (2, [2.0, 2.0])
    """

    base: PyTree
    task_vectors: PyTree
    mutation: Literal["svd", "gaussian", "none"] = flax.struct.field(pytree_node=False, default="svd")
    strength: float = flax.struct.field(pytree_node=False, default=0.3)
    rank: int | None = flax.struct.field(pytree_node=False, default=None)
    method: Method = flax.struct.field(pytree_node=False, default="svd")

    @classmethod
    def from_experts(
        cls,
        base: Params,
        experts: Sequence[Params | Adapter],
        *,
        mutation: Literal["svd", "gaussian", "none"] = "svd",
        strength: float = 0.3,
        rank: int | np.integer | None = None,
        method: Method = "svd",
    ) -> DenseSpace:
        """The space around fine-tuned experts that share a base.

        Args:
            base: weights θ_base.
            experts: one per task, in task order: its weights, or an adapter, which is multiplied out.
            mutation: the kind of mutation.
            strength: see the class.
            rank: see the class.
            method: see the class.

        Raises:
            InputError: see :func:`~cycleqd_jax.genome.experts.check_experts`; also for an unknown mutation or method, a
                ``rank`` below one or a negative strength.
        """
        if mutation not in ("svd", "gaussian", "none"):
            raise InputError(f"expected mutation to be svd, gaussian or none, got {mutation!r}; correct the config")
        rank = check_rank(rank)
        if method not in get_args(Method):
            raise InputError(f"expected method to be one of {', '.join(get_args(Method))}, got {method!r}; correct the config")
        if not 0 <= strength < math.inf:
            raise InputError(f"expected the strength of mutation to be zero or positive, got {strength}; correct the config")
        check_experts(base, experts)
        taus = stacked_task_vectors(base, experts)
        tree = jax.tree.unflatten(jax.tree.structure(base), [taus[path] for path, _ in tree_paths(base)])
        return cls(base=base, task_vectors=tree, mutation=mutation, strength=strength, rank=rank, method=method)

    @property
    def num_experts(self) -> int:
        """The number K of experts."""
        return jax.tree.leaves(self.task_vectors)[0].shape[0]

    def expert(self, k: Index) -> PyTree[Array]:
        """τ_k."""
        check_expert(k, self.num_experts)
        return jax.tree.map(lambda tau: tau[k], self.task_vectors)

    def crossover(self, parent1: PyTree, parent2: PyTree, omega: Float[Array, 2]) -> PyTree[Array]:
        """Linear crossover of task vectors."""
        return crossover.linear_crossover(parent1, parent2, omega)

    def mutate(self, key: PRNGKeyArray, genome: PyTree, active: Index) -> PyTree[Array]:
        """Mutation of the child's own task vector; the active task has no effect.

        On CPU the SVD repeats bit for bit on any number of cores. Inside ``jax.jit``, as in ``ask`` of a searcher, it does so
        only where the program runs in :func:`~cycleqd_jax.operators.single_threaded_lapack`.

        Args:
            key: consumed; a typed PRNG key.
            genome: task vector of the child.
            active: unused.
        """
        del active
        if self.mutation == "svd":
            return mutation.svd_mutation(key, genome, factorize(genome, self.rank, method=self.method), self.strength)
        if self.mutation == "gaussian":
            return mutation.gaussian_mutation(key, genome, self.strength)
        return genome

    def express(self, genome: PyTree[Array]) -> Params:
        """θ = θ_base + τ, cast to the dtypes of the base."""
        return apply_task_vector(self.base, genome)
