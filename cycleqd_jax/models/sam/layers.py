"""Layers that the parts of Segment Anything share; images are ``[batch, height, width, channel]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cycleqd_jax.types import Array, Float

__all__ = ["attend", "conv", "depthwise", "gelu", "last", "layer_norm", "linear", "merge_windows", "split_windows"]


def last(vector: Array, ndim: int) -> Array:
    """A vector as an array of ``ndim`` axes, all of size one but the last."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)


def linear(p: Mapping[str, Any], x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
    """``x @ kernel + bias``; a layer without a bias has none in ``p``."""
    y = x @ p["kernel"]
    return y + last(p["bias"], y.ndim) if "bias" in p else y


def layer_norm(p: Mapping[str, Any], x: Float[Array, "*batch channel"], eps: float) -> Float[Array, "*batch channel"]:
    """Layer norm over the last axis, in float32."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    centred = wide - mean
    scaled = centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)
    y = scaled * last(p["scale"].astype(jnp.float32), x.ndim) + last(p["bias"].astype(jnp.float32), x.ndim)
    return y.astype(x.dtype)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU, as in PyTorch."""
    return jax.nn.gelu(x, approximate=False)


def conv(
    p: Mapping[str, Any], x: Float[Array, "batch height width in"], side: int, *, stride: int = 1, pad: int = 0
) -> Float[Array, "batch rows columns out"]:
    """A convolution whose kernel is the matrix ``[in · side · side, out]``.

    Args:
        p: kernel and, if there is one, bias.
        x: the image.
        side: height and width of the kernel.
        stride: of both axes.
        pad: zeros on every side.
    """
    kernel = p["kernel"]
    if side == 1 and stride == 1 and pad == 0:
        return linear(p, x)
    if side == stride and pad == 0:  # patches do not overlap
        batch, height, width, channels = x.shape
        patches = x.reshape(batch, height // side, side, width // side, side, channels).transpose(0, 1, 3, 5, 2, 4)
        return linear(p, patches.reshape(batch, height // side, width // side, -1))
    weights = kernel.reshape(x.shape[-1], side, side, kernel.shape[-1])
    y = jax.lax.conv_general_dilated(
        x, weights, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "IHWO", "NHWC")
    )
    return y + last(p["bias"], 4) if "bias" in p else y


def depthwise(
    p: Mapping[str, Any], x: Float[Array, "batch height width channel"], side: int, *, stride: int = 1
) -> Float[Array, "batch rows columns channel"]:
    """A depthwise convolution with padding ``side // 2``, whose kernel is the matrix ``[side · side, channel]``.

    It is a sum of shifted images, which XLA computes in one pass; its grouped convolutions are slow on CPUs.
    """
    pad, (_, height, width, _) = side // 2, x.shape
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y = None
    for i in range(side):
        for j in range(side):
            shifted = padded[:, i : i + height : stride, j : j + width : stride]
            term = shifted * last(p["kernel"][i * side + j], 4)
            y = term if y is None else y + term
    assert y is not None
    return y + last(p["bias"], 4) if "bias" in p else y


def attend(
    q: Float[Array, "*#batch query channel"],
    k: Float[Array, "*#batch key channel"],
    v: Float[Array, "*#batch key value"],
    bias: Float[Array, "*#batch query key"] | None = None,
) -> Float[Array, "*output query value"]:
    """Attention; ``q`` is scaled already. Softmax is float32."""
    scores = jnp.einsum("...qd,...kd->...qk", q, k)
    if bias is not None:
        scores = scores + bias
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(v.dtype)
    return jnp.einsum("...qk,...kd->...qd", weights, v)


def split_windows(x: Float[Array, "batch height width channel"], side: int) -> Float[Array, "windows side side channel"]:
    """Windows that do not overlap; the right and the lower ones are filled with zeros."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
    rows, columns = x.shape[1] // side, x.shape[2] // side
    x = x.reshape(batch, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch * rows * columns, side, side, channels)


def merge_windows(
    windows: Float[Array, "windows side side channel"], height: int, width: int
) -> Float[Array, "batch height width channel"]:
    """The inverse of :func:`split_windows`."""
    side, channels = windows.shape[1], windows.shape[3]
    rows, columns = -(-height // side), -(-width // side)
    x = windows.reshape(-1, rows, columns, side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * side, columns * side, channels)[:, :height, :width]
