"""What a segmentation task gives to training and evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, UInt8

from cycleqd_jax.types.tasks import Split

__all__ = ["SegmentationItem", "SegmentationTask"]


@dataclasses.dataclass(frozen=True)
class SegmentationItem:
    """An image with the mask of its object.

    Attributes:
        name: unique within its task.
        image: RGB values of the original size.
        mask: True where the object is.
        box: the prompt in pixels of the original image: left, top, right, bottom.
    """

    name: str
    image: UInt8[np.ndarray, "height width 3"]
    mask: Bool[np.ndarray, "height width"]
    box: Float[np.ndarray, " 4"]


class SegmentationTask(Protocol):
    """A folder of images with masks, and the metric of its field.

    Attributes:
        name: unique within a run.
    """

    name: str

    def items(self, split: Split) -> Sequence[SegmentationItem]:
        """The items of a split, always in the same order."""
        ...

    def score(self, mask: Bool[np.ndarray, "height width"], item: SegmentationItem) -> float:
        """The score of a predicted mask of the original size, from 0 to 1."""
        ...
