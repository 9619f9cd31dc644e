"""Llama-architecture decoders as pure functions of a plain nested dict of weights.

Layers are stacked on a leading axis and scanned, so that compile time does not grow with depth and operators see one array
per kind of matrix. Matrices are stored ``[in, out]`` and used as ``x @ w`` (Hugging Face stores the transpose).

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

What some relatives have besides (see :class:`LlamaConfig`): ``layers/attn/q_bias``, ``k_bias``, ``v_bias``, ``o_bias`` and
``layers/mlp/gate_bias``, ``up_bias``, ``down_bias`` ``[layer, out]``; ``layers/attn/q_norm``, ``k_norm`` ``[layer, head_dim]``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.sharding import Axes
from cycleqd_jax.types import Array, Bool, Float, InputError, Int, MixedMatrix, Params, PRNGKeyArray

__all__ = [
    "Attend",
    "abstract_params",
    "decoder",
    "finite_layers",
    "for_products",
    "forward",
    "hidden_states",
    "init_params",
    "logical_axes",
    "matmul",
    "num_individuals",
    "num_params",
    "select",
    "unembed",
    "unstack",
]

# --------------------------------------------------------------------------------------------------------------------
# Weights


class _Weight(NamedTuple):
    shape: tuple[int, ...]
    axes: Axes
    std: float | None  # None: a norm's gain, which starts at one; 0: a bias


def _weights(config: LlamaConfig) -> dict[str, Any]:
    """The one declaration that shapes, shardings and initial values are read from."""
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


def abstract_params(config: LlamaConfig) -> Params:
    """Shapes and dtypes of the weights (``jax.ShapeDtypeStruct`` leaves), without making any."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def logical_axes(config: LlamaConfig) -> Any:
    """The logical axes of every weight, as :func:`cycleqd_jax.sharding.shardings` takes them."""
    return jax.tree.map(lambda weight: weight.axes, _weights(config), is_leaf=_is_weight)


def num_params(config: LlamaConfig) -> int:
    """How many numbers the weights are."""
    return sum(math.prod(weight.shape) for weight in jax.tree.leaves(_weights(config), is_leaf=_is_weight))


def _is_mixed(node: Any) -> bool:
    return isinstance(node, MixedMatrix)


def num_individuals(params: Params) -> int | None:
    """How many individuals the weights belong to (:class:`MixedMatrix`); ``None`` where they are those of one model."""
    leaves = jax.tree.leaves(params["layers"], is_leaf=_is_mixed)
    return next((leaf.coefficients.shape[-2] for leaf in leaves if _is_mixed(leaf)), None)


def select(params: Params, individuals: Int[Array, " batch"]) -> Params:
    """The weights for a batch whose rows belong to these individuals; all others are as they were."""

    def leaf(node: Any) -> Any:
        if not _is_mixed(node):
            return node
        return node._replace(coefficients=jnp.take(node.coefficients, individuals, axis=-2))

    return params | {"layers": jax.tree.map(leaf, params["layers"], is_leaf=_is_mixed)}


@jax.jit
def _apart(x: Array) -> tuple[Array, ...]:
    return tuple(x[i] for i in range(x.shape[0]))


def unstack(params: Params, *, donate: bool = False) -> Params:
    """The weights with a list of layers instead of stacked ones: :func:`decoder` then unrolls its loop.

    XLA copies what it takes out of a stack before it multiplies with it: a decode step, which is bound by reading the weights,
    would read and write them all once more.

    Args:
        params: stacked; left as they are where their layers are a list already.
        donate: delete every stacked array of ``layers`` once it has been taken apart.
    """
    if isinstance(params["layers"], list):
        return params
    leaves, structure = jax.tree.flatten(params["layers"])
    parts = []
    for leaf in leaves:
        parts.append(_apart(leaf))
        if donate:
            jax.block_until_ready(parts[-1])
            leaf.delete()
    return params | {"layers": [structure.unflatten(layer) for layer in zip(*parts, strict=True)]}


@functools.partial(jax.jit, static_argnames=("config", "positions"))
def for_products(params: Params, config: LlamaConfig, positions: int) -> Params:
    """What the CPU backend would compute again and again, or multiply with slowly, to be put beside the weights.

    Args:
        params: the weights.
        config: the model.
        positions: how many there can be.

    Returns:
        ``rope``, cosines and sines of every position ``[2, position, head_dim / 2]``, which are computed anew in every layer
        otherwise; and ``lm_head`` of a model whose head is tied, as the embedding lies otherwise and a product with it takes up
        to three times as long.
    """
    rope = jnp.stack([x[0, 0] for x in _rope(config, jnp.arange(positions)[None])])
    head = {"lm_head": params["embed_tokens"].T} if config.tie_word_embeddings else {}
    return {"rope": rope} | head


# --------------------------------------------------------------------------------------------------------------------
# Forward


def _rms_norm(x: Array, gain: Array, eps: float) -> Array:
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return x32.astype(x.dtype) * gain.astype(x.dtype)


def _inverse_frequencies(config: LlamaConfig) -> Float[Array, " half"]:
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequency = 1.0 / (config.rope_theta**exponent)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)  # over the original context
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)
    return smooth * frequency + (1 - smooth) * frequency / scaling.factor


def _rope(
    config: LlamaConfig, positions: Int[Array, "batch time"], table: Float[Array, "2 position half"] | None = None
) -> tuple[Array, Array]:
    """Cosines and sines ``[batch, 1, time, head_dim / 2]``, from a table of them if there is one."""
    if table is not None:
        cos, sin = table[:, positions][:, :, None]
        return cos, sin
    angles = positions.astype(jnp.float32)[:, None, :, None] * _inverse_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: Float[Array, "batch heads time head_dim"], cos: Array, sin: Array) -> Array:
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)  # Hugging Face's "rotate half" pairing
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def matmul(x: Array, w: Array, **kwargs: Any) -> Array:
    """``jnp.matmul`` that is as precise as its operands' dtype."""
    # An accelerator's default for float32 is a few bits of mantissa; who asks for float32 gets it.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.matmul(x, w, precision=precision, **kwargs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, w: Array, dtype: Any) -> Array:
    return matmul(x, w, preferred_element_type=dtype)


def _product_forward(x: Array, w: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, w, dtype), (x, w)


def _product_backward(dtype: Any, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    # The barriers keep the transposes out of the products. Otherwise XLA's CPU backend contracts the rows in an order that
    # depends on the number of threads: the same training would give other weights on another machine.
    x, w = residuals
    dy = dy.astype(x.dtype)
    dw = matmul(jax.lax.optimization_barrier(x.T), dy)
    return matmul(dy, w.T), jax.lax.optimization_barrier(dw)


_product.defvjp(_product_forward, _product_backward)


def _linear(x: Array, w: Array | MixedMatrix, dtype: Any = None) -> Array:
    if isinstance(w, MixedMatrix):
        scale = w.coefficients[:, None].astype(x.dtype)  # [batch, 1, r]
        return _linear(x, w.w, dtype) + _linear(_linear(x, w.u) * scale, w.vt, dtype)
    operands = jnp.bfloat16 if w.dtype == jnp.bfloat16 else x.dtype
    # Flat rows: XLA's CPU backend takes three times as long for the gradient when two axes are contracted.
    rows: Any = _product(x.reshape(-1, x.shape[-1]).astype(operands), w.astype(operands), dtype or x.dtype)
    return rows.reshape(*x.shape[:-1], w.shape[-1])


def _project(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    y, bias = _linear(x, weights[name]), weights.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(y.dtype)


def _attend(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Grouped-query attention; q ``[batch, heads, time, head_dim]``, k and v ``[batch, kv_heads, length, head_dim]``."""
    batch, heads, time, head_dim = q.shape
    kv_heads = k.shape[1]
    # The query heads of one kv head become rows of one product: no repeated keys, and a fatter matrix.
    q = q.reshape(batch, kv_heads, heads // kv_heads * time, head_dim)
    scores = matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32) * head_dim**-0.5
    scores = scores.reshape(batch, kv_heads, heads // kv_heads, time, -1)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = weights.reshape(batch, kv_heads, heads // kv_heads * time, -1)
    return matmul(weights, v).reshape(batch, heads, time, head_dim)


Attend = Callable[[Array, Array, Array, Any, Any], tuple[Array, Any]]
"""``attend(q, k, v, cache, layer) → (out, cache)``: q and out ``[batch, heads, time, head_dim]``, k and v
``[batch, kv_heads, time, head_dim]``, q and k rotated; ``layer`` is an index, a Python number where layers are unrolled."""


def _block(
    x: Array, layer: Any, config: LlamaConfig, rope: tuple[Array, Array], attend: Callable[..., tuple[Array, Any]]
) -> tuple[Array, Any]:
    """One decoder layer: ``attend(q, k, v) → (out, cache)``."""
    batch, time, _ = x.shape

    def split_heads(y: Array) -> Array:
        return y.reshape(batch, time, -1, config.head_dim).swapaxes(1, 2)

    h = _rms_norm(x, layer["input_norm"], config.rms_norm_eps)
    q, k, v = (split_heads(_project(h, layer["attn"], name)) for name in "qkv")
    if config.qk_norm:
        q = _rms_norm(q, layer["attn"]["q_norm"], config.rms_norm_eps)
        k = _rms_norm(k, layer["attn"]["k_norm"], config.rms_norm_eps)
    a, cache = attend(_rotate(q, *rope), _rotate(k, *rope), v)
    x = x + _project(a.swapaxes(1, 2).reshape(batch, time, -1), layer["attn"], "o")
    h = _rms_norm(x, layer["post_norm"], config.rms_norm_eps)
    h = jax.nn.silu(_project(h, layer["mlp"], "gate")) * _project(h, layer["mlp"], "up")
    return x + _project(h, layer["mlp"], "down"), cache


@jax.custom_jvp
def _lookup(table: Float[Array, "vocab embed"], tokens: Int[Array, "batch time"]) -> Array:
    def rows(table: Array, tokens: Array) -> Array:
        return table[tokens]

    def bits(table: Array, tokens: Array) -> Array:
        return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(table, jnp.uint16)[tokens], jnp.bfloat16)

    if table.dtype != jnp.bfloat16:
        return rows(table, tokens)
    # XLA's CPU backend widens the whole table to look for some rows. On a mesh of GPUs, bits would be larger messages.
    return jax.lax.platform_dependent(table, tokens, cpu=bits, default=rows)


@_lookup.defjvp
def _lookup_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    (table, tokens), (change, _) = primals, tangents
    return _lookup(table, tokens), change[tokens]


def _embed(params: Params, config: LlamaConfig, tokens: Array) -> Array:
    return _lookup(params["embed_tokens"], tokens).astype(jnp.dtype(config.compute_dtype or config.dtype))


def decoder(
    params: Params,
    config: LlamaConfig,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch time"],
    attend: Attend,
    cache: Any,
) -> tuple[Float[Array, "batch time embed"], Any]:
    """Everything but the head, with attention of the caller's: what engines with a KV cache are made of.

    Args:
        params: the weights; of one individual, or of each row's (:func:`select`). Stacked layers are scanned, a list of layers
            (:func:`unstack`) is unrolled.
        config: the model; static under ``jax.jit``.
        tokens: token ids.
        positions: RoPE positions.
        attend: attention, and what becomes of the cache (:data:`Attend`).
        cache: any pytree; handed from layer to layer.

    Returns:
        The normed states in the compute dtype, and the cache after the last layer.
    """
    rope = _rope(config, positions, params.get("rope"))
    x, layers = _embed(params, config, tokens), params["layers"]
    if isinstance(layers, list):
        for i, layer in enumerate(layers):
            x, cache = _block(x, layer, config, rope, lambda q, k, v, i=i, cache=cache: attend(q, k, v, cache, i))
    else:

        def body(carry: tuple[Array, Any], inputs: Any) -> tuple[tuple[Array, Any], None]:
            i, layer = inputs
            return _block(carry[0], layer, config, rope, lambda q, k, v: attend(q, k, v, carry[1], i)), None

        (x, cache), _ = jax.lax.scan(body, (x, cache), (jnp.arange(config.num_hidden_layers), layers))
    return _rms_norm(x, params["norm"], config.rms_norm_eps), cache


def hidden_states(
    params: Params,
    config: LlamaConfig,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch time"] | None = None,
) -> Float[Array, "batch time embed"]:
    """Everything but the head, without a cache, for training and scoring: what :func:`unembed` turns into logits.

    Args:
        params: the weights.
        config: the model; static under ``jax.jit``.
        tokens: token ids, right-padded; padding needs no mask: no token attends to what comes after it.
        positions: RoPE positions; ``0, 1, …`` by default.

    Returns:
        The states in the compute dtype.

    Raises:
        InputError: more tokens than the model's sliding window.
    """
    batch, time = tokens.shape
    if config.sliding_window is not None and time > config.sliding_window:
        raise InputError(
            f"expected at most sliding_window = {config.sliding_window} tokens, got {time}: beyond it this model attends to a "
            "window, which is not supported; use shorter texts"
        )
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32), (batch, time))
    rope = _rope(config, positions)
    causal = jnp.tri(time, dtype=bool)

    # Gradients keep the products with weights and recompute the rest: on a CPU 1.4 times as fast as keeping all (which is
    # bound by memory), at a third of the memory. Nothing changes where no gradient is taken.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable, prevent_cse=False)
    def body(x: Array, layer: Any) -> tuple[Array, None]:
        return _block(x, layer, config, rope, lambda q, k, v: (_attend(q, k, v, causal), None))

    x, _ = jax.lax.scan(body, _embed(params, config, tokens), params["layers"])
    return _rms_norm(x, params["norm"], config.rms_norm_eps)


def finite_layers(params: Params, config: LlamaConfig, tokens: Int[Array, "batch time"]) -> Bool[Array, " layer"]:
    """Which decoder layers put out numbers, for these tokens: the first that does not is where a model breaks.

    Args:
        params: the weights of one individual, stacked or not.
        config: the model.
        tokens: all of them are attended to, causally.
    """
    causal = jnp.tri(tokens.shape[1], dtype=bool)
    rope = _rope(config, jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape))
    x, finite = _embed(params, config, tokens), []
    for layer in unstack(params)["layers"]:
        x, _ = _block(x, layer, config, rope, lambda q, k, v: (_attend(q, k, v, causal), None))
        finite.append(jnp.isfinite(x).all())
    return jnp.stack(finite)


def unembed(params: Params, config: LlamaConfig, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch vocab"]:
    """Logits in float32 of the states that :func:`hidden_states` and :func:`decoder` return."""
    head = params["lm_head"] if "lm_head" in params else params["embed_tokens"].T
    return _linear(x, head, jnp.float32)


def forward(
    params: Params,
    config: LlamaConfig,
    tokens: Int[Array, "batch time"],
    positions: Int[Array, "batch time"] | None = None,
) -> Float[Array, "batch time vocab"]:
    """Logits of every position, in float32; arguments as for :func:`hidden_states`.

    For training and scoring: right-pad, and mask the loss; logits of real tokens do not depend on padding.
    """
    return unembed(params, config, hidden_states(params, config, tokens, positions))
