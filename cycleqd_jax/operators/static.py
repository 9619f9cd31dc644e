"""Static merges of models: uniform, linear, task arithmetic, TIES, DARE, DARE-TIES and SLERP, for any pytree.

The definitions are those of mergekit, and so are the results on the same weights. One leaf is merged at a time, so memory
beside inputs and output is that of one leaf. A leaf may stack several *tensors* along its leading axes, such as those of the
layers. A tensor has the last two axes of a matrix, and the last axis of every other leaf. Largest entries, norms and angles are
computed for each tensor separately.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer

from cycleqd_jax.operators.by_leaf import (
    PerExpert,
    Rescale,
    by_path,
    check_experts,
    entries,
    fill,
    leaf_of,
    mix,
    stack_axes,
    value_at,
)
from cycleqd_jax.operators.mix import linear_leaf, slerp_leaf
from cycleqd_jax.types import Adapter, AnyArray, InputError, Params, PRNGKeyArray, PyTree, tree_paths

__all__ = [
    "STATIC_MERGES",
    "dare",
    "dare_ties",
    "linear",
    "slerp",
    "static_merge",
    "task_arithmetic",
    "ties",
    "uniform",
]

STATIC_MERGES = ("uniform", "task_arithmetic", "ties", "dare", "dare_ties", "slerp")
"""The methods of :func:`static_merge`."""


def uniform(base: Params, experts: Sequence[Params | Adapter]) -> Params:
    """The mean of the experts: θ_base + Σ_k τ_k / K.

    Args:
        base: weights θ_base.
        experts: weights θ_k, or adapters of the base.

    Returns:
        Weights with the dtypes of ``base``.

    Raises:
        InputError: there is no expert, or an expert differs from the base in its leaves or shapes.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import uniform
    >>> uniform({"w": jnp.ones(2)}, [{"w": jnp.array([3.0, 1.0])}, {"w": jnp.array([1.0, 5.0])}])["w"].tolist()
    [2.0, 3.0]
    """
    return mix(base, experts, weights=1.0, scale=1.0, normalize=True, elect=False)


def linear(
    models: Sequence[Params],
    weights: PerExpert = 1.0,
    *,
    normalize: bool = True,
    stack: Callable[[str, AnyArray], int] = stack_axes,
) -> Params:
    """Σ_k w_k θ_k / Σ_k w_k, without a base (model soups).

    Args:
        models: weights θ_k, of one architecture.
        weights: w_k.
        normalize: divide by the sum of the weights.
        stack: the number of leading axes of a leaf that stack tensors, each of which may have a weight of its own.

    Returns:
        Weights with the dtypes of the first model.

    Raises:
        InputError: there is no model, models differ, or weights that are to be normalised sum to zero.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import linear
    >>> linear([{"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([4.0, 8.0])}], [2.0, 1.0])["w"].tolist()
    [2.0, 4.0]
    """
    if not models:
        raise InputError("expected at least one model to merge, got none; pass the models")
    check_experts(models[0], models)
    values = entries(weights, len(models), "weight")
    found = [dict(tree_paths(model)) for model in models]
    leaves = []
    for path, leaf in tree_paths(models[0]):
        shape = tuple(leaf.shape[: stack(path, leaf)])
        each = [fill(value_at(weight, path), shape) for weight in values]
        if normalize and not isinstance(each[0], Tracer) and bool(jnp.any(sum(each, jnp.zeros(shape)) == 0)):
            raise InputError(f"expected weights with a sum other than zero, got zero for the leaf {path!r}; correct them")
        leaves.append(linear_leaf([model[path] for model in found], each, normalize=normalize))
    return jax.tree.unflatten(jax.tree.structure(models[0]), leaves)


def task_arithmetic(
    base: Params,
    experts: Sequence[Params | Adapter],
    weights: PerExpert = 1.0,
    *,
    scale: PyTree = 0.4,
    normalize: bool = False,
    stack: Callable[[str, AnyArray], int] = stack_axes,
) -> Params:
    """Task arithmetic: θ_base + λ Σ_k w_k τ_k (Ilharco et al., 2023).

    Args:
        base: weights θ_base.
        experts: weights θ_k, or adapters of the base.
        weights: w_k.
        scale: λ, a number or a tree like the base. 0.4 is the value for the case without validation data.
        normalize: divide the sum by that of the weights.
        stack: the number of leading axes of a leaf that stack tensors, each of which may have a weight of its own.

    Returns:
        Weights with the dtypes of ``base``.

    Raises:
        InputError: see :func:`uniform`; also if the number of weights differs from that of the experts.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import task_arithmetic
    >>> task_arithmetic({"w": jnp.ones(2)}, [{"w": jnp.array([3.0, 1.0])}], scale=0.5)["w"].tolist()
    [2.0, 1.0]
    """
    return mix(base, experts, weights=weights, scale=scale, normalize=normalize, elect=False, stack=stack)


def ties(
    base: Params,
    experts: Sequence[Params | Adapter],
    weights: PerExpert = 1.0,
    densities: PerExpert = 0.2,
    *,
    scale: PyTree = 1.0,
    normalize: bool = True,
    rescale: Rescale = "none",
    stack: Callable[[str, AnyArray], int] = stack_axes,
) -> Params:
    """TIES: keeps the largest entries of every τ_k, elects a sign for each place, averages its entries (Yadav et al., 2023).

    Args:
        base: weights θ_base.
        experts: weights θ_k, or adapters of the base.
        weights: w_k.
        densities: the share of entries of every tensor that are kept. Of equal magnitudes, the first ones are kept.
        scale: λ, a number or a tree like the base.
        normalize: average the entries of the elected sign; their sum otherwise.
        rescale: what kept entries are multiplied with.
        stack: the number of leading axes of a leaf that stack tensors.

    Returns:
        Weights with the dtypes of ``base``.

    Raises:
        InputError: see :func:`task_arithmetic`; also if a density is not above 0 and at most 1, or ``rescale`` is unknown.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import ties
    >>> experts = [{"w": jnp.array([4.0, 1.0, 0.0])}, {"w": jnp.array([2.0, -3.0, 0.0])}]
    >>> ties({"w": jnp.zeros(3)}, experts, densities=1.0)["w"].tolist()
    [3.0, -3.0, 0.0]
    """
    return mix(
        base, experts, weights=weights, scale=scale, normalize=normalize, elect=True, densities=densities, rescale=rescale,
        stack=stack,
    )  # fmt: skip


def dare(
    key: PRNGKeyArray,
    base: Params,
    experts: Sequence[Params | Adapter],
    weights: PerExpert = 1.0,
    densities: PerExpert = 0.1,
    *,
    scale: PyTree = 0.4,
    normalize: bool = False,
    rescale: Rescale = "density",
    masks: Sequence[PyTree] | None = None,
    elect: bool = False,
    stack: Callable[[str, AnyArray], int] = stack_axes,
) -> Params:
    """DARE: drops random entries of every τ_k, rescales the others, and adds them as task arithmetic does (Yu et al., 2024).

    Args:
        key: the key of the masks; consumed. The mask of a leaf does not depend on other leaves.
        base: weights θ_base.
        experts: weights θ_k, or adapters of the base.
        weights: w_k.
        densities: the probability that an entry is kept: 1 − p. The paper's p for fine-tuned language models is 0.9.
        scale: λ, a number or a tree like the base.
        normalize: divide the sum by that of the weights.
        rescale: what kept entries are multiplied with. The paper's is ``"density"``; mergekit's is ``"l1"``.
        masks: for every expert a tree of the kept entries, of bool, instead of random masks.
        elect: elect signs, as TIES does.
        stack: the number of leading axes of a leaf that stack tensors.

    Returns:
        Weights with the dtypes of ``base``.

    Raises:
        InputError: see :func:`ties`; also if a mask lacks a leaf, or has another shape than it.

    >>> import jax, jax.numpy as jnp
    >>> from cycleqd_jax.operators import dare
    >>> kept = [{"w": jnp.array([True, False])}]
    >>> dare(jax.random.key(0), {"w": jnp.zeros(2)}, [{"w": jnp.ones(2)}], densities=0.5, scale=1.0, masks=kept)["w"].tolist()
    [2.0, 0.0]
    """
    return mix(
        base, experts, weights=weights, scale=scale, normalize=normalize, elect=elect, densities=densities, key=key,
        masks=masks, rescale=rescale, stack=stack,
    )  # fmt: skip


def dare_ties(
    key: PRNGKeyArray,
    base: Params,
    experts: Sequence[Params | Adapter],
    weights: PerExpert = 1.0,
    densities: PerExpert = 0.1,
    *,
    scale: PyTree = 1.0,
    normalize: bool = True,
    rescale: Rescale = "density",
    masks: Sequence[PyTree] | None = None,
    stack: Callable[[str, AnyArray], int] = stack_axes,
) -> Params:
    """DARE-TIES: the random entries of DARE, and the election of signs of TIES.

    Args:
        key: see :func:`dare`, as the other arguments.
        base: weights θ_base.
        experts: weights θ_k, or adapters of the base.
        weights: w_k.
        densities: the probability that an entry is kept.
        scale: λ, a number or a tree like the base.
        normalize: average the entries of the elected sign, as TIES does; mergekit's default is False.
        rescale: what kept entries are multiplied with.
        masks: see :func:`dare`.
        stack: the number of leading axes of a leaf that stack tensors.

    Returns:
        Weights with the dtypes of ``base``.

    Raises:
        InputError: see :func:`dare`.

    >>> import jax, jax.numpy as jnp
    >>> from cycleqd_jax.operators import dare_ties
    >>> experts = [{"w": jnp.array([4.0, 1.0])}, {"w": jnp.array([2.0, -3.0])}]
    >>> dare_ties(jax.random.key(0), {"w": jnp.zeros(2)}, experts, densities=1.0)["w"].tolist()
    [3.0, -3.0]
    """
    return dare(
        key, base, experts, weights, densities, scale=scale, normalize=normalize, rescale=rescale, masks=masks, elect=True,
        stack=stack,
    )  # fmt: skip


def slerp(
    base: Params,
    experts: Sequence[Params | Adapter],
    t: PyTree = 0.5,
    *,
    stack: Callable[[str, AnyArray], int] = stack_axes,
) -> Params:
    """SLERP: interpolates two models on the sphere, tensor by tensor. Nearly collinear tensors are interpolated linearly.

    Args:
        base: weights θ_base, for adapters and dtypes. It has no other part in the result.
        experts: the model at t = 0, and that at t = 1.
        t: the position, a number or a tree like the base.
        stack: the number of leading axes of a leaf that stack tensors.

    Returns:
        Weights with the dtypes of ``base``.

    Raises:
        InputError: there are not two experts, or an expert differs from the base in its leaves or shapes.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import slerp
    >>> halfway = slerp({"w": jnp.zeros(2)}, [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}])
    >>> [round(x, 4) for x in halfway["w"].tolist()]
    [0.7071, 0.7071]
    """
    if len(experts) != 2:
        raise InputError(f"expected two experts for SLERP, got {len(experts)}; choose two")
    check_experts(base, experts)
    first, second = (by_path(expert) for expert in experts)
    leaves = []
    for path, leaf in tree_paths(base):
        place = fill(value_at(t, path), tuple(leaf.shape[: stack(path, leaf)]))
        leaves.append(slerp_leaf(leaf, leaf_of(first, path), leaf_of(second, path), place))
    return jax.tree.unflatten(jax.tree.structure(base), leaves)


def static_merge(method: str, base: Params, experts: Sequence[Params | Adapter], key: PRNGKeyArray | None = None) -> Params:
    """A merge by one of :data:`STATIC_MERGES`, with the defaults of its operator.

    Args:
        method: the name of the method.
        base: weights θ_base.
        experts: weights θ_k, or adapters of the base.
        key: the key of the masks of DARE; consumed.

    Returns:
        Weights with the dtypes of ``base``.

    Raises:
        InputError: the method is unknown, it needs a key and there is none, or see the operators.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import static_merge
    >>> static_merge("uniform", {"w": jnp.zeros(1)}, [{"w": jnp.ones(1)}])["w"].tolist()
    [1.0]
    """
    if method not in STATIC_MERGES:
        raise InputError(f"expected a method of {', '.join(STATIC_MERGES)}, got {method!r}; choose one of them")
    if method in ("dare", "dare_ties"):
        if key is None:
            raise InputError(f"expected a key for the random masks of {method}, got none; pass a PRNG key")
        return (dare if method == "dare" else dare_ties)(key, base, experts)
    plain = {"uniform": uniform, "task_arithmetic": task_arithmetic, "ties": ties, "slerp": slerp}
    return plain[method](base, experts)
