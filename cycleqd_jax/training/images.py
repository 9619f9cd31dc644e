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

__all__ = ["FLIPS", "Draw", "Target", "check_items", "draw_items", "flipped", "model_box", "target"]

FLIPS: dict[str, tuple[int, ...]] = {"none": (0,), "horizontal": (0, 1), "both": (0, 1, 2, 3)}
"""The values of the option ``flips``, and the flips that are drawn: 1 exchanges left and right, 2 up and down, 3 does both."""


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
        mask: 1 where most of a place is the object, otherwise 0.
        valid: 1 where most of a place is the image and not padding, otherwise 0.
    """

    mask: Float[np.ndarray, "rows columns"]
    valid: Float[np.ndarray, "rows columns"]


def check_items(items: Sequence[SegmentationItem]) -> None:
    """Checks that a model can learn from items.

    Args:
        items: images with masks and boxes.

    Raises:
        InputError: there is none; or one has a mask of another size than its image, an empty mask, or a box without area.
    """
    if not items:
        raise InputError("expected at least one training image, got none; check the training data")
    for item in items:
        left, top, right, bottom = np.asarray(item.box, np.float64).tolist()
        if item.mask.shape != item.image.shape[:2] or not item.mask.any():
            raise InputError(
                f"expected a mask of {item.image.shape[0]} × {item.image.shape[1]} pixels with an object, got "
                f"{item.mask.shape[0]} × {item.mask.shape[1]}, {int(item.mask.sum())} of them object, in training image "
                f"{item.name!r}; correct the data"
            )
        if not (left < right < math.inf and top < bottom < math.inf and min(left, top) > -math.inf):
            raise InputError(
                "expected a box whose right and lower edge follow its left and upper edge, got "
                f"{[left, top, right, bottom]} in training image {item.name!r}; correct the data"
            )


def draw_items(
    items: Sequence[SegmentationItem], steps: int, batch_size: int, flips: str, jitter: float, seed: int
) -> list[list[Draw]]:
    """The items of every step, from consecutive random permutations, each with a random flip and a random box.

    Args:
        items: checked by :func:`check_items`.
        steps: number of steps.
        batch_size: images per step.
        flips: a key of :data:`FLIPS`; all of its flips are equally likely.
        jitter: every edge of a box moves by up to this fraction of the box's width or height, and stays in the image.
        seed: the seed of everything.
    """
    rng = np.random.default_rng(seed)
    total = steps * batch_size
    order = np.concatenate([rng.permutation(len(items)) for _ in range(-(-total // len(items)))])[:total]
    chosen = rng.choice(FLIPS[flips], total)
    moves = rng.uniform(-jitter, jitter, (total, 4))
    draws = [_draw(items[i], int(i), int(flip), move) for i, flip, move in zip(order, chosen, moves, strict=True)]
    return [draws[start : start + batch_size] for start in range(0, total, batch_size)]


def _draw(item: SegmentationItem, index: int, flip: int, move: np.ndarray) -> Draw:
    height, width = item.mask.shape
    left, top, right, bottom = np.asarray(item.box, np.float64).tolist()
    if flip & 1:  # coordinates are those of the pixels' centres
        left, right = width - 1 - right, width - 1 - left
    if flip & 2:
        top, bottom = height - 1 - bottom, height - 1 - top
    size = np.array([right - left, bottom - top] * 2)
    moved = np.array([left, top, right, bottom]) + move * size
    if move.any():
        moved = np.clip(moved, 0, [width, height] * 2)
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
        mask: of the size of the image, flipped as the image is.
        config: the model.
    """
    size, side = config.vision.image_size, 4 * config.vision.grid
    height, width = resized_size((mask.shape[0], mask.shape[1]), size)
    whole = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize((width, height), Image.Resampling.BOX)

    def coverage(part: Image.Image) -> np.ndarray:
        frame = Image.new("L", (size, size))
        frame.paste(part, (0, 0))
        return (np.asarray(frame.resize((side, side), Image.Resampling.BOX)) > 127).astype(np.float32)

    return Target(coverage(whole), coverage(Image.new("L", (width, height), 255)))


def model_box(box: Sequence[float], shape: tuple[int, int], config: sam.SamConfig) -> Float[np.ndarray, "1 4"]:
    """A box in pixels of the model's input.

    Args:
        box: left, top, right, bottom in pixels of the image.
        shape: height and width of the image.
        config: the model.
    """
    return to_model(np.asarray(box, np.float64).reshape(2, 2), shape, config.vision.image_size).reshape(1, 4)
