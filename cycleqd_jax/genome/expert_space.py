"""The space of all models that linear crossover and SVD mutation can reach from K experts, in coefficients.

Every matrix of such a model is

    θ = θ_base + Σ_k a_k τ_k + Σ_k U_k diag(d_k ⊙ s_k) V_kᵀ

(vectors and scalars have the first sum only). Both operators are linear in ``(a, d)``, so evolution on these few numbers is
exactly evolution on the weights.

Where all experts change a leaf by low-rank updates (LoRA adapters), τ_k = U_k diag(s_k) V_kᵀ. Then the factors alone give

    θ = θ_base + Σ_k U_k diag((a_k + d_k) ⊙ s_k) V_kᵀ

and no expert needs an array of the size of the leaf. A leaf that no expert changes is θ_base.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cycleqd_jax.genome.basis import (
    Basis,
    check_bases,
    default_factor_dtype,
    dense_bases,
)
from cycleqd_jax.genome.changes import low_rank_directions, whole_changes
from cycleqd_jax.genome.experts import Index, check_expert, check_experts, check_rank, sort_leaves
from cycleqd_jax.genome.express import Parts, express_leaves, mixed_leaf
from cycleqd_jax.genome.placement import check_out, express_placed, leaf_specs, part_specs, put
from cycleqd_jax.operators import crossover, mutation
from cycleqd_jax.operators.svd import MatrixPredicate, Method, is_matrix
from cycleqd_jax.operators.threads import single_threaded_lapack
from cycleqd_jax.types import (
    Adapter,
    Array,
    Float,
    InputError,
    MixedMatrix,
    Params,
    PRNGKeyArray,
    PyTree,
    leaf_path,
    tree_paths,
)

__all__ = ["ExpertGenome", "ExpertSpace"]


class ExpertGenome(NamedTuple):
    """The coefficients of one model.

    Attributes:
        mixing: a, one weight per expert for the whole model, ``[K]``.
        mutation: d, ``[K, *stack, r]`` for every matrix leaf, by path.
    """

    mixing: Float[Array, " k"]
    mutation: dict[str, Float[Array, "k ..."]]


class ExpertSpace(flax.struct.PyTreeNode):
    """Genomes as coefficients over K experts; a pytree, so it can be passed through ``jax.jit``.

    Build it with :meth:`from_experts`. The leaves are arrays, or their abstract values when a program is only traced.

    Attributes:
        base: weights θ_base.
        experts: θ_1 … θ_K of every leaf for which all experts have weights and some expert has other values than the base, by
            path, in the base's dtype; not copied.
        updates: τ_1 … τ_K, float32, of every leaf that some adapter replaces as a whole (None for other experts), by path.
        bases: the singular directions that mutation acts on, of every matrix leaf that experts change, by path. For a leaf with
            neither experts nor updates they are the experts' low-rank changes, in float32; for other leaves see
            ``factor_dtype`` of :meth:`from_experts`.
        remainders: for leaves with low-rank changes only, the directions that mutation does not act on: those beyond the rank,
            or all directions of a leaf that the predicate excludes.
        num_experts: the number K of experts.
        w_max: upper end of the mutation's uniform distribution; 0 switches mutation off.
        mesh: the devices of the arrays (:meth:`shard`); None is one device.
        specs: the partition spec of every leaf of the base, by path.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.genome import ExpertSpace
    >>> base = {"w": jnp.eye(4)}
    >>> space = ExpertSpace.from_experts(base, [{"w": 2 * jnp.eye(4)}, {"w": 4 * jnp.eye(4)}])
    >>> child = space.crossover(space.expert(0), space.expert(1), jnp.array([1.0, 1.0]))
    >>> space.express(child)["w"].diagonal().tolist()
    [3.0, 3.0, 3.0, 3.0]
    """

    base: PyTree
    experts: dict[str, tuple[Any, ...]]
    updates: dict[str, tuple[Any, ...]]
    bases: dict[str, Basis]
    remainders: dict[str, Basis]
    num_experts: int = flax.struct.field(pytree_node=False)
    w_max: float = flax.struct.field(pytree_node=False, default=0.3)
    mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)
    specs: tuple[tuple[str, P], ...] = flax.struct.field(pytree_node=False, default=())

    @classmethod
    def from_experts(
        cls,
        base: Params,
        experts: Sequence[Params | Adapter],
        *,
        rank: int | np.integer | None = None,
        w_max: float = 0.3,
        predicate: MatrixPredicate = is_matrix,
        densify: bool = False,
        method: Method = "svd",
        bases: Mapping[str, Basis] | None = None,
        factor_dtype: Literal["float32", "bfloat16"] | None = None,
    ) -> ExpertSpace:
        """The space spanned by fine-tuned experts that share a base.

        Args:
            base: weights θ_base.
            experts: one per task, in task order: its weights, or an adapter. Low-rank updates are never multiplied out unless
                ``densify`` is set. Adapters may differ in rank and in the leaves they change. A leaf that no expert changes
                has no basis.
            rank: singular directions kept per matrix; None keeps all, which is the reference's operator exactly. Crossover is
                exact at any rank.
            w_max: upper end of the mutation's uniform distribution (paper: 0.3).
            predicate: which leaves mutation acts on.
            densify: multiply low-rank updates out for leaves that another expert changes as a whole. Experts given by their
                weights do so for every leaf in which one of them differs from the base. Otherwise such leaves are an error.
            method: the decomposition of leaves that experts change as a whole; see
                :func:`~cycleqd_jax.operators.svd.factorize`.
            bases: decompositions of these leaves that were computed before, in float32.
            factor_dtype: dtype of the directions U and V of these leaves, which mutation multiplies. The default is bfloat16
                for bfloat16 weights, which halves their memory and the time of :meth:`express`, and float32 otherwise. Sums,
                singular values and coefficients are always float32, and crossover does not use U and V. With bfloat16 the error
                of what mutation adds is 0.3 % of its norm; rounding weights to bfloat16 gives an error of 0.17 %.

        Raises:
            InputError: see :func:`~cycleqd_jax.genome.experts.check_experts` and
                :func:`~cycleqd_jax.genome.experts.sort_leaves`; also for a negative ``w_max``, a ``rank`` below one, a
                ``factor_dtype`` other than float32 and bfloat16, or bases of other experts or another rank.
        """
        if not 0 <= w_max < math.inf:
            raise InputError(f"expected w_max to be zero or positive, got {w_max}; correct the config")
        rank = check_rank(rank)
        if factor_dtype not in (None, "float32", "bfloat16"):
            raise InputError(
                f"expected factor_dtype float32, bfloat16 or null, got {factor_dtype}; correct the config or leave it out"
            )
        check_experts(base, experts)
        dense, low_rank = sort_leaves(base, experts, densify)
        leaves = dict(tree_paths(base))
        chosen = {path for path in (*dense, *low_rank) if predicate(path, _shape(leaves[path]))}
        wanted = [path for path in dense if path in chosen]
        if bases is not None:
            check_bases(bases, base, experts, wanted, rank)
        else:
            with single_threaded_lapack():  # the same bits on any number of cores
                bases = {path: basis for path, basis, _ in dense_bases(base, experts, wanted, rank, method)}
                jax.block_until_ready(bases)
        dtypes = {path: factor_dtype or default_factor_dtype(leaves[path].dtype) for path in bases}
        found = {path: basis.astype(dtypes[path]) for path, basis in bases.items()}
        given, updates = whole_changes(base, experts, dense)
        with single_threaded_lapack():
            kept, remainders = low_rank_directions(base, experts, low_rank, chosen, rank)
            jax.block_until_ready((kept, remainders))
        return cls(base, given, updates, found | kept, remainders, num_experts=len(experts), w_max=w_max)

    def shard(self, mesh: Mesh, specs: PyTree[P | NamedSharding]) -> ExpertSpace:
        """The same space with its arrays sharded over a mesh, as expressed weights will be.

        :meth:`express` then moves no array between devices.

        Args:
            mesh: the devices.
            specs: a tree like the base with the ``PartitionSpec`` or ``NamedSharding`` of every leaf
                (:func:`cycleqd_jax.sharding.shardings`).

        Raises:
            InputError: the tree is not like the base, or a spec names an unknown axis or splits a dimension unevenly.
        """
        flat = leaf_specs(mesh, specs, self.base)
        parts: dict[str, Parts] = {}
        for path, spec in flat.items():
            whole = self.parts(path)
            parts[path] = put(whole, mesh, part_specs(whole, spec))
        return self.replace(
            mesh=mesh,
            specs=tuple(flat.items()),
            base=jax.tree_util.tree_map_with_path(lambda path, _: parts[leaf_path(path)].base, self.base),
            experts={path: parts[path].experts for path in self.experts},
            updates={path: parts[path].updates for path in self.updates},
            bases={path: parts[path].bases[0] for path in self.bases},
            remainders={path: parts[path].bases[-1] for path in self.remainders},
        )

    def without_weights(self) -> ExpertSpace:
        """A space with the same genomes that holds no weights: :meth:`express` and its relatives raise ``InputError``."""

        def shapes(basis: Basis) -> Basis:
            nothing = jnp.zeros((0,), basis.s.dtype)
            return Basis(nothing, jnp.zeros(basis.s.shape, basis.s.dtype), nothing)

        bases = {path: shapes(basis) for path, basis in self.bases.items()}
        return self.replace(base={}, experts={}, updates={}, bases=bases, remainders={}, mesh=None, specs=())

    def task_vector(self, k: int) -> dict[str, Array]:
        """τ_k of every leaf that experts change, in float32, by path; low-rank updates are multiplied out.

        Raises:
            InputError: there is no such expert, or the space holds no weights.
        """
        self.check_weights()
        genome = self.expert(k)
        leaves = dict(tree_paths(self.base))
        found = {}
        for path in leaves:
            parts = self.parts(path)
            if parts.experts:
                found[path] = parts.experts[k].astype(jnp.float32) - leaves[path].astype(jnp.float32)
            elif parts.updates:
                update = parts.updates[k]
                found[path] = jnp.zeros(leaves[path].shape, jnp.float32) if update is None else update
            elif parts.bases:
                nothing = parts._replace(base=jnp.zeros(leaves[path].shape, jnp.float32))
                found[path] = express_leaves([nothing], genome.mixing, [self._coefficients(path, genome)], [None])[0]
        return found

    def expert(self, k: Index) -> ExpertGenome:
        """The genome of expert k: a = e_k, d = 0."""
        check_expert(k, self.num_experts)
        mixing = jax.nn.one_hot(k, self.num_experts, dtype=jnp.float32)
        return ExpertGenome(mixing, {path: jnp.zeros_like(b.s) for path, b in self.bases.items()})

    def crossover(self, parent1: ExpertGenome, parent2: ExpertGenome, omega: Float[Array, 2]) -> ExpertGenome:
        """Linear crossover of coefficients, which equals linear crossover of the weights."""
        return crossover.linear_crossover(parent1, parent2, omega)

    def mutate(self, key: PRNGKeyArray, genome: ExpertGenome, active: Index) -> ExpertGenome:
        """SVD mutation along the singular directions of the active task's expert: d_active += w, w ~ U[0, w_max]^r.

        Args:
            key: consumed; a typed PRNG key.
            genome: the genome of the child.
            active: index i of the active task.

        Raises:
            InputError: there is no such task.
        """
        check_expert(active, self.num_experts)

        def add(path: str, d: Array) -> Array:
            w = mutation.mutation_coefficients(key, path, d.shape[1:-1], d.shape[-1], self.w_max)
            return d.at[active].add(w)

        return genome._replace(mutation={path: add(path, d) for path, d in genome.mutation.items()})

    def express(self, genome: ExpertGenome, out: PyTree | None = None) -> Params:
        """The weights θ of a genome: summed in float32 and cast once to the dtypes of the base, in one jitted program.

        Args:
            genome: one individual; for a population see :meth:`express_population`.
            out: expressed weights that are not needed any more; their buffers are overwritten.

        Raises:
            InputError: ``out`` is not like the base, lies elsewhere, or is still needed by this space; or the space holds no
                weights.
        """
        self.check_weights()
        if out is None:
            return _express(self, genome)
        check_out(out, self.base, self)
        return _express_into(self, genome, out)

    def express_population(self, genomes: ExpertGenome, *, share: bool = False) -> Params:
        """The weights of several genomes.

        Args:
            genomes: genomes with a leading axis of individuals, which a mesh splits over its axis ``"population"``.
            share: give leaves that no expert changes once for all individuals, such as those of a frozen image encoder.

        Returns:
            Leaves ``[individual, *shape]``; with ``share``, leaves that no expert changes are the arrays of the base.

        Raises:
            InputError: the mesh has no such axis, or its size does not divide the number of individuals; or the space holds no
                weights.
        """
        self.check_weights()
        if self.mesh is not None:
            count, size = genomes.mixing.shape[0], dict(self.mesh.shape).get("population")
            if size is None or count % size:
                raise InputError(
                    f"expected a mesh with an axis 'population' that divides {count} individuals, got {dict(self.mesh.shape)}; "
                    "express one at a time, or choose another mesh"
                )
        paths = [path for path, _ in tree_paths(self.base)]
        changed = {*self.experts, *self.updates, *self.bases, *self.remainders}
        chosen = frozenset(path for path in paths if path in changed or not share)
        found = _express_population(self, genomes, chosen)
        # A jitted function would copy the leaves of the base.
        return jax.tree_util.tree_map_with_path(lambda path, leaf: found.get(leaf_path(path), leaf), self.base)

    def express_mixed(self, genomes: ExpertGenome) -> Params:
        """The weights of several genomes of low-rank experts over one shared base; low-rank updates are not multiplied out.

        Args:
            genomes: genomes with a leading axis of individuals.

        Returns:
            The base, with a :class:`~cycleqd_jax.types.MixedMatrix` for every stacked matrix that experts change.

        Raises:
            InputError: see :meth:`check_mixed`.
        """
        self.check_mixed()
        return _express_mixed(self, genomes)

    def check_weights(self) -> None:
        """Checks that the space holds weights.

        Raises:
            InputError: it was made by :meth:`without_weights`.
        """
        if not jax.tree.leaves(self.base):
            raise InputError(
                "expected a space with weights to express a genome, got one without them, of without_weights; use the space "
                "that it was made from"
            )

    def check_mixed(self) -> None:
        """Checks that several individuals can share the base of their weights.

        Raises:
            InputError: an expert changes a leaf as a whole, changes a leaf that is not a stack of matrices, or the space holds
                no weights.
        """
        self.check_weights()
        for path, leaf in tree_paths(self.base):
            changed = path in self.bases or path in self.remainders
            if path in self.experts or path in self.updates or (changed and jnp.ndim(leaf) != 3):
                raise InputError(
                    f"expected experts that change stacked matrices by a low rank, got another change of leaf {path!r}; "
                    "express the individuals one by one"
                )

    def parts(self, path: str) -> Parts:
        """The arrays that a leaf of an expressed model is made of."""
        bases = (self.bases.get(path), self.remainders.get(path))
        return Parts(
            dict(tree_paths(self.base))[path],
            self.experts.get(path, ()),
            self.updates.get(path, ()),
            tuple(basis for basis in bases if basis is not None),
        )

    def _coefficients(self, path: str, genome: ExpertGenome) -> tuple[Array, ...]:
        """The coefficients c of every basis of a leaf: d, plus a where the basis is the experts' whole change."""
        whole = path not in self.experts and path not in self.updates

        def coefficients(basis: Basis, d: Array | None) -> Array:
            mixing = genome.mixing.reshape(-1, *(1,) * (basis.s.ndim - 1))
            c = jnp.zeros(basis.s.shape, jnp.float32) if d is None else d
            return c + mixing if whole else c

        pairs = ((self.bases.get(path), genome.mutation.get(path)), (self.remainders.get(path), None))
        return tuple(coefficients(basis, d) for basis, d in pairs if basis is not None)

    def _mixed(self, path: str, leaf: Array, genomes: ExpertGenome) -> Array | MixedMatrix:
        found = jax.vmap(lambda genome: self._coefficients(path, genome))(genomes)  # [individual, K, layer, r] for each basis
        return mixed_leaf(leaf, self.parts(path).bases, found)

    def _express(self, genome: ExpertGenome, outs: Sequence[Array | None]) -> list[Array]:
        paths = [path for path, _ in tree_paths(self.base)]
        parts, coefficients = [self.parts(path) for path in paths], [self._coefficients(path, genome) for path in paths]
        leaf = dict(self.specs)
        specs = None if self.mesh is None else [leaf[path] for path in paths]
        return express_placed(parts, genome.mixing, coefficients, outs, self.mesh, specs)


def _express_all(space: ExpertSpace, genome: ExpertGenome, out: Params | None = None) -> Params:
    leaves, tree = jax.tree.flatten(space.base)
    outs = [None] * len(leaves) if out is None else jax.tree.leaves(out)
    return tree.unflatten(space._express(genome, outs))


_express = jax.jit(_express_all)


@functools.partial(jax.jit, donate_argnames="out", keep_unused=True)
def _express_into(space: ExpertSpace, genome: ExpertGenome, out: Params) -> Params:
    return _express_all(space, genome, out)


@jax.jit
def _express_mixed(space: ExpertSpace, genomes: ExpertGenome) -> Params:
    def leaf(path: Any, base: Array) -> Array | MixedMatrix:
        return space._mixed(leaf_path(path), base, genomes)

    return jax.tree_util.tree_map_with_path(leaf, space.base)


@functools.partial(jax.jit, static_argnames="chosen")
def _express_population(space: ExpertSpace, genomes: ExpertGenome, chosen: frozenset[str]) -> dict[str, Array]:
    """The chosen leaves of all individuals, by path."""
    name = None if space.mesh is None else "population"
    found = jax.vmap(functools.partial(_express_all, space), spmd_axis_name=name)(genomes)
    return {path: leaf for path, leaf in tree_paths(found) if path in chosen}


def _shape(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
