"""Task vectors τ = θ − θ_base, in float32 whatever the dtype of the weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cycleqd_jax.operators.svd import is_matrix
from cycleqd_jax.types import Array, InputError, Params, PyTree, tree_paths

__all__ = ["apply_task_vector", "check_same_shapes", "matrix_norm", "relative_norm", "task_vector"]


def check_same_shapes(tree: PyTree, like: PyTree, what: str = "params", of: str = "base") -> None:
    """Refuses a tree whose leaves are not those of another one.

    Args:
        tree: the tree to check.
        like: the tree it must resemble (arrays or ``ShapeDtypeStruct``).
        what: how to call ``tree`` in the error.
        of: how to call ``like`` in the error.

    Raises:
        InputError: naming the first leaf that is missing, unexpected, of another shape or not floating point; also for other
            containers.
    """
    got, expected = dict(tree_paths(tree)), dict(tree_paths(like))
    for path in {**expected, **got}:
        if path not in got:
            raise InputError(f"{what} lack the leaf {path!r} that the {of} has: they must share one architecture.")
        if path not in expected:
            raise InputError(f"{what} have the leaf {path!r} that the {of} lacks: they must share one architecture.")
        if got[path].shape != expected[path].shape:
            raise InputError(
                f"{what}: leaf {path!r} has shape {got[path].shape}, the {of} has {expected[path].shape}: they must share "
                "one architecture and vocabulary."
            )
        if not jnp.issubdtype(got[path].dtype, jnp.floating):
            raise InputError(
                f"{what}: leaf {path!r} has dtype {got[path].dtype}: pass the weights alone, without counters and random "
                "states (of a Flax NNX model, nnx.state(model, nnx.Param))."
            )
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise InputError(f"{what} have the leaves of the {of} in other containers: expected {jax.tree.structure(like)}.")


@jax.jit
def _subtract(params: Params, base: Params) -> Params:
    return jax.tree.map(lambda p, b: p.astype(jnp.float32) - b.astype(jnp.float32), params, base)


def task_vector(params: Params, base: Params) -> PyTree[Array]:
    """τ = θ − θ_base, leaf by leaf.

    The subtraction is done in float32; the reference code does it in bfloat16, which loses most of a small τ.

    Args:
        params: weights θ of a fine-tuned model.
        base: weights θ_base of the model it was tuned from, the same tree of shapes.

    Returns:
        A tree like ``base`` with float32 leaves.

    Raises:
        InputError: when the trees differ, naming the leaf.
    """
    check_same_shapes(params, base)
    return _subtract(params, base)


@jax.jit
def _norm(leaves: list[Array], others: list[Array] | None = None) -> Array:
    wide = [leaf.astype(jnp.float32) for leaf in leaves]
    if others is not None:
        wide = [x - y.astype(jnp.float32) for x, y in zip(wide, others, strict=True)]
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in wide))


def _matrices(tree: PyTree[Array]) -> list[Array]:
    return [leaf for path, leaf in tree_paths(tree) if is_matrix(path, leaf)]


def matrix_norm(tree: PyTree[Array]) -> float:
    """The Frobenius norm over all matrices of a tree, of which there is at least one."""
    return float(_norm(_matrices(tree)))


def relative_norm(params: Params, base: Params) -> float:
    """‖θ − θ_base‖ / ‖θ_base‖ over all matrices: a few hundredths for a fine-tuning, about √2 for an unrelated model.

    The gains of norms, which are alike in all models, are left out.

    Args:
        params: weights θ.
        base: weights θ_base, the same tree of shapes, with at least one matrix.

    Raises:
        InputError: when the trees differ, naming the leaf.
    """
    check_same_shapes(params, base)
    return float(_norm(_matrices(params), _matrices(base))) / matrix_norm(base)


@jax.jit
def apply_task_vector(base: Params, tau: PyTree[Array], scale: float | Array = 1.0) -> Params:
    """θ = θ_base + scale · τ, summed in float32, then cast once to the dtypes of the base.

    Args:
        base: weights θ_base.
        tau: a task vector, the same tree of shapes.
        scale: one factor for the whole model.

    Returns:
        Weights with the dtypes of ``base``.
    """
    scale = jnp.asarray(scale, jnp.float32)
    return jax.tree.map(lambda b, t: (b.astype(jnp.float32) + scale * t).astype(b.dtype), base, tau)
