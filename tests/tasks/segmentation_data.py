"""Small folders of images with masks, and the real ones where there are some."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HEIGHT, WIDTH = 12, 16


def vision_folder(name: str) -> Path:
    """A folder of third-party images."""
    folder = Path(os.environ.get("CYCLEQD_VISION", "")) / name
    if "CYCLEQD_VISION" not in os.environ or not folder.is_dir():
        pytest.skip(f"CYCLEQD_VISION does not name the folder of third-party images with {name}")
    return folder


def pixels(number: int) -> np.ndarray:
    """An image that no other number has."""
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def disc(number: int = 0) -> np.ndarray:
    """A mask with one object."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2 : 5 + number % 5, 3 + number % 4 : 11] = True
    return mask


def save_image(path: Path, image: np.ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path, **options)
    return path


def save_mask(path: Path, mask: np.ndarray, **options) -> Path:
    """A mask of values 0 and 255."""
    return save_image(path, mask.astype(np.uint8) * 255, **options)


def save_pair(image: Path, mask: Path, number: int) -> None:
    save_image(image, pixels(number))
    save_mask(mask, disc(number))


def write_index(folder: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    path = folder / "index.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def indexed(folder: Path, splits: Sequence[str], **columns: Sequence[str]) -> Path:
    """A folder with an index: a row for every split, and further columns."""
    rows = []
    for n, split in enumerate(splits):
        save_pair(folder / f"images/{n:02}.png", folder / f"masks/{n:02}.png", n)
        row = {"image": f"images/{n:02}.png", "mask": f"masks/{n:02}.png", "split": split, "fg_fraction": "0.1"}
        rows.append(row | {name: values[n] for name, values in columns.items()})
    write_index(folder, rows)
    return folder
