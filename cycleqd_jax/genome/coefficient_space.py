"""The space of merging coefficients: one weight for each expert, or for each expert and group of layers.

With K experts and G groups of layers a model is

    θ = θ_base + Σ_k c_gk τ_k    for the weights of a layer in group g
    θ = θ_base + Σ_k c̄_k τ_k     for all other weights (embedding, last norm, head), c̄ the mean of c over the groups

so a genome has G K numbers. CMA-ES, NSGA-II and random search work on them. The space needs no decomposition of the experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cycleqd_jax.genome.expert_space import ExpertSpace
from cycleqd_jax.genome.experts import Index, check_expert
from cycleqd_jax.genome.express import mixed_leaf
from cycleqd_jax.genome.placement import check_out, express_placed
from cycleqd_jax.operators import crossover
from cycleqd_jax.operators.svd import HIGHEST
from cycleqd_jax.types import Adapter, Array, Float, InputError, MixedMatrix, Params, PRNGKeyArray, PyTree, tree_paths

__all__ = ["CoefficientGenome", "CoefficientSpace", "check_groups"]

_LAYERS = "layers/"
"""Prefix of the paths of leaves that stack the weights of all layers on their first axis."""


class CoefficientGenome(NamedTuple):
    """The merging coefficients of one model.

    Attributes:
        coefficients: c, ``[G, K]``: a row for each group of layers, a column for each expert.
    """

    coefficients: Float[Array, "g k"]


class CoefficientSpace(flax.struct.PyTreeNode):
    """Genomes as merging coefficients over K experts, for the whole model or for each group of layers; a pytree.

    Build it with :meth:`from_experts`. Layer l of L belongs to group ⌊l G / L⌋, so groups are runs of neighbouring layers.
    Leaves whose path begins with ``layers/`` stack the layers on their first axis. Other leaves get the mean over the groups.

    Attributes:
        experts: base and experts.
        groups: the number G of groups.
        sigma: standard deviation of the Gaussian noise that :meth:`mutate` adds to every coefficient.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.genome import CoefficientGenome, CoefficientSpace
    >>> base = {"layers": {"w": jnp.ones((2, 3, 3))}}
    >>> space = CoefficientSpace.from_experts(base, [{"layers": {"w": x * jnp.ones((2, 3, 3))}} for x in (2, 5)], groups=2)
    >>> genome = CoefficientGenome(jnp.array([[1.0, 0.0], [0.5, 0.5]]))
    >>> space.express(genome)["layers"]["w"][:, 0, 0].tolist()
    [2.0, 3.5]
    """

    experts: ExpertSpace
    groups: int = flax.struct.field(pytree_node=False, default=1)
    sigma: float = flax.struct.field(pytree_node=False, default=0.1)

    @classmethod
    def from_experts(
        cls,
        base: Params,
        experts: Sequence[Params | Adapter],
        *,
        groups: int = 1,
        sigma: float = 0.1,
        densify: bool = False,
    ) -> CoefficientSpace:
        """The space spanned by fine-tuned experts that share a base.

        Args:
            base: weights θ_base.
            experts: one per task, in task order: its weights, or an adapter, whose low-rank updates are not multiplied out.
            groups: the number G of groups of layers; 1 mixes the whole model with the same coefficients.
            sigma: see the class.
            densify: see :meth:`ExpertSpace.from_experts`.

        Raises:
            InputError: see :meth:`ExpertSpace.from_experts`; also for fewer groups than one, more groups than layers, several
                groups of a model without leaves below ``layers/`` or with a list of layers there, or a negative ``sigma``.
        """
        if not 0 <= sigma < math.inf:
            raise InputError(f"expected sigma to be zero or positive, got {sigma} in CoefficientSpace; correct it")
        if groups != 1:
            check_groups(groups, _num_layers(base), "groups")
        space = ExpertSpace.from_experts(base, experts, w_max=0.0, predicate=lambda path, leaf: False, densify=densify)
        return cls(space, groups=groups, sigma=sigma)

    @property
    def num_experts(self) -> int:
        """The number K of experts."""
        return self.experts.num_experts

    def shard(self, mesh: Mesh, specs: PyTree[P | NamedSharding]) -> CoefficientSpace:
        """The same space with its arrays sharded over a mesh; see :meth:`ExpertSpace.shard`.

        Raises:
            InputError: see :meth:`ExpertSpace.shard`; also where there are several groups, and a spec splits the axis of the
                layers.
        """
        placed = self.experts.shard(mesh, specs)
        for path, spec in placed.specs:
            if self.groups > 1 and path.startswith(_LAYERS) and len(spec) and spec[0] is not None:
                raise InputError(
                    f"expected layers on every device with {self.groups} groups of layers, got the spec {spec} for {path!r}; "
                    "split another axis"
                )
        return self.replace(experts=placed)

    def without_weights(self) -> CoefficientSpace:
        """A space with the same genomes that holds no weights; see :meth:`ExpertSpace.without_weights`."""
        return self.replace(experts=self.experts.without_weights())

    def expert(self, k: Index) -> CoefficientGenome:
        """The genome of expert k: c_gk = 1 in every group."""
        check_expert(k, self.num_experts)
        one = jax.nn.one_hot(k, self.num_experts, dtype=jnp.float32)
        return CoefficientGenome(jnp.broadcast_to(one[None], (self.groups, self.num_experts)))

    def crossover(self, parent1: CoefficientGenome, parent2: CoefficientGenome, omega: Float[Array, 2]) -> CoefficientGenome:
        """Linear crossover of coefficients, which equals linear crossover of the weights."""
        return crossover.linear_crossover(parent1, parent2, omega)

    def mutate(self, key: PRNGKeyArray, genome: CoefficientGenome, active: Index) -> CoefficientGenome:
        """Adds Gaussian noise to every coefficient; the active task has no effect.

        Args:
            key: consumed; a typed PRNG key.
            genome: the genome of the child.
            active: unused.
        """
        del active
        c = genome.coefficients
        return CoefficientGenome(c + self.sigma * jax.random.normal(key, c.shape, c.dtype))

    def express(self, genome: CoefficientGenome, out: PyTree | None = None) -> Params:
        """The weights θ of a genome: summed in float32 and cast once to the dtypes of the base, in one jitted program.

        Args:
            genome: one individual.
            out: expressed weights that are not needed any more; their buffers are overwritten.

        Raises:
            InputError: ``out`` is not like the base, lies elsewhere, or is still needed by this space; or the space holds no
                weights.
        """
        self.experts.check_weights()
        if out is None:
            return _express(self, genome)
        check_out(out, self.experts.base, self)
        return _express_into(self, genome, out)

    def express_mixed(self, genomes: CoefficientGenome) -> Params:
        """The weights of several genomes of low-rank experts over one shared base; see :meth:`ExpertSpace.express_mixed`.

        Args:
            genomes: genomes with a leading axis of individuals.

        Raises:
            InputError: see :meth:`ExpertSpace.check_mixed`.
        """
        self.experts.check_mixed()
        return _express_mixed(self, genomes)

    def coefficient_gradient(self, gradient: PyTree[Array]) -> CoefficientGenome:
        """∂L/∂c of a loss L, from its gradient with respect to the weights: the products ⟨∂L/∂θ, τ_k⟩, group by group.

        The weights are affine in the coefficients, so nothing else is needed, and no τ_k is held in memory. To differentiate
        :meth:`express` gives the same to rounding, and takes more memory.

        Args:
            gradient: ∂L/∂θ, a tree like the base. Products are summed in float32.

        Raises:
            InputError: the space holds no weights.

        >>> import jax.numpy as jnp
        >>> from cycleqd_jax.genome import CoefficientSpace
        >>> experts = [{"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([0.0, 1.0])}]
        >>> space = CoefficientSpace.from_experts({"w": jnp.zeros(2)}, experts)
        >>> space.coefficient_gradient({"w": jnp.array([1.0, 3.0])}).coefficients.tolist()
        [[7.0, 3.0]]
        """
        self.experts.check_weights()
        total = jnp.zeros((self.groups, self.num_experts), jnp.float32)
        for path, leaf in tree_paths(gradient):
            products = self._products(path, leaf)
            if products.ndim == 2:  # [K, layer]
                group = jnp.arange(products.shape[1]) * self.groups // products.shape[1]
                total += jax.ops.segment_sum(products.T, group, num_segments=self.groups)
            else:  # the weights depend on the mean over the groups
                total += (products / self.groups)[None]
        return CoefficientGenome(total)

    def _products(self, path: str, gradient: Array) -> Float[Array, "k ..."]:
        """⟨∂L/∂θ, τ_k⟩ of one leaf: ``[K]``, or ``[K, layer]`` for a stack of layers."""
        parts, wide = self.experts.parts(path), gradient.astype(jnp.float32)
        stacked = path.startswith(_LAYERS)
        axes = tuple(range(int(stacked), wide.ndim))
        nothing = jnp.zeros(wide.shape[: int(stacked)], jnp.float32)
        found = jnp.stack([nothing] * self.num_experts)
        if parts.experts:
            base = parts.base.astype(jnp.float32)
            found += jnp.stack([jnp.sum(wide * (theta.astype(jnp.float32) - base), axes) for theta in parts.experts])
        if parts.updates:
            found += jnp.stack([nothing if tau is None else jnp.sum(wide * tau, axes) for tau in parts.updates])
        for basis in parts.bases:  # τ_k = U_k diag(s_k) V_kᵀ
            right = jnp.einsum("...mn,...krn->...mkr", wide, jnp.asarray(basis.vt, jnp.float32), precision=HIGHEST)
            along = jnp.moveaxis(jnp.sum(right * basis.u.astype(jnp.float32), axis=-3), -2, 0) * basis.s  # [K, *stack, r]
            found += jnp.sum(along, axis=tuple(range(1 + int(stacked), along.ndim)))
        return found

    def _mixing(self, path: str, genome: CoefficientGenome, leaf: Array) -> Float[Array, "k ..."]:
        """The coefficients of one leaf: ``[K]``, or for several groups and a stack of layers ``[K, layer, 1, …]``."""
        c = genome.coefficients
        if self.groups == 1:
            return c[0]
        if not path.startswith(_LAYERS):
            return jnp.mean(c, axis=0)
        layers = leaf.shape[0]
        group = jnp.arange(layers) * self.groups // layers
        return c[group].T.reshape(self.num_experts, layers, *(1,) * (leaf.ndim - 1))

    def _coefficients(self, path: str, genome: CoefficientGenome, leaf: Array) -> tuple[Array, ...]:
        """The coefficients of the low-rank updates of one leaf, ``[K, *stack, r]`` for each basis."""
        bases, mixing = self.experts.parts(path).bases, self._mixing(path, genome, leaf)
        scales = [basis.s for basis in bases]
        if mixing.ndim == 1:
            return tuple(jnp.broadcast_to(mixing.reshape(-1, *(1,) * (s.ndim - 1)), s.shape) for s in scales)
        per_layer = mixing.reshape(mixing.shape[:2])
        return tuple(jnp.broadcast_to(per_layer.reshape(*per_layer.shape, *(1,) * (s.ndim - 2)), s.shape) for s in scales)

    def _express_all(self, genome: CoefficientGenome, out: Params | None = None) -> Params:
        space = self.experts
        leaves, tree = jax.tree.flatten(space.base)
        paths = [path for path, _ in tree_paths(space.base)]
        outs = [None] * len(leaves) if out is None else jax.tree.leaves(out)
        specs = dict(space.specs)
        found: list[Array | None] = [None] * len(leaves)

        def express(members: list[int], mixing: Float[Array, "k ..."]) -> None:
            made = express_placed(
                [space.parts(paths[i]) for i in members],
                mixing,
                [self._coefficients(paths[i], genome, leaves[i]) for i in members],
                [outs[i] for i in members],
                space.mesh,
                None if space.mesh is None else [specs[paths[i]] for i in members],
            )
            for i, leaf in zip(members, made, strict=True):
                found[i] = leaf

        # Low-rank updates carry their coefficients, so that one loop over the layers computes all of their leaves. Other leaves
        # are sums, each with mixing coefficients of its own shape.
        by_factors = [i for i, path in enumerate(paths) if space.parts(path).bases]
        if by_factors:
            express(by_factors, jnp.zeros(self.num_experts, jnp.float32))
        for i in range(len(leaves)):
            if i not in by_factors:
                express([i], self._mixing(paths[i], genome, leaves[i]))
        return tree.unflatten(found)


def check_groups(groups: int, layers: int, key: str = "search.groups") -> None:
    """Checks the number of groups of layers.

    Args:
        groups: the number of groups.
        layers: the number of layers of the model.
        key: the key of the config that gives the number.

    Raises:
        InputError: it is below one, or above the number of layers.
    """
    if not 1 <= groups <= layers:
        raise InputError(
            f"expected 1 to {layers} groups of layers, as many as the model has layers, got {groups} in {key}; "
            "correct the number"
        )


def _num_layers(base: Params) -> int:
    for path, _ in tree_paths(base):
        if path.startswith(_LAYERS) and path.split("/")[1].isdecimal():
            raise InputError(
                f"expected leaves below {_LAYERS!r} that stack the layers on their first axis, got the leaf {path!r} of one "
                "layer in the base; stack the layers, or use one group"
            )
    counts = {leaf.shape[0] for path, leaf in tree_paths(base) if path.startswith(_LAYERS) and leaf.ndim > 0}
    if len(counts) != 1:
        raise InputError(
            f"expected leaves below {_LAYERS!r} that stack the same number of layers, got {sorted(counts) or 'none'} in the "
            "base; use one group"
        )
    return counts.pop()


@jax.jit
def _express(space: CoefficientSpace, genome: CoefficientGenome) -> Params:
    return space._express_all(genome)


_express_into = jax.jit(lambda space, genome, out: space._express_all(genome, out), donate_argnames="out", keep_unused=True)


@jax.jit
def _express_mixed(space: CoefficientSpace, genomes: CoefficientGenome) -> Params:
    def leaf(path: str, base: Array) -> Array | MixedMatrix:
        found = jax.vmap(lambda genome: space._coefficients(path, genome, base))(genomes)
        return mixed_leaf(base, space.experts.parts(path).bases, found)

    leaves: list[Any] = [leaf(path, base) for path, base in tree_paths(space.experts.base)]
    return jax.tree.unflatten(jax.tree.structure(space.experts.base), leaves)
