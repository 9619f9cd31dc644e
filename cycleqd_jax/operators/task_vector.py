"""Task vectors τ = θ − θ_base, in float32 for weights of any dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cycleqd_jax.operators.svd import is_matrix
from cycleqd_jax.types import Array, InputError, Params, PyTree, tree_paths

__all__ = ["apply_task_vector", "check_same_shapes", "matrix_norm", "relative_norm", "task_vector"]


def check_same_shapes(tree: PyTree, like: PyTree, what: str = "params", of: str = "base") -> None:
    """Checks that a tree has the leaves of another one.

    Args:
        tree: the tree to check.
        like: the tree to compare with (arrays or ``ShapeDtypeStruct``).
        what: the name of ``tree`` in the error.
        of: the name of ``like`` in the error.

    Raises:
        InputError: a leaf is missing, unexpected, of another shape or not floating point, or containers differ. The message
            names the first such leaf.
    """
    got, expected = dict(tree_paths(tree)), dict(tree_paths(like))
    for path in {**expected, **got}:
        if path not in got:
            raise InputError(
                f"expected the leaf {path!r} of the {of}, got no such leaf in {what}; use trees of one architecture"
            )
        if path not in expected:
            raise InputError(
                f"expected the leaves of the {of}, got another leaf {path!r} in {what}; use trees of one architecture"
            )
        if got[path].shape != expected[path].shape:
            raise InputError(
                f"expected shape {expected[path].shape} of the {of} for leaf {path!r}, got {got[path].shape} in {what}; use "
                "trees of one architecture and vocabulary"
            )
        if not jnp.issubdtype(got[path].dtype, jnp.floating):
            raise InputError(
                f"expected floating-point leaves, got dtype {got[path].dtype} for leaf {path!r} in {what}; pass only the "
                "weights, without counters and random states (of a Flax NNX model, nnx.state(model, nnx.Param))"
            )
    if jax.tree.structure(tree) != jax.tree.structure(like):
        raise InputError(
            f"expected the containers {jax.tree.structure(like)} of the {of}, got {jax.tree.structure(tree)} in {what}; use "
            "the same containers"
        )


@jax.jit
def _subtract(params: Params, base: Params) -> Params:
    return jax.tree.map(lambda p, b: p.astype(jnp.float32) - b.astype(jnp.float32), params, base)


def task_vector(params: Params, base: Params) -> PyTree[Array]:
    """τ = θ − θ_base, leaf by leaf.

    The subtraction is in float32; the reference code subtracts in bfloat16, which loses most of a small τ.

    Args:
        params: weights θ of a fine-tuned model.
        base: weights θ_base of the model that was fine-tuned, the same tree of shapes.

    Returns:
        A tree like ``base`` with float32 leaves.

    Raises:
        InputError: the trees differ; the message names the leaf.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import task_vector
    >>> task_vector({"w": jnp.array([3.0, 5.0])}, {"w": jnp.array([1.0, 1.0])})["w"].tolist()
    [2.0, 4.0]
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
    """The Frobenius norm over all matrices of a tree with at least one matrix."""
    return float(_norm(_matrices(tree)))


def relative_norm(params: Params, base: Params) -> float:
    """‖θ − θ_base‖ / ‖θ_base‖ over all matrices: a few hundredths for a fine-tuning, about √2 for an unrelated model.

    The gains of norms are left out, because they are similar in all models.

    Args:
        params: weights θ.
        base: weights θ_base, the same tree of shapes, with at least one matrix.

    Raises:
        InputError: the trees differ; the message names the leaf.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import relative_norm
    >>> relative_norm({"w": 3 * jnp.eye(2)}, {"w": 2 * jnp.eye(2)})
    0.5
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

    Raises:
        InputError: the trees differ, and the message names the leaf; or there are several factors.

    >>> import jax.numpy as jnp
    >>> from cycleqd_jax.operators import apply_task_vector
    >>> apply_task_vector({"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([2.0, 4.0])}, 0.5)["w"].tolist()
    [2.0, 3.0]
    """
    check_same_shapes(tau, base, "the task vector")
    scale = jnp.asarray(scale, jnp.float32)
    if scale.ndim:
        raise InputError(f"expected one factor for the whole model, got shape {scale.shape} in scale; pass a number")
    return jax.tree.map(lambda b, t: (b.astype(jnp.float32) + scale * t).astype(b.dtype), base, tau)
