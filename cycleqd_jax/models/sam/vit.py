"""The ViT image encoder: windowed and global attention with decomposed relative positions, and a neck of convolutions."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.models.sam.config import VitConfig
from cycleqd_jax.models.sam.layers import attend, conv, gelu, layer_norm, linear, merge_windows, split_windows
from cycleqd_jax.models.sam.weights import Module
from cycleqd_jax.types import Array, Float, Params

__all__ = ["encode", "neck", "neck_weights", "vit_weights"]

NECK_EPS = 1e-6
"""Of the neck's layer norms, which no config changes."""


def vit_weights(config: VitConfig) -> dict[str, Any]:
    """The declaration of the encoder's weights.

    Layers are stacked. The relative positions of windows and of the whole image have different sizes, so each kind has a stack
    of its own.
    """
    c = config
    root = Module("vision_encoder.", c.initializer_range)
    layer = Module("vision_encoder.layers.{}.", c.initializer_range, tuple(range(c.num_hidden_layers)))
    tree: dict[str, Any] = {
        "patch_embed": root.conv("patch_embed.projection", c.num_channels, c.hidden_size, c.patch_size),
        "layers": {
            "norm1": layer.norm("layer_norm1", c.hidden_size),
            "attn": {
                "qkv": layer.linear("attn.qkv", c.hidden_size, 3 * c.hidden_size, ("embed", "heads"), bias=c.qkv_bias),
                "proj": layer.linear("attn.proj", c.hidden_size, c.hidden_size, ("heads", "embed")),
            },
            "norm2": layer.norm("layer_norm2", c.hidden_size),
            "mlp": {
                "lin1": layer.linear("mlp.lin1", c.hidden_size, c.mlp_dim, ("embed", "hidden")),
                "lin2": layer.linear("mlp.lin2", c.mlp_dim, c.hidden_size, ("hidden", "embed")),
            },
        },
        "neck": neck_weights(c.hidden_size, c.output_channels, c.initializer_range),
    }
    if c.use_abs_pos:
        size = (c.grid * c.grid, c.hidden_size)
        tree["pos_embed"] = root.array("pos_embed", size, std=c.initializer_range, file_shape=(1, c.grid, c.grid, size[1]))
    kinds = {
        "window_positions": (tuple(i for i in range(c.num_hidden_layers) if i not in c.global_attn_indexes), c.window_size),
        "global_positions": (tuple(sorted(set(c.global_attn_indexes))), c.grid),
    }
    for name, (layers, side) in kinds.items():
        if c.use_rel_pos and layers:
            own = Module("vision_encoder.layers.{}.attn.", c.initializer_range, layers)
            shape = (2 * side - 1, c.hidden_size // c.num_attention_heads)
            tree[name] = {axis: own.array(f"rel_pos_{axis}", shape, std=c.initializer_range) for axis in "hw"}
    return tree


def neck_weights(rows: int, columns: int, std: float) -> dict[str, Any]:
    """The declaration of the neck's weights."""
    own = Module("vision_encoder.neck.", std)
    return {
        "conv1": own.conv("conv1", rows, columns, 1, bias=False),
        "norm1": own.norm("layer_norm1", columns),
        "conv2": own.conv("conv2", columns, columns, 3, bias=False),
        "norm2": own.norm("layer_norm2", columns),
    }


def neck(p: Params, x: Float[Array, "batch height width in"]) -> Float[Array, "batch height width out"]:
    """The convolutions from the transformer's channels to the image embedding's."""
    x = layer_norm(p["norm1"], conv(p["conv1"], x, 1), NECK_EPS)
    return layer_norm(p["norm2"], conv(p["conv2"], x, 3, pad=1), NECK_EPS)


def encode(
    params: Params, config: VitConfig, pixels: Float[Array, "batch height width channel"]
) -> Float[Array, "batch grid grid out"]:
    """The image embeddings of normalised images.

    Consecutive layers of one kind are scanned.

    Args:
        params: the weights of :func:`vit_weights`.
        config: the encoder.
        pixels: in the dtype of the weights.
    """
    x = conv(params["patch_embed"], pixels, config.patch_size, stride=config.patch_size)
    if config.use_abs_pos:
        x = x + params["pos_embed"].reshape(1, *x.shape[1:])
    is_global = [i in config.global_attn_indexes for i in range(config.num_hidden_layers)]
    done = {True: 0, False: 0}
    for whole, run in itertools.groupby(range(config.num_hidden_layers), key=lambda i: is_global[i]):
        layers = list(run)
        own = slice(done[whole], done[whole] + len(layers))
        done[whole] += len(layers)
        stack = {"layer": jax.tree.map(lambda leaf, layers=layers: leaf[layers[0] : layers[-1] + 1], params["layers"])}
        if config.use_rel_pos:
            positions = params["global_positions" if whole else "window_positions"]
            stack["positions"] = jax.tree.map(lambda leaf, own=own: leaf[own], positions)

        def step(x: Array, p: Params, whole: bool = whole) -> tuple[Array, None]:
            return _layer(p["layer"], p.get("positions"), config, x, whole), None

        x, _ = jax.lax.scan(step, x, stack)
    return neck(params["neck"], x)


def _layer(p: Params, positions: Params | None, config: VitConfig, x: Array, whole: bool) -> Array:
    height, width = x.shape[1:3]
    y = layer_norm(p["norm1"], x, config.layer_norm_eps)
    if whole:
        y = _attention(p["attn"], positions, config, y, whole)
    else:
        y = _attention(p["attn"], positions, config, split_windows(y, config.window_size), whole)
        y = merge_windows(y, height, width)
    x = x + y
    y = layer_norm(p["norm2"], x, config.layer_norm_eps)
    return x + linear(p["mlp"]["lin2"], gelu(linear(p["mlp"]["lin1"], y)))


def _attention(p: Params, positions: Params | None, config: VitConfig, x: Array, whole: bool) -> Array:
    batch, height, width, channels = x.shape
    heads = config.num_attention_heads
    qkv = linear(p["qkv"], x).reshape(batch, height * width, 3, heads, channels // heads)

    def one(q: Array, k: Array, v: Array) -> Array:  # [..., position, channel]
        bias = None
        if positions is not None:
            grid = q.reshape(*q.shape[:-2], height, width, q.shape[-1])
            rows = jnp.einsum("...hwd,hkd->...hwk", grid, _relative(positions["h"], height))
            columns = jnp.einsum("...hwd,wkd->...hwk", grid, _relative(positions["w"], width))
            bias = rows[..., :, None] + columns[..., None, :]
            bias = bias.reshape(*q.shape[:-1], height * width)
        return attend(q * (channels // heads) ** -0.5, k, v, bias)

    if whole:  # the scores of all heads at once would be gigabytes
        q, k, v = qkv.transpose(2, 3, 0, 1, 4)
        y = jax.lax.map(lambda head: one(*head), (q, k, v)).transpose(1, 2, 0, 3)
    else:
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        y = one(q, k, v).transpose(0, 2, 1, 3)
    return linear(p["proj"], y.reshape(batch, height, width, channels))


def _relative(table: Array, side: int) -> Array:
    """The embedding of every pair of query and key: ``[query, key, channel]``."""
    index = np.arange(side)[:, None] - np.arange(side)[None] + side - 1
    return table[index]
