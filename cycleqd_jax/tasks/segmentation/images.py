"""Reads images and masks, and refuses those whose meaning is not certain.

Images: grey values, palettes and opaque alpha channels are converted to RGB without loss. Refused are transparent pixels, CMYK
and other color spaces, more than 8 bits a channel in grey images, several frames, and an EXIF or TIFF orientation from 2 to 8:
whether the mask was drawn before or after the rotation is not in the file. Refused too are images of which the model's input
would have no pixel, because one side is more than 2048 times as long as the other.

Masks: values 0 and 255, or 1 bit a pixel. Of a palette in black and white the colors count, of another palette the indices 0
and 1. Grey masks in two or three equal channels are read as one. JPEG changes values near edges (Kvasir-SEG publishes its masks
so): they are compared with 128, unless they have colors or many of them are far from black and white. Refused are other values,
and masks without a pixel of the object.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from cycleqd_jax.tasks.segmentation.prompts import MODEL_SIZE
from cycleqd_jax.types import InputError

__all__ = ["is_image_file", "read_image", "read_mask"]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # EXIF tag
_TURNED = range(2, 9)  # orientations; 1 is upright, and others do not exist
_JPEG_THRESHOLD = 128
_GREY = (32, 224)  # values of a JPEG mask in this range are neither black nor white
_JPEG_COLOR = 32  # the largest difference of channels that JPEG makes of grey values
_LARGEST_GREY_SHARE = 0.05
_SHOWN_VALUES = 5


def is_image_file(path: Path) -> bool:
    """Whether a file has the name of an image: not hidden, with a suffix such as ``.jpg`` or ``.png``."""
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The RGB values of an image file.

    Raises:
        InputError: there is no such file, it is corrupt, or it is refused (see above); the message names it.
    """
    image = np.array(_rgb(_load(path), path))
    height, width = image.shape[:2]
    if int(min(height, width) * (MODEL_SIZE / max(height, width)) + 0.5) < 1:  # as the model's images are resized
        raise InputError(
            f"expected an image of which one side is at most {2 * MODEL_SIZE} times as long as the other, because Segment "
            f"Anything resizes the longer one to {MODEL_SIZE} pixels, got {width} × {height} pixels in {path}; crop it and its "
            "mask"
        )
    return image


def read_mask(path: Path, threshold: int | None = None) -> Bool[np.ndarray, "height width"]:
    """A mask file: True where the object is.

    Args:
        path: of the file.
        threshold: the smallest value of the object, from 1 to 255. None requires a mask of two values.

    Raises:
        InputError: there is no such file, it is corrupt, or it is refused (see above); the message names it.
    """
    image = _load(path)
    mask = _palette_mask(image, path) if image.mode == "P" and threshold is None else _grey_mask(image, path, threshold)
    if not mask.any():
        used = _JPEG_THRESHOLD if threshold is None and _is_lossy(image) else threshold
        raise InputError(
            f"expected a mask of an object, got no pixel of one{f' (a value of at least {used})' if used else ''} in {path}; "
            f"remove the mask and its image{', or set option threshold to the smallest value of the object' if used else ''}"
        )
    return mask


def _load(path: Path) -> Image.Image:
    """The decoded image."""
    if not path.is_file():
        raise InputError(f"expected an image file, got no file at {path}; add it")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            # Loading a TIFF turns it and removes the tag. In a PNG the tag may come after the pixels.
            orientation = image.getexif().get(_ORIENTATION, 1) if image.format == "TIFF" else None
            image.load()
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO is a JPEG with a preview
            if orientation is None:
                orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # Pillow raises many types for corrupt files
        found = str(error).replace(f" {str(path)!r}", "") or type(error).__name__
        raise InputError(f"expected a whole image file, got an error ({found}) in {path}; replace or remove it") from error
    if frames > 1:
        raise InputError(f"expected one image, got {frames} frames in {path}; save one of them")
    if orientation in _TURNED:
        raise InputError(
            f"expected pixels in the orientation of the mask, got EXIF orientation {orientation} in {path}; rotate the pixels "
            "as the mask needs it, and remove the tag"
        )
    return image


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    """The image in RGB."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        lowest = image.getchannel("A").getextrema()[0]
        if lowest != 255:
            raise InputError(f"expected opaque pixels, got an alpha of {lowest} in {path}; flatten the image on a background")
    elif image.mode not in ("1", "L", "P", "RGB"):
        raise InputError(f"expected 8 bits of grey, RGB or RGBA, got mode {image.mode} in {path}; convert it to RGB")
    return image.convert("RGB")


def _palette_mask(image: Image.Image, path: Path) -> Bool[np.ndarray, "height width"]:
    indices, colors = np.array(image), np.array(_rgb(image, path))
    values = colors[..., 0]
    if (colors == values[..., None]).all() and np.isin(values, (0, 255)).all():
        return values == 255
    used = np.unique(indices)
    if not np.isin(used, (0, 1)).all():
        raise _value_error("black and white, or palette indices 0 and 1", used, path, "save it with values 0 and 255")
    return indices == 1


def _grey_mask(image: Image.Image, path: Path, threshold: int | None) -> Bool[np.ndarray, "height width"]:
    lossy = _is_lossy(image)
    colors = np.array(_rgb(image, path))
    if int((colors.max(axis=-1) - colors.min(axis=-1)).max()) > (_JPEG_COLOR if lossy else 0):
        raise InputError(f"expected a mask in black and white, got colors in {path}; save it as a PNG with values 0 and 255")
    values = np.array(Image.fromarray(colors).convert("L"))
    if threshold is not None:
        return values >= threshold
    if not lossy:
        if not np.isin(values, (0, 255)).all():
            advice = (
                "save it as a PNG with these values, or set option threshold to the smallest value of the object (128 where "
                "JPEG or smoothing has changed edges)"
            )
            raise _value_error("mask values 0 and 255", np.unique(values), path, advice)
        return values == 255
    grey = float(((values >= _GREY[0]) & (values < _GREY[1])).mean())
    if grey > _LARGEST_GREY_SHARE:
        raise InputError(
            f"expected a mask in black and white, got {grey:.0%} grey pixels in the JPEG {path}; save it as a PNG with values "
            f"0 and 255, or set option threshold to the smallest value of the object, such as {_JPEG_THRESHOLD}"
        )
    return values >= _JPEG_THRESHOLD


def _is_lossy(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")


def _value_error(expected: str, values: np.ndarray, path: Path, advice: str) -> InputError:
    shown = ", ".join(str(value) for value in values[:_SHOWN_VALUES])
    more = f" and {len(values) - _SHOWN_VALUES} more" if len(values) > _SHOWN_VALUES else ""
    return InputError(f"expected {expected}, got {shown}{more} in {path}; {advice}")
