"""The mask decoder: a two-way transformer between tokens and image, upscaling, and one small network for each mask token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cycleqd_jax.models.sam.config import SamConfig
from cycleqd_jax.models.sam.layers import attend, gelu, last, layer_norm, linear
from cycleqd_jax.models.sam.weights import Module
from cycleqd_jax.types import Array, Float, Params

__all__ = ["decode_masks", "decoder_weights"]

FINAL_EPS, UPSCALE_EPS = 1e-5, 1e-6
"""Of the last norm of the transformer and of the norm of the upscaling, which no config changes."""

BLOCK_RATE = 2
"""The ``attention_downsample_rate`` of the transformer's layers. Transformers uses the config's for the last attention only."""


def decoder_weights(config: SamConfig) -> dict[str, Any]:
    """The declaration of the decoder's weights; the transformer's layers and the networks of the mask tokens are stacked."""
    c, std = config.decoder, config.vision.initializer_range
    size, narrow, masks = c.hidden_size, c.hidden_size // BLOCK_RATE, c.num_multimask_outputs + 1
    own = Module("mask_decoder.", std)
    layer = Module("mask_decoder.transformer.layers.{}.", std, tuple(range(c.num_hidden_layers)))
    hyper = Module("mask_decoder.output_hypernetworks_mlps.{}.", std, tuple(range(masks)))
    middle = Module("mask_decoder.iou_prediction_head.layers.", std, tuple(range(c.iou_head_depth - 2)))

    def attention(module: Module, name: str, width: int) -> dict[str, Any]:
        ins = {x: module.linear(f"{name}.{x}_proj", size, width) for x in "qkv"}
        return ins | {"out": module.linear(f"{name}.out_proj", width, size)}

    iou = {"proj_in": own.linear("iou_prediction_head.proj_in", size, c.iou_head_hidden_dim)}
    if middle.layers:
        iou["layers"] = middle.linear("{}", c.iou_head_hidden_dim, c.iou_head_hidden_dim)
    iou["proj_out"] = own.linear("iou_prediction_head.proj_out", c.iou_head_hidden_dim, masks)
    return {
        "iou_token": own.array("iou_token.weight", (1, size), std=std),
        "mask_tokens": own.array("mask_tokens.weight", (masks, size), std=std),
        "layers": {
            "self_attn": attention(layer, "self_attn", size),
            "token_to_image": attention(layer, "cross_attn_token_to_image", narrow),
            "image_to_token": attention(layer, "cross_attn_image_to_token", narrow),
            "mlp": {"lin1": layer.linear("mlp.lin1", size, c.mlp_dim), "lin2": layer.linear("mlp.lin2", c.mlp_dim, size)},
            **{f"norm{i}": layer.norm(f"layer_norm{i}", size) for i in (1, 2, 3, 4)},
        },
        "final_attn": attention(own, "transformer.final_attn_token_to_image", size // c.attention_downsample_rate),
        "final_norm": own.norm("transformer.layer_norm_final_attn", size),
        "upscale1": own.conv_transpose("upscale_conv1", size, size // 4, 2),
        "upscale_norm": own.norm("upscale_layer_norm", size // 4),
        "upscale2": own.conv_transpose("upscale_conv2", size // 4, size // 8, 2),
        "hyper": {
            "proj_in": hyper.linear("proj_in", size, size),
            "layer": hyper.linear("layers.0", size, size),
            "proj_out": hyper.linear("proj_out", size, size // 8),
        },
        "iou": iou,
    }


def decode_masks(
    params: Params,
    config: SamConfig,
    image: Float[Array, "batch grid grid channel"],
    positions: Float[Array, "grid grid channel"],
    sparse: Float[Array, "batch prompt token channel"] | None,
    dense: Float[Array, "images rows columns channel"],
    *,
    multimask: bool,
) -> tuple[Float[Array, "batch prompt mask height width"], Float[Array, "batch prompt mask"]]:
    """The masks of prompts, and predictions of their quality.

    Args:
        params: the weights of :func:`decoder_weights`.
        config: the model.
        image: image embeddings.
        positions: of the image embedding.
        sparse: tokens of prompts; ``None`` without points and boxes.
        dense: see :func:`~cycleqd_jax.models.sam.prompts.embed_prompts`.
        multimask: the masks for an ambiguous prompt instead of the single mask.

    Returns:
        Logits of masks, four times as wide as the image embedding, and the predicted intersection over union of each.
    """
    batch, grid, _, size = image.shape
    own = jnp.concatenate([params["iou_token"], params["mask_tokens"]])
    prompts = 1 if sparse is None else sparse.shape[1]
    tokens = jnp.broadcast_to(own[None, None], (batch, prompts, *own.shape))
    if sparse is not None:
        tokens = jnp.concatenate([tokens, sparse.astype(tokens.dtype)], axis=2)
    keys = (image + dense.astype(image.dtype)).reshape(batch, 1, grid * grid, size)
    tokens, keys = _transformer(params, config, tokens, keys, positions.reshape(1, 1, grid * grid, size))

    chosen = slice(1, None) if multimask else slice(0, 1)
    hyper = jax.tree.map(lambda leaf: leaf[chosen], params["hyper"])
    out = tokens[:, :, 1 : 1 + params["mask_tokens"].shape[0]][:, :, chosen]
    out = jnp.moveaxis(out, 2, 0)  # [mask, batch, prompt, channel]
    networks = jax.vmap(lambda p, x: linear(p["proj_out"], _relu(p["layer"], _relu(p["proj_in"], x))))
    networks = jnp.moveaxis(networks(hyper, out), 0, 2)

    # Channels stay last and the upscaled pixels in blocks; only the masks themselves are put into rows.
    x = _upscale(params["upscale1"], keys)  # [batch, prompt, place, 2, 2, channel]
    x = gelu(layer_norm(params["upscale_norm"], x, UPSCALE_EPS))
    x = gelu(_upscale(params["upscale2"], x))
    masks = jnp.einsum("bpmc,bpxijklc->bpmxijkl", networks, x)
    masks = masks.reshape(*masks.shape[:3], grid, grid, 2, 2, 2, 2).transpose(0, 1, 2, 3, 5, 7, 4, 6, 8)
    masks = masks.reshape(*masks.shape[:3], 4 * grid, 4 * grid)

    quality = _relu(params["iou"]["proj_in"], tokens[:, :, 0])
    for i in range(config.decoder.iou_head_depth - 2):
        quality = _relu(jax.tree.map(lambda leaf, i=i: leaf[i], params["iou"]["layers"]), quality)
    return masks, linear(params["iou"]["proj_out"], quality)[..., chosen]


def _relu(p: Mapping[str, Any], x: Array) -> Array:
    return jax.nn.relu(linear(p, x))


def _upscale(p: Mapping[str, Any], x: Array) -> Array:
    """A transposed convolution of kernel 2 and stride 2: ``[..., in]`` becomes ``[..., 2, 2, out]``."""
    rows, out = p["kernel"].shape[0], p["bias"].shape[0]
    kernel = p["kernel"].reshape(rows, out, 4).transpose(0, 2, 1).reshape(rows, 4 * out)
    y = (x @ kernel).reshape(*x.shape[:-1], 2, 2, out)
    return y + last(p["bias"], y.ndim)


def _transformer(params: Params, config: SamConfig, points: Array, keys: Array, positions: Array) -> tuple[Array, Array]:
    """Tokens and image attend to each other; the image has one copy for all prompts until tokens have changed it."""
    c, eps = config.decoder, config.decoder.layer_norm_eps
    heads, queries = c.num_attention_heads, points
    for i in range(c.num_hidden_layers):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        if i == 0:
            queries = _attention(p["self_attn"], heads, queries, queries, queries)
        else:
            query = queries + points
            queries = queries + _attention(p["self_attn"], heads, query, query, queries)
        queries = layer_norm(p["norm1"], queries, eps)
        attended = _attention(p["token_to_image"], heads, queries + points, keys + positions, keys)
        queries = layer_norm(p["norm2"], queries + attended, eps)
        queries = layer_norm(p["norm3"], queries + linear(p["mlp"]["lin2"], _relu(p["mlp"]["lin1"], queries)), eps)
        attended = _attention(p["image_to_token"], heads, keys + positions, queries + points, queries)
        keys = layer_norm(p["norm4"], keys + attended, eps)
    attended = _attention(params["final_attn"], heads, queries + points, keys + positions, keys)
    return layer_norm(params["final_norm"], queries + attended, FINAL_EPS), keys


def _attention(p: Params, heads: int, query: Array, key: Array, value: Array) -> Array:
    """Attention of ``[batch, prompt, token, channel]``; batches and prompts of size one are those of all."""

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-1], heads, -1), -2, 2)

    q, k, v = (split(linear(p[name], x)) for name, x in (("q", query), ("k", key), ("v", value)))
    y = jnp.moveaxis(attend(q * q.shape[-1] ** -0.5, k, v), 2, -2)
    return linear(p["out"], y.reshape(*y.shape[:-2], -1))
