"""The prompt encoder: points, boxes and masks become embeddings."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from cycleqd_jax.models.sam.config import SamConfig
from cycleqd_jax.models.sam.layers import conv, gelu, layer_norm
from cycleqd_jax.models.sam.weights import Module
from cycleqd_jax.types import AnyArray, Array, Float, Int, Params

__all__ = ["IGNORED", "PADDING", "Prompts", "embed_prompts", "image_positions", "prompt_weights"]

PADDING = -1
"""The label of a point that is no point."""

IGNORED = -10
"""The label of a point that fills a batch and has a zero embedding."""


class Prompts(NamedTuple):
    """Prompts for a batch of images, in pixels of the model's input; x comes before y.

    A prompt with several points, or with points and a box, asks for one object.

    Attributes:
        points: point coordinates.
        labels: 1 for a point on the object, 0 for one on the background, :data:`PADDING` or :data:`IGNORED`.
        boxes: left, upper, right and lower edge.
        masks: logits of an earlier mask, four times as wide as the image embedding.
    """

    points: Float[AnyArray, "batch prompt point 2"] | None = None
    labels: Int[AnyArray, "batch prompt point"] | None = None
    boxes: Float[AnyArray, "batch prompt 4"] | None = None
    masks: Float[AnyArray, "batch height width"] | None = None


def prompt_weights(config: SamConfig) -> dict[str, Any]:
    """The declaration of the prompt encoder's weights, and of the position encoding that the image shares."""
    c, std = config.prompt, config.vision.initializer_range
    own, points = Module("prompt_encoder.", std), Module("prompt_encoder.point_embed.{}.", std, (0, 1, 2, 3))
    inner = c.mask_input_channels
    return {
        "frequencies": Module("shared_image_embedding.", std).array(
            "positional_embedding", (2, config.vision.num_pos_feats), std=1.0
        ),
        "points": points.array("weight", (1, c.hidden_size), std=std),
        "no_point": own.array("not_a_point_embed.weight", (1, c.hidden_size), std=std),
        "no_mask": own.array("no_mask_embed.weight", (1, c.hidden_size), std=std),
        "mask": {
            "conv1": own.conv("mask_embed.conv1", 1, inner // 4, 2),
            "norm1": own.norm("mask_embed.layer_norm1", inner // 4),
            "conv2": own.conv("mask_embed.conv2", inner // 4, inner, 2),
            "norm2": own.norm("mask_embed.layer_norm2", inner),
            "conv3": own.conv("mask_embed.conv3", inner, c.hidden_size, 1),
        },
    }


def _encode(frequencies: Array, positions: Array) -> Array:
    """Random Fourier features of positions ``[..., 2]`` in [0, 1]."""
    angles = 2 * math.pi * ((2 * positions.astype(frequencies.dtype) - 1) @ frequencies)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def image_positions(params: Params, config: SamConfig) -> Float[Array, "grid grid channel"]:
    """The position encoding of the centre of every place in the image embedding."""
    centres = (jnp.arange(config.vision.grid, dtype=jnp.float32) + 0.5) / config.vision.grid
    return _encode(params["frequencies"], jnp.stack(jnp.meshgrid(centres, centres), axis=-1))


def embed_prompts(
    params: Params, config: SamConfig, prompts: Prompts
) -> tuple[Float[Array, "batch prompt token channel"] | None, Float[Array, "images rows columns channel"]]:
    """The embeddings of prompts.

    Args:
        params: the weights of :func:`prompt_weights`.
        config: the model.
        prompts: points need labels.

    Returns:
        Tokens of points and boxes, ``None`` without either. The embedding that is added to the image's: ``[batch, grid, grid,
        channel]`` for masks, and one vector ``[1, 1, 1, channel]`` without masks.
    """
    size, tokens = config.prompt.image_size, []
    if prompts.points is not None:
        assert prompts.labels is not None
        points, labels = jnp.asarray(prompts.points) + 0.5, jnp.asarray(prompts.labels)
        if prompts.boxes is None:
            points = jnp.concatenate([points, jnp.zeros((*points.shape[:2], 1, 2), points.dtype)], axis=2)
            labels = jnp.concatenate([labels, jnp.full((*labels.shape[:2], 1), PADDING, labels.dtype)], axis=2)
        kinds, labels = params["points"], labels[..., None]
        embedding = _encode(params["frequencies"], points / size)

        def wide(vector: Array) -> Array:  # [1, channel]
            return vector[None, None]

        embedding = jnp.where(labels == PADDING, wide(params["no_point"]), embedding)
        embedding = jnp.where(labels == IGNORED, jnp.zeros_like(embedding), embedding)
        embedding = jnp.where(labels == 0, embedding + wide(kinds[0]), embedding)
        tokens.append(jnp.where(labels == 1, embedding + wide(kinds[1]), embedding))
    if prompts.boxes is not None:
        boxes = jnp.asarray(prompts.boxes) + 0.5
        corners = boxes.reshape(*boxes.shape[:2], 2, 2)
        tokens.append(_encode(params["frequencies"], corners / size) + params["points"][2:, 0][None, None])
    dense = params["no_mask"][None, None]
    if prompts.masks is not None:
        p, eps = params["mask"], config.prompt.layer_norm_eps
        masks = jnp.asarray(prompts.masks).astype(params["no_mask"].dtype)
        x = gelu(layer_norm(p["norm1"], conv(p["conv1"], masks[..., None], 2, stride=2), eps))
        x = gelu(layer_norm(p["norm2"], conv(p["conv2"], x, 2, stride=2), eps))
        dense = conv(p["conv3"], x, 1)
    return (jnp.concatenate(tokens, axis=2) if tokens else None), dense
