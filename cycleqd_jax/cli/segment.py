"""``cycleqd segment``: the mask that a Segment Anything model predicts for one image."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cycleqd_jax.compilation import persistent_compilation
from cycleqd_jax.config import RunConfig
from cycleqd_jax.files import check_writable, make_folder
from cycleqd_jax.models import sam
from cycleqd_jax.models.sam.predictor import SamPredictor
from cycleqd_jax.tasks.segmentation import METRICS, image_box, overlay, read_image, read_mask
from cycleqd_jax.tasks.segmentation.damage import check_undamaged
from cycleqd_jax.types import InputError, SegmentationItem

__all__ = ["segment"]


def segment(
    model: str | Path,
    image: Path,
    output: Path,
    *,
    box: Sequence[float] | None = None,
    truth: Path | None = None,
    picture: Path | None = None,
) -> None:
    """Writes the mask of an image as a PNG of 0 and 255, and prints the share of the image that it covers.

    Args:
        model: a folder of Segment Anything.
        image: the image file.
        output: the file of the mask.
        box: the prompt: left, top, right, bottom in pixels of the image. None is the whole image.
        truth: a true mask; the scores of all metrics are printed.
        picture: a file for the image with the mask and the box drawn over it.

    Raises:
        InputError: an input file can't be read, an output file can't be written, or an output file is also an input file or
            the other output file; the box is not in the image; or the logits are not finite.
    """
    _check_written([output, *([picture] if picture else [])], [image, *([truth] if truth else [])])
    for file in (image, *([truth] if truth else [])):
        check_undamaged(file)
    pixels = read_image(image)
    height, width = pixels.shape[:2]
    prompt = image_box(height, width) if box is None else np.asarray(box, np.float32)
    left, top, right, bottom = prompt.tolist()
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InputError(
            f"expected --box left top right bottom within the {width} × {height} pixels of {image}, got "
            f"{[left, top, right, bottom]}; correct it"
        )
    whole = np.ones((height, width), bool)
    item = SegmentationItem(image.name, pixels, whole if truth is None else read_mask(truth), prompt)
    if item.mask.shape != (height, width):
        raise InputError(
            f"expected a mask of {width} × {height} pixels, the size of {image}, got {item.mask.shape[1]} × "
            f"{item.mask.shape[0]} in {truth}; replace one of them"
        )
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(InputError):  # without a folder that can be written, programs are compiled again
            stack.enter_context(persistent_compilation(Path(RunConfig.cache)))
        config, params = sam.load(model)
        predictor = SamPredictor(config, batch_size=1)
        predictor.load(params, donate=True)
        (found,) = predictor.predict([item], 1)
    if not found.finite[0]:
        raise InputError(f"expected {model} to compute finite logits, got others for {image}; use other weights")
    mask = found.masks[0]
    make_folder(output.parent)
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(output, "PNG")
    if picture is not None:
        make_folder(picture.parent)
        overlay(pixels, mask, prompt, longest_side=max(height, width)).save(picture, "PNG")
    print(f"{output}: {100 * mask.mean():.1f} % of the image")
    if truth is not None:
        print(", ".join(f"{name} {metric(mask, item.mask):.3f}" for name, metric in METRICS.items()))


def _check_written(written: Sequence[Path], read: Sequence[Path]) -> None:
    """Raises an error if an output file can't be written, or is also an input file or another output file."""
    taken = {file.resolve() for file in read}
    for file in written:
        check_writable(file.parent, "choose another place")
        if file.is_dir():
            raise InputError(f"expected a file to write, got the folder {file}; give the name of a file")
        if file.resolve() in taken:
            raise InputError(f"expected files to write beside the image and each other, got {file} again; give another name")
        taken.add(file.resolve())
