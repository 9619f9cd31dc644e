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

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cycleqd_jax.genome.basis import Basis, change_at, changes_of, default_factor_dtype, dense_bases, low_rank_bases
from cycleqd_jax.genome.experts import check_expert, check_experts, sort_leaves
from cycleqd_jax.genome.express import Parts, express_leaves
from cycleqd_jax.operators import crossover, mutation
from cycleqd_jax.operators.svd import MatrixPredicate, Method, is_matrix
from cycleqd_jax.operators.task_vector import check_same_shapes
from cycleqd_jax.types import (
    Adapter,
    Array,
    Float,
    InputError,
    Int,
    MixedMatrix,
    Params,
    PRNGKeyArray,
    PyTree,
    leaf_path,
    tree_paths,
)

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
        experts: θ_1 … θ_K of every leaf of which all experts have weights, by path, in the base's dtype: the arrays that were
            given, not copies.
        updates: τ_1 … τ_K, float32, of every leaf that some adapter changes as a whole (None for an expert that does not).
        bases: the singular directions that mutation acts on, of every matrix leaf that experts change. Of a leaf that has
            neither experts nor updates they are the experts' changes themselves, in float32; of others see ``factor_dtype`` of
            :meth:`from_experts`.
        remainders: of such a leaf, the directions that mutation leaves alone: those beyond the rank, or all where the predicate
            says so.
        num_experts: number K of experts.
        w_max: upper end of the mutation's uniform distribution; 0 switches mutation off.
        mesh: where the arrays live (:meth:`shard`); None is one device.
        specs: of every leaf of the base on the mesh, by path.
    """

    base: Params
    experts: dict[str, tuple[Array, ...]]
    updates: dict[str, tuple[Array | None, ...]]
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
        rank: int | None = None,
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
            experts: of each task, in task order: its weights, or an adapter, whose low-rank updates are never multiplied out
                unless ``densify`` says so. Adapters may differ in rank and in the leaves they change.
            rank: singular directions kept per matrix; None keeps all, which is the reference's operator exactly. Crossover is
                exact at any rank.
            w_max: upper end of the mutation's uniform distribution (paper: 0.3).
            predicate: which leaves mutation acts on.
            densify: multiply low-rank updates out where another expert changes the whole leaf, as every expert does that is
                given by its weights. They are refused otherwise.
            method: how leaves that experts change as a whole are decomposed: see :func:`~cycleqd_jax.operators.svd.factorize`.
            bases: of those leaves, float32, when they have been decomposed before.
            factor_dtype: of the directions U and V of those leaves, by which mutation multiplies. By default bfloat16 where the
                weights are, which halves their memory and the time of :meth:`express`, and float32 elsewhere. Products are
                summed in float32 all the same, and singular values and coefficients are float32; crossover is not concerned.
                With bfloat16 directions what mutation adds has an error of 0.3 % of its own norm. Rounding weights to bfloat16
                is one of 0.17 % of theirs.

        Raises:
            InputError: see :func:`~cycleqd_jax.genome.experts.check_experts` and
                :func:`~cycleqd_jax.genome.experts.sort_leaves`; also for a negative ``w_max``, a ``rank`` below one, a
                ``factor_dtype`` that is neither float32 nor bfloat16, or bases that are not those of these leaves.
        """
        if not 0 <= w_max < math.inf:
            raise InputError(f"w_max must be zero or positive, but is {w_max}.")
        if rank is not None and (not isinstance(rank, int) or rank < 1):
            raise InputError(f"rank must be a positive integer, or null for full rank, but is {rank}.")
        if factor_dtype not in (None, "float32", "bfloat16"):
            raise InputError(
                f"factor_dtype must be float32 or bfloat16, or null for either by the weights, but is {factor_dtype}."
            )
        check_experts(base, experts)
        dense, low_rank = sort_leaves(base, experts, densify)
        leaves = dict(tree_paths(base))
        chosen = {path for path in (*dense, *low_rank) if predicate(path, _shape(leaves[path]))}
        wanted = [path for path in dense if path in chosen]
        if bases is not None:
            _check_bases(bases, base, experts, wanted, rank)
            decomposed = iter(bases.items())
        else:
            decomposed = ((path, basis) for path, basis, _ in dense_bases(base, experts, wanted, rank, method))
        found = {path: basis.astype(factor_dtype or default_factor_dtype(leaves[path].dtype)) for path, basis in decomposed}

        weights = [None if isinstance(expert, Adapter) else dict(tree_paths(expert)) for expert in experts]
        given: dict[str, tuple[Array, ...]] = {}
        updates: dict[str, tuple[Array | None, ...]] = {}
        for path in dense:
            if all(tree is not None for tree in weights):
                given[path] = tuple(tree[path] for tree in weights if tree is not None)
            else:
                updates[path] = tuple(
                    None if change is None else change_at(leaves[path], change, (), whole)
                    for change, whole in changes_of(path, experts)
                )
        remainders: dict[str, Basis] = {}
        for path, whole in low_rank_bases(base, experts, low_rank):
            full = whole.s.shape[-1]
            kept = 0 if path not in chosen else full if rank is None else min(rank, full)
            if kept > 0:
                found[path] = whole.directions(slice(0, kept))
            if kept < full:
                remainders[path] = whole.directions(slice(kept, full))
        return cls(base, given, updates, found, remainders, num_experts=len(experts), w_max=w_max)

    def shard(self, mesh: Mesh, specs: PyTree[P]) -> ExpertSpace:
        """The same space with its arrays spread over a mesh, as expressed weights will be; nothing moves between devices then.

        Args:
            mesh: the devices.
            specs: a tree like the base with the ``PartitionSpec`` of every leaf, or with its ``NamedSharding``
                (:func:`cycleqd_jax.sharding.shardings`).

        Raises:
            InputError: the tree is not like the base, a spec names an axis that the mesh lacks, or splits a dimension unevenly.
        """
        flat = {path: getattr(spec, "spec", spec) for path, spec in tree_paths(specs)}
        for path, leaf in tree_paths(self.base):
            _check_spec(mesh, flat.get(path, P()), leaf, path)
        if flat.keys() != dict(tree_paths(self.base)).keys():
            raise InputError(
                "expected a partition spec for every leaf of the base, got another tree: build it from the base's axes"
            )
        placed = self.replace(mesh=mesh, specs=tuple(flat.items()))

        def put(x: PyTree, spec: PyTree) -> PyTree:
            shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), spec, is_leaf=lambda s: isinstance(s, P))
            return jax.device_put(x, shardings)

        parts = {path: put(self._parts(path), placed._parts_specs(path)) for path in flat}
        base = jax.tree_util.tree_map_with_path(lambda path, _: parts[leaf_path(path)].base, self.base)
        return placed.replace(
            base=base,
            experts={path: parts[path].experts for path in self.experts},
            updates={path: parts[path].updates for path in self.updates},
            bases={path: parts[path].bases[0] for path in self.bases},
            remainders={path: parts[path].bases[-1] for path in self.remainders},
        )

    def task_vector(self, k: int) -> dict[str, Array]:
        """τ_k of every leaf that experts change, multiplied out, float32, by path."""
        genome = self.expert(k)
        leaves = dict(tree_paths(self.base))
        found = {}
        for path in leaves:
            parts = self._parts(path)
            if parts.experts:
                found[path] = parts.experts[k].astype(jnp.float32) - leaves[path].astype(jnp.float32)
            elif parts.updates:
                update = parts.updates[k]
                found[path] = jnp.zeros(leaves[path].shape, jnp.float32) if update is None else update
            elif parts.bases:
                nothing = parts._replace(base=jnp.zeros(leaves[path].shape, jnp.float32))
                found[path] = express_leaves([nothing], genome.mixing, [self._coefficients(path, genome)], [None])[0]
        return found

    def expert(self, k: int | Int[Array, ""]) -> ExpertGenome:
        """The genome of expert k: a = e_k, d = 0."""
        check_expert(k, self.num_experts)
        mixing = jax.nn.one_hot(k, self.num_experts, dtype=jnp.float32)
        return ExpertGenome(mixing, {path: jnp.zeros_like(b.s) for path, b in self.bases.items()})

    def crossover(self, parent1: ExpertGenome, parent2: ExpertGenome, omega: Float[Array, 2]) -> ExpertGenome:
        """Linear crossover; equal to crossing the weights."""
        return crossover.linear_crossover(parent1, parent2, omega)

    def mutate(self, key: PRNGKeyArray, genome: ExpertGenome, active: int | Int[Array, ""]) -> ExpertGenome:
        """SVD mutation with the decomposition of the active task's expert: d_active += w, w ~ U[0, w_max]^r.

        Args:
            key: consumed; a typed PRNG key.
            genome: of the child.
            active: index i of the active task.

        Raises:
            InputError: there is no such task.
        """
        check_expert(active, self.num_experts)

        def add(path: str, d: Array) -> Array:
            w = mutation.mutation_coefficients(key, path, d.shape[1:-1], d.shape[-1], self.w_max)
            return d.at[active].add(w)

        return genome._replace(mutation={path: add(path, d) for path, d in genome.mutation.items()})

    def express(self, genome: ExpertGenome, out: Params | None = None) -> Params:
        """The weights θ of a genome: float32 sums, cast once to the dtypes of the base; one jitted program.

        Args:
            genome: one individual; for a population see :meth:`express_population`.
            out: weights that are not needed any more, as expressed before: their buffers are written over.

        Raises:
            InputError: ``out`` is not like the base, lies elsewhere, or is still needed by this space.
        """
        if out is None:
            return _express(self, genome)
        self._check_out(out)
        return _express_into(self, genome, out)

    def express_population(self, genomes: ExpertGenome) -> Params:
        """The weights of several genomes.

        Args:
            genomes: with a leading axis of individuals; on a mesh it is spread over the axis ``"population"``.

        Returns:
            Leaves ``[individual, *shape]``.

        Raises:
            InputError: the mesh has no such axis, or it does not divide the individuals.
        """
        if self.mesh is not None:
            count, size = genomes.mixing.shape[0], dict(self.mesh.shape).get("population")
            if size is None or count % size:
                raise InputError(
                    f"expected a mesh with an axis 'population' that divides {count} individuals, got {dict(self.mesh.shape)}: "
                    "express one at a time, or choose another mesh"
                )
        return _express_population(self, genomes)

    def express_mixed(self, genomes: ExpertGenome) -> Params:
        """The weights of several genomes of low-rank experts over the base that they share: nothing is multiplied out.

        Args:
            genomes: with a leading axis of individuals.

        Returns:
            The base, with a :class:`~cycleqd_jax.types.MixedMatrix` for every stacked matrix that experts change.

        Raises:
            InputError: an expert changes a leaf by more than a low rank, or a leaf that is not a stack of matrices.
        """
        for path, leaf in tree_paths(self.base):
            changed = path in self.bases or path in self.remainders
            if path in self.experts or path in self.updates or (changed and jnp.ndim(leaf) != 3):
                raise InputError(
                    f"expected experts that change stacked matrices by a low rank, got leaf {path!r}, which some change "
                    "otherwise: express the individuals one by one"
                )
        return _express_mixed(self, genomes)

    def _check_out(self, out: Params) -> None:
        """Refuses what can't be written over: XLA would crash, or leave it alone without a word."""
        check_same_shapes(out, self.base, "the weights to write over")
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((out, self))):
            return
        held = {pointer for leaf in jax.tree.leaves(self) for pointer in _pointers(leaf)}
        for (path, leaf), base in zip(tree_paths(out), jax.tree.leaves(self.base), strict=True):
            if not isinstance(leaf, jax.Array) or leaf.dtype != base.dtype or leaf.is_deleted():
                raise InputError(f"the weights to write over: leaf {path!r} is not a live jax.Array of dtype {base.dtype}.")
            if isinstance(base, jax.Array) and not leaf.sharding.is_equivalent_to(base.sharding, leaf.ndim):
                raise InputError(
                    f"the weights to write over: leaf {path!r} lies elsewhere than the base: pass expressed weights."
                )
            pointers = _pointers(leaf)
            if pointers & held:
                raise InputError(f"the weights to write over: leaf {path!r} is still needed: pass weights that were expressed.")
            held |= pointers

    # What a leaf is made of, and where that lives

    def _parts(self, path: str) -> Parts:
        bases = (self.bases.get(path), self.remainders.get(path))
        return Parts(
            dict(tree_paths(self.base))[path],
            self.experts.get(path, ()),
            self.updates.get(path, ()),
            tuple(basis for basis in bases if basis is not None),
        )

    def _coefficients(self, path: str, genome: ExpertGenome) -> tuple[Array, ...]:
        """The coefficients c of every basis of a leaf: d, and a where the basis is the experts' change itself."""
        itself = path not in self.experts and path not in self.updates

        def coefficients(basis: Basis, d: Array | None) -> Array:
            mixing = genome.mixing.reshape(-1, *(1,) * (basis.s.ndim - 1))
            c = jnp.zeros(basis.s.shape, jnp.float32) if d is None else d
            return c + mixing if itself else c

        pairs = ((self.bases.get(path), genome.mutation.get(path)), (self.remainders.get(path), None))
        return tuple(coefficients(basis, d) for basis, d in pairs if basis is not None)

    def _parts_specs(self, path: str) -> Any:
        """The :meth:`_parts` of a leaf with partition specs in the place of arrays."""
        spec = dict(self.specs)[path]
        parts = self._parts(path)
        axes = (*spec, *(None,) * (parts.base.ndim - len(spec)))
        *stack, m, n = axes if len(axes) > 1 else (None, None)
        basis: Any = (P(*stack, m, None, None), P(None, *stack, None), P(*stack, None, None, n))
        updates: Any = tuple(None if update is None else spec for update in parts.updates)
        places: Any = (spec, (spec,) * len(parts.experts), updates, (Basis(*basis),) * len(parts.bases))
        return Parts(*places)

    def _mixed(self, path: str, leaf: Array, genomes: ExpertGenome) -> Array | MixedMatrix:
        parts = self._parts(path)
        if not parts.bases:
            return leaf
        found = jax.vmap(lambda genome: self._coefficients(path, genome))(genomes)  # [individual, K, layer, r] for each basis

        def flat(basis: Basis, c: Array) -> tuple[Array, Array, Array]:
            (layers, m), n = basis.u.shape[:2], basis.vt.shape[-1]
            scaled = jnp.moveaxis(c * basis.s, 2, 0)  # [layer, individual, K, r]
            return basis.u.reshape(layers, m, -1), basis.vt.reshape(layers, -1, n), scaled.reshape(*scaled.shape[:2], -1)

        u, vt, c = zip(*(flat(basis, c) for basis, c in zip(parts.bases, found, strict=True)), strict=True)
        return MixedMatrix(leaf, jnp.concatenate(u, 2), jnp.concatenate(vt, 1), jnp.concatenate(c, 2))

    def _express(self, genome: ExpertGenome, outs: Sequence[Array | None]) -> list[Array]:
        paths = [path for path, _ in tree_paths(self.base)]
        parts, coefficients = [self._parts(path) for path in paths], [self._coefficients(path, genome) for path in paths]
        if self.mesh is None:
            return express_leaves(parts, genome.mixing, coefficients, outs)
        # Each device makes its own part of a leaf of its own parts: what is split is never a summed axis.
        specs = [self._parts_specs(path) for path in paths]
        local = jax.shard_map(
            express_leaves,
            mesh=self.mesh,
            in_specs=(specs, P(), [tuple(b.s for b in x.bases) for x in specs], [x.base for x in specs]),
            out_specs=[x.base for x in specs],
            check_vma=False,  # a vmapped population is one more mesh axis, which the check does not know of
        )
        made = [jnp.zeros_like(x.base) if out is None else out for x, out in zip(parts, outs, strict=True)]
        return local(parts, genome.mixing, coefficients, made)


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


@jax.jit
def _express_population(space: ExpertSpace, genomes: ExpertGenome) -> Params:
    name = None if space.mesh is None else "population"
    return jax.vmap(functools.partial(_express_all, space), spmd_axis_name=name)(genomes)


def _shape(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32)


def _pointers(leaf: Any) -> set[int]:
    """Where an array lies on its devices."""
    if not isinstance(leaf, jax.Array) or leaf.size == 0 or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return set()
    return {shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards}


def _check_spec(mesh: Mesh, spec: P, leaf: Array, path: str) -> None:
    if len(spec) > leaf.ndim:
        raise InputError(f"{path!r} has {leaf.ndim} dimensions, but its partition spec has {len(spec)}: {spec}.")
    for size, axes in zip(leaf.shape, spec, strict=False):
        names = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
        for name in names:
            if name not in mesh.shape:
                raise InputError(
                    f"{path!r} is split over {name!r}, which the mesh {dict(mesh.shape)} lacks: name one of its axes."
                )
        if size % math.prod(mesh.shape[name] for name in names):
            raise InputError(
                f"{path!r} has a dimension of {size}, which {axes!r} of the mesh {dict(mesh.shape)} does not divide."
            )


@jax.jit
def _leading(tau: Array, u: Array, vt: Array) -> Array:
    return jnp.einsum("...m,...mn,...n->...", u, tau, vt, precision=jax.lax.Precision.HIGHEST)


def _check_bases(
    bases: Mapping[str, Basis], base: Params, experts: Sequence[Params | Adapter], wanted: Sequence[str], rank: int | None
) -> None:
    """Refuses bases that are not of these leaves, this rank and these experts: s_1 must be u_1ᵀ τ v_1 of every matrix."""
    leaves = dict(tree_paths(base))
    if bases.keys() != set(wanted):
        odd = sorted(bases.keys() ^ set(wanted))[0]
        raise InputError(f"the bases are those of other leaves than experts change here: {odd!r} is in one of them alone.")
    for path, basis in bases.items():
        *stack, m, n = leaves[path].shape
        r = min(m, n) if rank is None else min(rank, m, n)
        expected = ((*stack, m, len(experts), r), (len(experts), *stack, r), (*stack, len(experts), r, n))
        if tuple(tuple(x.shape) for x in basis) != expected or {np.dtype(x.dtype) for x in basis} != {np.dtype(np.float32)}:
            raise InputError(
                f"the basis of {path!r} has the shapes {[tuple(x.shape) for x in basis]}, but {len(experts)} experts at rank "
                f"{r} need {list(expected)} in float32: it is the basis of other experts or another rank."
            )
        for k, (change, whole) in enumerate(changes_of(path, experts)):
            u, s, vt = basis.of(k)
            tau = change_at(leaves[path], change, (), whole)
            error = np.abs(np.asarray(_leading(tau, u[..., 0], vt[..., 0, :])) - np.asarray(s[..., 0]))
            finite = all(bool(jnp.isfinite(x).all()) for x in (u, s, vt))
            if not finite or not np.all(error <= 1e-3 * np.asarray(s[..., 0])):
                raise InputError(
                    f"the basis of {path!r} is not that of expert {k}, or not finite: decompose these experts anew."
                )
