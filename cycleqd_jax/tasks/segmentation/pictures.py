"""Pictures of items for reports: a mask, and the box of the prompt, drawn over the image."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

__all__ = ["overlay"]

_OPACITY = 0.45


def overlay(
    image: UInt8[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "height width"] | None = None,
    box: Float[np.ndarray, " 4"] | None = None,
    *,
    color: tuple[int, int, int] = (255, 200, 0),
    longest_side: int = 320,
) -> Image.Image:
    """The image with a mask as a tint and its box as a frame, scaled down for a page.

    Args:
        image: RGB values.
        mask: of the same size, the truth or a prediction; None draws none.
        box: left, top, right, bottom in pixels of the image; None draws none.
        color: RGB values of the tint and the frame.
        longest_side: the largest number of pixels of a side. Smaller images keep their size.
    """
    values = image.astype(np.float32)
    if mask is not None:
        values[mask] = (1 - _OPACITY) * values[mask] + _OPACITY * np.array(color, np.float32)
    height, width = image.shape[:2]
    scale = min(1.0, longest_side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(np.rint(values).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    if box is not None:
        left, top, right, bottom = (float(edge) * scale for edge in box)
        corners = (left, top, min(right, size[0] - 1), min(bottom, size[1] - 1))
        ImageDraw.Draw(picture).rectangle(corners, outline=color)
    return picture
