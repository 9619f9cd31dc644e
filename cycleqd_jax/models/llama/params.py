"""The weights of a Llama-architecture decoder: a plain nested dict, declared once.

Layers are stacked on a leading axis, so that operators see one array per kind of matrix. Matrices are stored ``[in, out]`` and
used as ``x @ w`` (Hugging Face stores the transpose).

    embed_tokens            [vocab, embed]
    layers/input_norm       [layer, embed]
    layers/attn/q           [layer, embed, heads * head_dim]
    layers/attn/k, v        [layer, embed, kv_heads * head_dim]
    layers/attn/o           [layer, heads * head_dim, embed]
    layers/post_norm        [layer, embed]
    layers/mlp/gate, up     [layer, embed, hidden]
    layers/mlp/down         [layer, hidden, embed]
    norm                    [embed]
    lm_head                 [embed, vocab]      absent when the head is tied to embed_tokens

Some families have more weights (see :class:`LlamaConfig`): ``layers/attn/q_bias``, ``k_bias``, ``v_bias``, ``o_bias`` and
``layers/mlp/gate_bias``, ``up_bias``, ``down_bias`` ``[layer, out]``; ``layers/attn/q_norm``, ``k_norm`` ``[layer, head_dim]``.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.sharding import Axes
from cycleqd_jax.types import Array, Float, Int, MixedMatrix, Params, PRNGKeyArray, PyTree

__all__ = [
    "TransposedMatrix",
    "abstract_params",
    "init_params",
    "logical_axes",
    "num_individuals",
    "num_params",
    "select",
    "unstack",
]


class TransposedMatrix(NamedTuple):
    """A matrix of a single layer that is stored as ``[out, in]``.

    XLA's CPU backend packs the right operand of a product anew each time. So it is faster to multiply ``w @ x.T``, where the
    few rows of activations are packed, than ``x @ w``, where the matrix is: up to 1.4 times for 8 rows, and 1.1 times for 128.

    Attributes:
        w: ``[out, in]``.
    """

    w: Float[Array, "out in"]


class _Weight(NamedTuple):
    shape: tuple[int, ...]
    axes: Axes
    std: float | None  # None: the gain of a norm, which starts at one; 0: a bias


def _weights(config: LlamaConfig) -> dict[str, Any]:
    """The one declaration from which shapes, shardings and initial values are derived."""
    c, layers = config, config.num_hidden_layers
    heads, kv_heads = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    std = c.initializer_range
    # Layers that write to the residual stream start smaller, as in GPT-2: its variance must not grow with depth.
    std_out = std / math.sqrt(2 * layers)

    def norm() -> _Weight:
        return _Weight((layers, c.hidden_size), ("layer", "embed"), None)

    def head_norm() -> _Weight:
        return _Weight((layers, c.head_dim), ("layer", None), None)

    def matrix(rows: int, columns: int, axes: Axes, std: float) -> _Weight:
        return _Weight((layers, rows, columns), ("layer", *axes), std)

    tree: dict[str, Any] = {
        "embed_tokens": _Weight((c.vocab_size, c.hidden_size), ("vocab", "embed"), std),
        "layers": {
            "input_norm": norm(),
            "attn": {
                "q": matrix(c.hidden_size, heads, ("embed", "heads"), std),
                "k": matrix(c.hidden_size, kv_heads, ("embed", "kv_heads"), std),
                "v": matrix(c.hidden_size, kv_heads, ("embed", "kv_heads"), std),
                "o": matrix(heads, c.hidden_size, ("heads", "embed"), std_out),
            },
            "post_norm": norm(),
            "mlp": {
                "gate": matrix(c.hidden_size, c.intermediate_size, ("embed", "hidden"), std),
                "up": matrix(c.hidden_size, c.intermediate_size, ("embed", "hidden"), std),
                "down": matrix(c.intermediate_size, c.hidden_size, ("hidden", "embed"), std_out),
            },
        },
        "norm": _Weight((c.hidden_size,), ("embed",), None),
    }
    attn, mlp = tree["layers"]["attn"], tree["layers"]["mlp"]
    biased = [(attn, name) for name in "qkv" if c.attention_bias] + [(attn, "o")] * c.attention_out_bias
    biased += [(mlp, name) for name in ("gate", "up", "down") if c.mlp_bias]
    for group, name in biased:
        group[f"{name}_bias"] = _Weight((layers, group[name].shape[-1]), ("layer", group[name].axes[-1]), 0.0)
    if c.qk_norm:
        attn |= {"q_norm": head_norm(), "k_norm": head_norm()}
    if not c.tie_word_embeddings:
        tree["lm_head"] = _Weight((c.hidden_size, c.vocab_size), ("embed", "vocab"), std)
    return tree


def _is_weight(node: Any) -> bool:
    return isinstance(node, _Weight)


def init_params(config: LlamaConfig, key: PRNGKeyArray) -> Params:
    """Random weights: normal with ``initializer_range``, norms at one, biases at zero; drawn in float32 and cast once.

    Args:
        config: the model.
        key: consumed.

    Returns:
        The nested dict of the module's docstring.
    """
    leaves, treedef = jax.tree.flatten(_weights(config), is_leaf=_is_weight)

    def leaf(i: int, weight: _Weight) -> Array:
        if weight.std is None:
            return jnp.ones(weight.shape, config.dtype)
        noise = jax.random.normal(jax.random.fold_in(key, i), weight.shape, jnp.float32)
        return (weight.std * noise).astype(config.dtype)

    return treedef.unflatten([leaf(i, weight) for i, weight in enumerate(leaves)])


def abstract_params(config: LlamaConfig) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes and dtypes of the weights; no array is created."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def logical_axes(config: LlamaConfig) -> PyTree[Any]:
    """The logical axes of every weight, as :func:`cycleqd_jax.sharding.shardings` takes them."""
    return jax.tree.map(lambda weight: weight.axes, _weights(config), is_leaf=_is_weight)


def num_params(config: LlamaConfig) -> int:
    """The number of parameters."""
    return sum(math.prod(weight.shape) for weight in jax.tree.leaves(_weights(config), is_leaf=_is_weight))


def _is_mixed(node: Any) -> bool:
    return isinstance(node, MixedMatrix)


def num_individuals(params: Params) -> int | None:
    """How many individuals the weights belong to (:class:`MixedMatrix`); ``None`` for the weights of one model."""
    leaves = jax.tree.leaves(params["layers"], is_leaf=_is_mixed)
    return next((leaf.coefficients.shape[-2] for leaf in leaves if _is_mixed(leaf)), None)


def select(params: Params, individuals: Int[Array, " batch"]) -> Params:
    """The weights for a batch in which row i belongs to ``individuals[i]``; shared weights are unchanged."""

    def leaf(node: Any) -> Any:
        if not _is_mixed(node):
            return node
        return node._replace(coefficients=jnp.take(node.coefficients, individuals, axis=-2))

    return params | {"layers": jax.tree.map(leaf, params["layers"], is_leaf=_is_mixed)}


@functools.partial(jax.jit, static_argnames=("transposed",))
def _split_layers(x: Array, transposed: bool) -> tuple[Array, ...]:
    return tuple(x[i].T if transposed else x[i] for i in range(x.shape[0]))


def unstack(params: Params, *, donate: bool = False, transposed: bool = False) -> Params:
    """Replaces stacked layers by a list of layers: :func:`decoder` then unrolls its loop.

    XLA copies a matrix that it slices out of a stack before it multiplies with it. A decode step is bound by reading the
    weights, and would read and write them all once more.

    Args:
        params: stacked weights; weights whose layers are a list already are returned as they are.
        donate: delete each stacked array of ``layers`` once it has been split.
        transposed: make every matrix of a layer a :class:`TransposedMatrix`.
    """
    if isinstance(params["layers"], list):
        return params

    def split(leaf: Any, transposed: bool) -> list[Any]:
        layers = _split_layers(leaf, transposed)
        if donate:
            jax.block_until_ready(layers)
            leaf.delete()
        return [TransposedMatrix(layer) for layer in layers] if transposed else list(layers)

    def parts(node: Any) -> list[Any]:
        if not _is_mixed(node):
            return split(node, transposed and node.ndim == 3)
        matrices = (split(x, transposed) for x in (node.w, node.u, node.vt))
        return [MixedMatrix(*layer) for layer in zip(*matrices, split(node.coefficients, False), strict=True)]

    nodes, structure = jax.tree.flatten(params["layers"], is_leaf=_is_mixed)
    return params | {"layers": [structure.unflatten(layer) for layer in zip(*map(parts, nodes), strict=True)]}
