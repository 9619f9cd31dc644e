"""MobileSAM's image encoder: a TinyViT of convolutions and windowed attention, and the neck of Segment Anything.

The batch norms have the fixed statistics of their training. They are folded into the kernels before the convolution.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.models.sam.config import TinyVitConfig
from cycleqd_jax.models.sam.layers import attend, conv, depthwise, gelu, layer_norm, linear, merge_windows, split_windows
from cycleqd_jax.models.sam.vit import neck, neck_weights
from cycleqd_jax.models.sam.weights import Module
from cycleqd_jax.types import Array, Float, Params

__all__ = ["encode", "tiny_vit_weights"]

EPS = 1e-5
"""Of layer norms and batch norms."""


def tiny_vit_weights(config: TinyVitConfig) -> dict[str, Any]:
    """The declaration of the encoder's weights; the blocks of a stage are stacked."""
    c, std = config, config.initializer_range
    root, dims = Module("vision_encoder.patch_embed.seq.", std), c.embed_dims
    tree: dict[str, Any] = {
        "patch_embed": {
            "conv1": root.conv_batch_norm("0", c.num_channels, dims[0] // 2, 3),
            "conv2": root.conv_batch_norm("2", dims[0] // 2, dims[0], 3),
        },
        "neck": neck_weights(dims[-1], c.output_channels, std),
    }
    for stage, size in enumerate(dims):
        prefix = f"vision_encoder.layers.{stage}."
        block = Module(prefix + "blocks.{}.", std, tuple(range(c.depths[stage])))
        if stage == 0:
            wide = int(size * c.mbconv_expand_ratio)
            blocks: dict[str, Any] = {
                "conv1": block.conv_batch_norm("conv1", size, wide, 1),
                "conv2": block.conv_batch_norm("conv2", wide, wide, 3, depthwise=True),
                "conv3": block.conv_batch_norm("conv3", wide, size, 1),
            }
        else:
            wide, side = int(size * c.mlp_ratio), c.window_sizes[stage]
            blocks = {
                "attn": {
                    "norm": block.norm("attn.norm", size),
                    "qkv": block.linear("attn.qkv", size, 3 * size, ("embed", "heads")),
                    "proj": block.linear("attn.proj", size, size, ("heads", "embed")),
                    "position_bias": block.array("attn.attention_biases", (c.num_heads[stage], side * side), std=std),
                },
                "local_conv": block.conv_batch_norm("local_conv", size, size, 3, depthwise=True),
                "mlp": {
                    "norm": block.norm("mlp.norm", size),
                    "fc1": block.linear("mlp.fc1", size, wide, ("embed", "hidden")),
                    "fc2": block.linear("mlp.fc2", wide, size, ("hidden", "embed")),
                },
            }
        tree[f"stage{stage}"] = {"blocks": blocks}
        if stage + 1 < len(dims):
            own, out = Module(prefix + "downsample.", std), dims[stage + 1]
            tree[f"stage{stage}"]["downsample"] = {
                "conv1": own.conv_batch_norm("conv1", size, out, 1),
                "conv2": own.conv_batch_norm("conv2", out, out, 3, depthwise=True),
                "conv3": own.conv_batch_norm("conv3", out, out, 1),
            }
    return tree


def encode(
    params: Params, config: TinyVitConfig, pixels: Float[Array, "batch height width channel"]
) -> Float[Array, "batch grid grid out"]:
    """The image embeddings of normalised images.

    Args:
        params: the weights of :func:`tiny_vit_weights`.
        config: the encoder.
        pixels: in the dtype of the weights.
    """
    p = params["patch_embed"]
    x = gelu(conv(_folded(p["conv1"]), pixels, 3, stride=2, pad=1))
    x = conv(_folded(p["conv2"]), x, 3, stride=2, pad=1)
    for stage in range(len(config.embed_dims)):
        p = params[f"stage{stage}"]

        def step(x: Array, block: Params, stage: int = stage) -> tuple[Array, None]:
            return (_attention_block(block, config, stage, x) if stage else _convolution_block(block, x)), None

        x, _ = jax.lax.scan(step, x, p["blocks"])
        if "downsample" in p:
            x = _downsample(p["downsample"], x, config.strides[stage])
    return neck(params["neck"], x)


def _folded(p: Params) -> dict[str, Array]:
    """The convolution that has the batch norm in its kernel and bias."""
    norm = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), p["norm"])
    scale = norm["scale"] * jax.lax.rsqrt(norm["var"] + EPS)
    kernel = (p["kernel"].astype(jnp.float32) * scale[None]).astype(p["kernel"].dtype)
    return {"kernel": kernel, "bias": (norm["bias"] - norm["mean"] * scale).astype(kernel.dtype)}


def _convolution_block(p: Params, x: Array) -> Array:
    y = gelu(conv(_folded(p["conv1"]), x, 1))
    y = gelu(depthwise(_folded(p["conv2"]), y, 3))
    return gelu(x + conv(_folded(p["conv3"]), y, 1))


def _downsample(p: Params, x: Array, stride: int) -> Array:
    y = gelu(conv(_folded(p["conv1"]), x, 1))
    y = gelu(depthwise(_folded(p["conv2"]), y, 3, stride=stride))
    return conv(_folded(p["conv3"]), y, 1)


def _attention_block(p: Params, config: TinyVitConfig, stage: int, x: Array) -> Array:
    height, width, side = *x.shape[1:3], config.window_sizes[stage]
    windows = split_windows(x, side)  # padding comes before the norm, other than in Segment Anything's ViT
    x = x + merge_windows(_attention(p["attn"], config.num_heads[stage], windows), height, width)
    x = depthwise(_folded(p["local_conv"]), x, 3)
    y = layer_norm(p["mlp"]["norm"], x, EPS)
    return x + linear(p["mlp"]["fc2"], gelu(linear(p["mlp"]["fc1"], y)))


def _attention(p: Params, heads: int, x: Array) -> Array:
    batch, side, _, channels = x.shape
    size = channels // heads
    y = linear(p["qkv"], layer_norm(p["norm"], x, EPS)).reshape(batch, side * side, heads, 3, size)
    q, k, v = y.transpose(3, 0, 2, 1, 4)
    bias = p["position_bias"][:, _offsets(side)][None]
    y = attend(q * size**-0.5, k, v, bias)
    return linear(p["proj"], y.transpose(0, 2, 1, 3).reshape(x.shape))


def _offsets(side: int) -> np.ndarray:
    """The column of the bias of every pair of positions: its distance in rows and columns, row by row."""
    rows, columns = np.divmod(np.arange(side * side), side)
    return np.abs(rows[:, None] - rows) * side + np.abs(columns[:, None] - columns)
