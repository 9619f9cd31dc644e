"""Prompts: the box of an object, with random margins, and the whole image."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["MODEL_SIZE", "image_box", "item_generator", "mask_box", "widened_box"]

MODEL_SIZE = 1024
"""The longest side of Segment Anything's input in pixels."""


def mask_box(mask: Bool[np.ndarray, "height width"]) -> Float[np.ndarray, " 4"]:
    """The box of a mask: the first column, first row, last column and last row with a pixel of the object.

    Segment Anything's ``batched_mask_to_box`` and MedSAM count the same way. The mask must not be empty.

    >>> import numpy as np
    >>> from cycleqd_jax.tasks.segmentation.prompts import mask_box
    >>> mask_box(np.array([[False, False, False], [False, True, True]])).tolist()
    [1.0, 1.0, 2.0, 1.0]
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)


def image_box(height: int, width: int) -> Float[np.ndarray, " 4"]:
    """The box of the whole image: the centres of its first and last pixels.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
    """
    return np.array([0, 0, width - 1, height - 1], np.float32)


def widened_box(
    box: Float[np.ndarray, " 4"], height: int, width: int, jitter: float, generator: np.random.Generator
) -> Float[np.ndarray, " 4"]:
    """A box whose four edges are moved outwards, each by its own random distance, and clipped to the image.

    MedSAM (Ma et al., Nature Communications 2024) moves each edge by 0 to 20 pixels in images of 1024 × 1024. Here a distance
    is uniform in [0, ``jitter``] pixels of the model's input, whose longest side has 1024.

    Args:
        box: left, top, right, bottom in pixels of the image.
        height: of the image in pixels.
        width: of the image in pixels.
        jitter: the largest distance, in pixels of the model's input.
        generator: draws the distances; it is advanced.
    """
    left, top, right, bottom = (float(edge) for edge in box)
    a, b, c, d = generator.uniform(0, jitter * max(height, width) / MODEL_SIZE, 4)
    edges = (max(left - a, 0), max(top - b, 0), min(right + c, width - 1), min(bottom + d, height - 1))
    return np.array(edges, np.float32)


def item_generator(seed: int, name: str) -> np.random.Generator:
    """The generator of one item's random numbers, which depend on nothing but the seed and the name.

    Args:
        seed: at least 0.
        name: name of the item.
    """
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])])
