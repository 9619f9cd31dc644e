"""What a segmentation task gives to training and evaluation, and what predicts the masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from cycleqd_jax.types.arrays import Params
from cycleqd_jax.types.tasks import Split

__all__ = ["MaskPredictor", "PredictedMasks", "SegmentationItem", "SegmentationTask"]


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


@runtime_checkable
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


class PredictedMasks(NamedTuple):
    """The masks of one item.

    Attributes:
        masks: the mask of every individual, in the size of the item's image.
        finite: whether the weights and the logits of every individual are finite. A mask without finite logits has no meaning.
    """

    masks: Bool[np.ndarray, "individual height width"]
    finite: Bool[np.ndarray, " individual"]


@runtime_checkable
class MaskPredictor(Protocol):
    """Predicts masks with the weights of one model or of several, without knowledge of tasks."""

    def load(self, params: Params, *, donate: bool) -> None:
        """Loads weights.

        Args:
            params: weights of one model, or of a population: then leaves have a leading axis of individuals. Leaves that all
                individuals share may lack it.
            donate: whether their buffers may be reused; the caller does not use them afterwards.
        """
        ...

    def unload(self) -> None:
        """Frees the weights. What does not depend on them stays."""
        ...

    def predict(self, items: Sequence[SegmentationItem], count: int) -> Iterator[PredictedMasks]:
        """The masks of every item, in order; each is computed when the iterator comes near it.

        Args:
            items: the images, with their boxes as prompts. An item may be read from disk at each access.
            count: the number of individuals to predict for, from the first.
        """
        ...
