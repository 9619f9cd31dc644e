"""The whole model: its weights, and masks from images and prompts."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from cycleqd_jax.models.sam import tiny_vit, vit
from cycleqd_jax.models.sam.config import SamConfig, VitConfig
from cycleqd_jax.models.sam.decoder import decode_masks, decoder_weights
from cycleqd_jax.models.sam.prompts import Prompts, embed_prompts, image_positions, prompt_weights
from cycleqd_jax.models.sam.weights import Weight
from cycleqd_jax.types import AnyArray, Array, Float, Params, PRNGKeyArray, PyTree

__all__ = [
    "abstract_params",
    "encode_images",
    "forward",
    "init_params",
    "logical_axes",
    "num_params",
    "predict_masks",
    "weights",
]


def weights(config: SamConfig) -> dict[str, Any]:
    """The declaration from which shapes, shardings, initial values and names in files are derived.

    Returns:
        A tree of :class:`Weight` with the parts ``vision``, ``prompt`` and ``decoder``.
    """
    vision = config.vision
    encoder = vit.vit_weights(vision) if isinstance(vision, VitConfig) else tiny_vit.tiny_vit_weights(vision)
    return {"vision": encoder, "prompt": prompt_weights(config), "decoder": decoder_weights(config)}


def is_weight(node: Any) -> bool:
    """Whether a node of the declaration is one array."""
    return isinstance(node, Weight)


def init_params(config: SamConfig, key: PRNGKeyArray) -> Params:
    """Random weights: normal, norms at one, biases at zero; drawn in float32 and cast once.

    Args:
        config: the model.
        key: consumed.
    """
    leaves, treedef = jax.tree.flatten(weights(config), is_leaf=is_weight)

    def leaf(i: int, weight: Weight) -> Array:
        if weight.std is None:
            return jnp.ones(weight.shape, config.dtype)
        return (weight.std * jax.random.normal(jax.random.fold_in(key, i), weight.shape)).astype(config.dtype)

    return treedef.unflatten([leaf(i, weight) for i, weight in enumerate(leaves)])


def abstract_params(config: SamConfig) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes and dtypes of the weights; no array is created."""
    return jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, config.dtype), weights(config), is_leaf=is_weight)


def logical_axes(config: SamConfig) -> PyTree[Any]:
    """The logical axes of every weight, as :func:`cycleqd_jax.sharding.shardings` takes them."""
    return jax.tree.map(lambda weight: weight.axes, weights(config), is_leaf=is_weight)


def num_params(config: SamConfig) -> int:
    """The number of parameters."""
    return sum(math.prod(weight.shape) for weight in jax.tree.leaves(weights(config), is_leaf=is_weight))


def encode_images(
    params: Params, config: SamConfig, pixels: Float[AnyArray, "batch height width channel"]
) -> Float[Array, "batch grid grid out"]:
    """The image embeddings, the part of the model that does not depend on prompts.

    Args:
        params: the weights; only ``vision`` is used.
        config: the model.
        pixels: normalised images of ``image_size``, as :func:`~cycleqd_jax.models.sam.images.preprocess` makes them.
    """
    x = jnp.asarray(pixels).astype(config.dtype)
    if isinstance(config.vision, VitConfig):
        return vit.encode(params["vision"], config.vision, x)
    return tiny_vit.encode(params["vision"], config.vision, x)


def predict_masks(
    params: Params,
    config: SamConfig,
    embeddings: Float[AnyArray, "batch grid grid channel"],
    prompts: Prompts,
    *,
    multimask: bool = False,
) -> tuple[Float[Array, "batch prompt mask height width"], Float[Array, "batch prompt mask"]]:
    """The masks of prompts from image embeddings.

    Args:
        params: the weights; only ``prompt`` and ``decoder`` are used.
        config: the model.
        embeddings: of :func:`encode_images`.
        prompts: the prompts of every image. Without points and boxes there is one prompt for each image.
        multimask: several masks for each prompt instead of one.

    Returns:
        Logits of masks, four times as wide as the embeddings, and the predicted intersection over union of each mask.
    """
    sparse, dense = embed_prompts(params["prompt"], config, prompts)
    positions = image_positions(params["prompt"], config)
    image = jnp.asarray(embeddings)
    return decode_masks(params["decoder"], config, image, positions, sparse, dense, multimask=multimask)


def forward(
    params: Params,
    config: SamConfig,
    pixels: Float[AnyArray, "batch height width channel"],
    prompts: Prompts,
    *,
    multimask: bool = False,
) -> tuple[Float[Array, "batch prompt mask rows columns"], Float[Array, "batch prompt mask"]]:
    """The masks of prompts from images: :func:`encode_images` and :func:`predict_masks`."""
    return predict_masks(params, config, encode_images(params, config, pixels), prompts, multimask=multimask)
