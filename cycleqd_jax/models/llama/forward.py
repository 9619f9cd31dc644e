"""The forward pass of Llama-architecture decoders, as pure functions of the weights (see :mod:`.params`).

Layers are scanned, so that compile time does not grow with depth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.models.llama.params import TransposedMatrix
from cycleqd_jax.types import AnyArray, Array, Bool, Float, InputError, Int, MixedMatrix, Params

__all__ = ["Attend", "decoder", "for_products", "forward", "hidden_states", "matmul", "unembed"]


def for_products(params: Params, config: LlamaConfig, positions: int) -> Params:
    """Precomputed entries to add to the weights; without them the CPU backend recomputes or multiplies slowly.

    Args:
        params: the weights.
        config: the model.
        positions: the number of RoPE positions.

    Returns:
        ``rope``: cosines and sines of every position, ``[2, position, head_dim / 2]``, which every layer would compute anew.
        ``lm_head``, where the head is tied: the embedding as a matrix to multiply with. In bfloat16 it is transposed in memory:
        a product with the embedding as it is stored takes up to three times as long.
    """
    if not config.tie_word_embeddings:
        return {"rope": _rope_table(config, positions)}
    embedding = params["embed_tokens"]
    head = TransposedMatrix(embedding) if embedding.dtype == jnp.float32 else embedding.T
    return {"rope": _rope_table(config, positions), "lm_head": head}


@functools.partial(jax.jit, static_argnames=("config", "positions"))
def _rope_table(config: LlamaConfig, positions: int) -> Float[Array, "2 position half"]:
    return jnp.stack([x[0, 0] for x in rope_angles(config, jnp.arange(positions)[None])])


def _on_last_axis(vector: Array, ndim: int) -> Array:
    """A vector as an array of ``ndim`` axes, of which the last one is its own."""
    return jnp.expand_dims(vector, tuple(range(ndim - 1)))


def _rms_norm(x: Array, gain: Array, eps: float) -> Array:
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return x32.astype(x.dtype) * _on_last_axis(gain.astype(x.dtype), x.ndim)


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


def rope_angles(
    config: LlamaConfig, positions: Int[AnyArray, "batch time"], table: Float[Array, "2 position half"] | None = None
) -> tuple[Array, Array]:
    """Cosines and sines ``[batch, 1, time, head_dim / 2]``, looked up in a table where one is given."""
    if table is not None:
        cos, sin = table[:, positions][:, :, None]
        return cos, sin
    angles = positions.astype(jnp.float32)[:, None, :, None] * _on_last_axis(_inverse_frequencies(config), 4)
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: Float[Array, "batch heads time head_dim"], cos: Array, sin: Array) -> Array:
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)  # Hugging Face's "rotate half" pairing
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def matmul(x: Array, w: Array, **kwargs: Any) -> Array:
    """``jnp.matmul`` in the full precision of its operands' dtype."""
    # By default an accelerator multiplies float32 with fewer bits of mantissa.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.matmul(x, w, precision=precision, **kwargs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, w: Array, dtype: Any) -> Array:
    return matmul(x, w, preferred_element_type=dtype)


def _product_forward(x: Array, w: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, w, dtype), (x, w)


def _product_backward(dtype: Any, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    # The barriers keep the transposes out of the products. Otherwise XLA's CPU backend contracts the rows in an order that
    # depends on the number of threads, and the same training gives different weights on different machines.
    x, w = residuals
    dy = dy.astype(x.dtype)
    dw = matmul(jax.lax.optimization_barrier(x.T), dy)
    return matmul(dy, w.T), jax.lax.optimization_barrier(dw)


_product.defvjp(_product_forward, _product_backward)


def _linear(x: Array, w: Array | MixedMatrix | TransposedMatrix, dtype: DTypeLike | None = None) -> Array:
    if isinstance(w, MixedMatrix):
        scale = w.coefficients[:, None].astype(x.dtype)  # [batch, 1, r]
        return _linear(x, w.w, dtype) + _linear(_linear(x, w.u) * scale, w.vt, dtype)
    if isinstance(w, TransposedMatrix):
        # The barrier keeps the operands in this order.
        columns = jax.lax.optimization_barrier(matmul(w.w, _columns(x), preferred_element_type=dtype or x.dtype))
        return _from_columns(columns, x.shape[:-1])
    operands = jnp.bfloat16 if w.dtype == jnp.bfloat16 else x.dtype
    # Flat rows: XLA's CPU backend takes three times as long for the gradient where two axes are contracted.
    rows: Array = _product(x.reshape(-1, x.shape[-1]).astype(operands), w.astype(operands), dtype or x.dtype)
    return rows.reshape(*x.shape[:-1], w.shape[-1])


def _columns(x: Array) -> Array:
    """Rows as the columns of a matrix: ``[*batch, n]`` as ``[n, row]``."""
    return x.reshape(-1, x.shape[-1]).T


def _from_columns(columns: Array, shape: Sequence[int]) -> Array:
    """The inverse of :func:`_columns`."""
    return columns.T.reshape(*shape, columns.shape[0])


def _gated(gate: Array, up: Array, transposed: bool) -> Array:
    """``silu(gate) * up``, computed in the order of memory that products with transposed matrices write."""
    if not transposed:
        return jax.nn.silu(gate) * up
    columns = jax.lax.optimization_barrier(jax.nn.silu(_columns(gate)) * _columns(up))
    return _from_columns(columns, gate.shape[:-1])


def _project(x: Array, weights: Mapping[str, Any], name: str) -> Array:
    y, bias = _linear(x, weights[name]), weights.get(f"{name}_bias")
    return y if bias is None else y + _on_last_axis(bias.astype(y.dtype), y.ndim)


def masked_attention(q: Array, k: Array, v: Array, mask: Bool[Array, "time length"]) -> Array:
    """Grouped-query attention; q ``[batch, heads, time, head_dim]``, k and v ``[batch, kv_heads, length, head_dim]``."""
    batch, heads, time, head_dim = q.shape
    kv_heads = k.shape[1]
    # The query heads of one kv head become rows of one product: keys are not repeated, and the matrix is larger.
    q = q.reshape(batch, kv_heads, heads // kv_heads * time, head_dim)
    scores = matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32) * head_dim**-0.5
    scores = scores.reshape(batch, kv_heads, heads // kv_heads, time, -1)
    scores = jnp.where(mask[None, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = weights.reshape(batch, kv_heads, heads // kv_heads * time, -1)
    return matmul(weights, v).reshape(batch, heads, time, head_dim)


Attend = Callable[[Array, Array, Array, Any, Any], tuple[Array, Any]]
"""``attend(q, k, v, cache, layer) → (out, cache)``: q and out ``[batch, heads, time, head_dim]``, k and v
``[batch, kv_heads, time, head_dim]``; q and k are rotated. ``layer`` is an index, a Python int where layers are unrolled."""


def block(
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
    gate, up = (_project(h, layer["mlp"], name) for name in ("gate", "up"))
    matrix = layer["mlp"]["gate"]
    h = _gated(gate, up, isinstance(matrix.w if isinstance(matrix, MixedMatrix) else matrix, TransposedMatrix))
    return x + _project(h, layer["mlp"], "down"), cache


@jax.custom_jvp
def _lookup(table: Float[Array, "vocab embed"], tokens: Any) -> Array:  # JAX may pass constants as arrays of its own type
    def rows(table: Array, tokens: Any) -> Array:
        return table[tokens]

    def bits(table: Array, tokens: Any) -> Array:
        return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(table, jnp.uint16)[tokens], jnp.bfloat16)

    if table.dtype != jnp.bfloat16:
        return rows(table, tokens)
    # XLA's CPU backend would convert the whole table to float32 to gather some rows. On a mesh of GPUs, bits would make larger
    # messages.
    return jax.lax.platform_dependent(table, tokens, cpu=bits, default=rows)


@_lookup.defjvp
def _lookup_jvp(primals: tuple[Array, Any], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    (table, tokens), (change, _) = primals, tangents
    return _lookup(table, tokens), change[tokens]


def embed(params: Params, config: LlamaConfig, tokens: Int[AnyArray, "batch time"]) -> Array:
    """The embeddings of tokens, in the compute dtype."""
    return _lookup(params["embed_tokens"], tokens).astype(jnp.dtype(config.compute_dtype or config.dtype))


def decoder(
    params: Params,
    config: LlamaConfig,
    tokens: Int[AnyArray, "batch time"],
    positions: Int[AnyArray, "batch time"],
    attend: Attend,
    cache: Any,
) -> tuple[Float[Array, "batch time embed"], Any]:
    """All layers without the head, with the caller's attention: the basis of engines with a KV cache.

    Args:
        params: the weights of one individual, or of the individual of each row (:func:`select`). Stacked layers are scanned, a
            list of layers (:func:`unstack`) is unrolled.
        config: the model; static under ``jax.jit``.
        tokens: token ids.
        positions: RoPE positions.
        attend: computes attention and updates the cache (:data:`Attend`).
        cache: any pytree; passed from layer to layer.

    Returns:
        The normed states in the compute dtype, and the cache after the last layer.
    """
    rope = rope_angles(config, positions, params.get("rope"))
    x, layers = embed(params, config, tokens), params["layers"]
    if isinstance(layers, list):
        for i, layer in enumerate(layers):
            x, cache = block(x, layer, config, rope, lambda q, k, v, i=i, cache=cache: attend(q, k, v, cache, i))
    else:

        def body(carry: tuple[Array, Any], inputs: Any) -> tuple[tuple[Array, Any], None]:
            i, layer = inputs
            return block(carry[0], layer, config, rope, lambda q, k, v: attend(q, k, v, carry[1], i)), None

        (x, cache), _ = jax.lax.scan(body, (x, cache), (jnp.arange(config.num_hidden_layers), layers))
    return _rms_norm(x, params["norm"], config.rms_norm_eps), cache


def hidden_states(params: Params, config: LlamaConfig, tokens: Int[AnyArray, "batch time"]) -> Float[Array, "batch time embed"]:
    """All layers without the head and without a cache, for training and scoring; :func:`unembed` gives the logits.

    Args:
        params: the weights.
        config: the model; static under ``jax.jit``.
        tokens: token ids, right-padded. Padding needs no mask, since no token attends to later ones.

    Returns:
        The states in the compute dtype.

    Raises:
        InputError: more tokens than the model's sliding window.
    """
    batch, time = tokens.shape
    if config.sliding_window is not None and time > config.sliding_window:
        raise InputError(
            f"expected at most sliding_window = {config.sliding_window} tokens, got {time}; use shorter texts, since "
            "attention over a window is not supported"
        )
    positions = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32)[None], (batch, time))
    rope = rope_angles(config, positions)
    causal = jnp.tri(time, dtype=bool)

    # Gradients keep the products with weights and recompute the rest: on a CPU 1.4 times as fast as keeping everything (which
    # is bound by memory), with a third of the memory. Without a gradient nothing changes.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable, prevent_cse=False)
    def body(x: Array, layer: Any) -> tuple[Array, None]:
        return block(x, layer, config, rope, lambda q, k, v: (masked_attention(q, k, v, causal), None))

    x, _ = jax.lax.scan(body, embed(params, config, tokens), params["layers"])
    return _rms_norm(x, params["norm"], config.rms_norm_eps)


def unembed(params: Params, config: LlamaConfig, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch vocab"]:
    """The float32 logits of states from :func:`hidden_states` or :func:`decoder`."""
    head: Any = params["lm_head"] if "lm_head" in params else params["embed_tokens"].T
    if isinstance(head, TransposedMatrix) and x.size // x.shape[-1] >= 64:
        head = head.w.T  # of so many rows, turning the logits round takes longer than the product gains
    return _linear(x, head, jnp.float32)


def forward(params: Params, config: LlamaConfig, tokens: Int[AnyArray, "batch time"]) -> Float[Array, "batch time vocab"]:
    """The float32 logits of every position; arguments as for :func:`hidden_states`.

    For training and scoring: right-pad the tokens and mask the loss. Logits of real tokens do not depend on padding.
    """
    return unembed(params, config, hidden_states(params, config, tokens))
