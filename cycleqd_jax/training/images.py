"""Training images: their order, their flips and boxes by a seed, and what a model and its loss need of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from cycleqd_jax.models import sam
from cycleqd_jax.models.sam.images import resized_size, to_model
from cycleqd_jax.types import InputError, SegmentationItem

__all__ = ["FLIPS", "Draw", "Extent", "Target", "check_items", "draw_items", "flipped", "model_box", "target"]

FLIPS: dict[str, tuple[int, ...]] = {"none": (0,), "horizontal": (0, 1), "both": (0, 1, 2, 3)}
"""The values of the option ``flips``, and the flips that are drawn: 1 exchanges left and right, 2 up and down, 3 does both."""


class Extent(NamedTuple):
    """The size of an item's image, and its prompt.

    Attributes:
        height: the height of the image in pixels.
        width: the width of the image in pixels.
        box: left, top, right, bottom in pixels of the image.
    """

    height: int
    width: int
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Draw:
    """An item as one step of a training sees it.

    Attributes:
        item: its index.
        flip: see :data:`FLIPS`.
        box: the prompt in pixels of the flipped image: left, top, right, bottom.
    """

    item: int
    flip: int
    box: tuple[float, float, float, float]


class Target(NamedTuple):
    """What a predicted mask is compared with, in the size of the model's masks.

    Attributes:
        mask: the share of the object in what a place shows of the image, from 0 to 1, so that no object is too small or thin.
        valid: 1 where a place shows some of the image, 0 where it is padding.
    """

    mask: Float[np.ndarray, "rows columns"]
    valid: Float[np.ndarray, "rows columns"]


def check_items(items: Sequence[SegmentationItem]) -> list[Extent]:
    """Checks that a model can learn from items; reads each of them once.

    Args:
        items: images with masks and boxes.

    Returns:
        The size and the box of every item.

    Raises:
        InputError: there is none; or one has a mask of another size than its image, an empty mask, or a box whose edges are
            exchanged or not finite.
    """
    if not items:
        raise InputError("expected at least one training image, got none; check the training data")
    return [_extent(item) for item in items]


def _extent(item: SegmentationItem) -> Extent:
    (height, width), (rows, columns) = item.image.shape[:2], item.mask.shape
    left, top, right, bottom = np.asarray(item.box, np.float64).tolist()
    if (rows, columns) != (height, width):
        raise InputError(
            f"expected a mask of {width} × {height} pixels, the size of the image, got {columns} × {rows} in training image "
            f"{item.name!r}; correct the data"
        )
    if not item.mask.any():
        raise InputError(f"expected a mask of an object, got no pixel of one in training image {item.name!r}; remove the image")
    if not (left <= right < math.inf and top <= bottom < math.inf and min(left, top) > -math.inf):
        raise InputError(
            "expected a box whose right and lower edges do not precede its left and upper edges, got "
            f"{[left, top, right, bottom]} in training image {item.name!r}; correct the data"
        )
    return Extent(height, width, (left, top, right, bottom))


def draw_items(
    extents: Sequence[Extent], steps: int, batch_size: int, flips: str, jitter_fraction: float, seed: int
) -> list[list[Draw]]:
    """The items of every step, from consecutive random permutations, each with a random flip and a random box.

    Args:
        extents: the extents of the items, from :func:`check_items`.
        steps: number of steps.
        batch_size: images per step.
        flips: a key of :data:`FLIPS`; all of its flips are equally likely.
        jitter_fraction: every edge of a box moves by up to this fraction of the box's width or height, and stays in the image.
        seed: the seed of everything.
    """
    rng = np.random.default_rng(seed)
    total = steps * batch_size
    order = np.concatenate([rng.permutation(len(extents)) for _ in range(-(-total // len(extents)))])[:total]
    chosen = rng.choice(FLIPS[flips], total)
    moves = rng.uniform(-jitter_fraction, jitter_fraction, (total, 4))
    draws = [_draw(extents[i], int(i), int(flip), move) for i, flip, move in zip(order, chosen, moves, strict=True)]
    return [draws[start : start + batch_size] for start in range(0, total, batch_size)]


def _draw(extent: Extent, index: int, flip: int, move: np.ndarray) -> Draw:
    height, width, (left, top, right, bottom) = extent
    if flip & 1:  # coordinates are those of the pixels' centres
        left, right = width - 1 - right, width - 1 - left
    if flip & 2:
        top, bottom = height - 1 - bottom, height - 1 - top
    size = np.array([right - left, bottom - top] * 2)
    moved = np.array([left, top, right, bottom]) + move * size
    if move.any():
        moved = np.clip(moved, 0, [width - 1, height - 1] * 2)
    return Draw(index, flip, (float(moved[0]), float(moved[1]), float(moved[2]), float(moved[3])))


def flipped(image: UInt8[np.ndarray, "height width 3"] | Bool[np.ndarray, "height width"], flip: int) -> np.ndarray:
    """A flipped image or mask; see :data:`FLIPS`.

    >>> import numpy as np
    >>> from cycleqd_jax.training.images import flipped
    >>> flipped(np.array([[True, False], [False, False]]), 1).tolist()
    [[False, True], [False, False]]
    """
    axes = tuple(axis for bit, axis in ((1, 1), (2, 0)) if flip & bit)
    return np.ascontiguousarray(np.flip(image, axes))


def target(mask: Bool[np.ndarray, "height width"], config: sam.SamConfig) -> Target:
    """The target of a mask, as the image is resized and padded.

    Args:
        mask: the mask, which has the size of the image and is flipped with it.
        config: the model.
    """
    size, side = config.vision.image_size, 4 * config.vision.grid
    height, width = resized_size((mask.shape[0], mask.shape[1]), size)
    whole = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)

    def coverage(part: Image.Image) -> np.ndarray:
        frame = Image.new("F", (size, size))
        frame.paste(part, (0, 0))
        return np.asarray(frame.resize((side, side), Image.Resampling.BOX))

    shown = coverage(Image.new("F", (width, height), 1))
    share = np.divide(coverage(whole), shown, out=np.zeros_like(shown), where=shown > 0)
    return Target(np.clip(share, 0, 1), (shown > 0).astype(np.float32))


def model_box(box: Sequence[float], shape: tuple[int, int], config: sam.SamConfig) -> Float[np.ndarray, "1 4"]:
    """A box in pixels of the model's input.

    Args:
        box: left, top, right, bottom in pixels of the image.
        shape: height and width of the image.
        config: the model.
    """
    return to_model(np.asarray(box, np.float64).reshape(2, 2), shape, config.vision.image_size).reshape(1, 4)
