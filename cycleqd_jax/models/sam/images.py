"""Images in and masks out: Segment Anything's preprocessing and the upsampling of its masks.

An image is resized so that its longest side has the model's size, normalised, and padded with zeros at the right and below.
Masks take the way back: they are upsampled to the model's size, cropped to the resized image, and resized to the original.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cycleqd_jax.types import AnyArray, Bool, Float, InputError

__all__ = [
    "MEAN",
    "PROCESSOR",
    "STD",
    "Prepared",
    "check_processor",
    "mask_logits",
    "masks_of",
    "preprocess",
    "resized_size",
    "to_model",
]

MEAN = (0.485, 0.456, 0.406)
"""Of red, green and blue, in [0, 1]."""

STD = (0.229, 0.224, 0.225)
"""Of red, green and blue, in [0, 1]."""

PROCESSOR: dict[str, Any] = {
    "image_processor_type": "SamImageProcessor",
    "processor_class": "SamProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "pad_size": {"height": 1024, "width": 1024},
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": 1024},
}
"""The contents of ``preprocessor_config.json`` for what :func:`preprocess` does."""


_FIXED = ("image_mean", "image_std", "rescale_factor", "resample", "do_normalize", "do_pad", "do_rescale", "do_resize")
"""The entries of :data:`PROCESSOR` that change pixels, and that :func:`preprocess` does not read from a file."""


def check_processor(values: Mapping[str, Any], where: str, image_size: int) -> None:
    """Checks that a folder's processor file asks for what :func:`preprocess` does; entries that it leaves out are not checked.

    Args:
        values: the parsed JSON of ``preprocessor_config.json``, or of ``processor_config.json``, which nests the same entries.
        where: the name of the file in messages.
        image_size: pixels of a side of the model's images.

    Raises:
        InputError: an entry has another value, so that masks would be predicted from pixels unlike those of the training.
    """
    nested = values.get("image_processor")
    found = nested if isinstance(nested, Mapping) else values
    sizes = {"size": {"longest_edge": image_size}, "pad_size": {"height": image_size, "width": image_size}}
    for name, wanted in {**{name: PROCESSOR[name] for name in _FIXED}, **sizes}.items():
        got = found.get(name)
        if got is None or got == wanted:
            continue
        try:
            equal = np.allclose(got, wanted, rtol=0, atol=1e-6) and np.shape(got) == np.shape(wanted)
        except (TypeError, ValueError):
            equal = False
        if not equal:
            raise InputError(
                f"expected {name} {wanted}, which is how Segment Anything prepares images, got {got} in {where}; use a "
                "model that was trained so, or correct the file"
            )


class Prepared(NamedTuple):
    """A preprocessed image.

    Attributes:
        pixels: the normalised, padded image.
        original: height and width before.
        resized: height and width of the part that is not padding.
    """

    pixels: Float[np.ndarray, "size size 3"]
    original: tuple[int, int]
    resized: tuple[int, int]


def resized_size(original: tuple[int, int], size: int = 1024) -> tuple[int, int]:
    """Height and width of the resized image.

    >>> from cycleqd_jax.models.sam.images import resized_size
    >>> resized_size((480, 640))
    (768, 1024)
    """
    scale = size / max(original)
    height, width = (int(side * scale + 0.5) for side in original)
    return height, width


def preprocess(image: Image.Image | np.ndarray, size: int = 1024) -> Prepared:
    """Prepares one image.

    Args:
        image: a Pillow image in any mode, which is converted to RGB, or uint8 ``[height, width, 3]``.
        size: the model's ``image_size``.

    Raises:
        InputError: an array is not such an image, or a side of the resized image has no pixel.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
            raise InputError(
                f"expected an image of uint8 [height, width, 3], got {image.dtype} {list(image.shape)}; convert it to RGB"
            )
        image = Image.fromarray(image)
    image = image.convert("RGB")
    original = (image.height, image.width)
    height, width = resized_size(original, size)
    if min(height, width) < 1:
        raise InputError(
            f"expected an image whose shorter side has a pixel after resizing, got {image.width} × {image.height} pixels for a "
            f"longest side of {size}; crop it"
        )
    pixels = np.zeros((size, size, 3), np.float32)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    pixels[:height, :width] = (resized / np.float32(255) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return Prepared(pixels, original, (height, width))


def to_model(
    coordinates: Float[AnyArray, "*batch 2"], original: tuple[int, int], size: int = 1024
) -> Float[np.ndarray, "*batch 2"]:
    """Coordinates (x, y) in the pixels of an image, in pixels of the model's input.

    A box ``[..., 4]`` is given as its corners ``[..., 2, 2]``.
    """
    height, width = resized_size(original, size)
    scale = np.array([width / original[1], height / original[0]])
    return (np.asarray(coordinates, np.float64) * scale).astype(np.float32)


def _bilinear(source: int, target: int) -> np.ndarray:
    """Bilinear interpolation of ``source`` values at ``target`` places, ``[target, source]``, as PyTorch's ``interpolate``."""
    places = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, None)
    lower = np.minimum(places.astype(np.int64), source - 1)
    weight = places - lower
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), lower), 1 - weight)
    np.add.at(matrix, (np.arange(target), np.minimum(lower + 1, source - 1)), weight)
    return matrix


@functools.lru_cache(maxsize=256)
def _upsampling(start: int, kept: int, end: int, size: int) -> np.ndarray:
    """The matrix of one axis from ``start`` values of a mask to ``end`` pixels, of which ``kept`` of ``size`` are the image."""
    matrix = (_bilinear(kept, end) @ _bilinear(start, size)[:kept]).astype(np.float32)
    matrix.setflags(write=False)
    return matrix


def mask_logits(
    masks: Float[AnyArray, "*batch rows columns"], original: tuple[int, int], size: int = 1024
) -> Float[np.ndarray, "*batch height width"]:
    """The logits of masks in the pixels of the original image, computed on the host: a program for every size would cost more.

    Upsampling, cropping and resizing are linear in each axis, so they are one matrix for each axis.

    Args:
        masks: logits of :func:`~cycleqd_jax.models.sam.model.predict_masks`.
        original: height and width of the image.
        size: the model's ``image_size``.
    """
    resized = resized_size(original, size)
    rows, columns = (
        _upsampling(start, kept, end, size) for start, kept, end in zip(masks.shape[-2:], resized, original, strict=True)
    )
    with np.errstate(invalid="ignore", over="ignore"):  # of logits that are not finite
        return rows @ (np.asarray(masks).astype(np.float32) @ columns.T)


def masks_of(
    masks: Sequence[Float[AnyArray, "... _ _"]],
    originals: Sequence[tuple[int, int]],
    size: int = 1024,
    threshold: float = 0.0,
) -> list[Bool[np.ndarray, "... _ _"]]:
    """The masks of several images in their own sizes: where the logits exceed the threshold. Logits of one mask are in memory.

    Args:
        masks: logits for each image.
        originals: height and width of each image.
        size: the model's ``image_size``.
        threshold: of the logits.
    """
    found = []
    for logits, original in zip(masks, originals, strict=True):
        whole = np.asarray(logits)
        above = np.empty((*whole.shape[:-2], *original), bool)
        for place in np.ndindex(*whole.shape[:-2]):
            above[place] = mask_logits(whole[place], original, size) > threshold
        found.append(above)
    return found
