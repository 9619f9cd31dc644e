"""Finds the pairs of image and mask in a folder: by ``index.csv``, or by the published layout of a data set.

An index has a line of column names. ``image`` and ``mask`` are paths from its folder. ``split`` is ``train``, ``validation``
(or ``val``) or ``test``, in all rows or in none. ``group`` names what must stay in one split, such as a video or a patient.
Other columns are ignored.

The layouts:

- COD10K: ``Train/Image``, ``Train/GT_Object``, and the same in ``Test``. Images without an object (``NonCAM``) are left out.
- CAMO: ``Images/Train``, ``Images/Test``, ``GT``.
- ISIC 2017: ``ISIC-2017_Training_Data``, ``ISIC-2017_Training_Part1_GroundTruth``, and the same with ``Validation`` and
  ``Test_v2``.
- CVC-ClinicDB: ``Original`` and ``Ground Truth``, or both in ``PNG`` or ``TIF``, and ``metadata.csv``. No splits; frames of one
  video (``sequence_id``) are a group.
- Leaf disease: ``data/images``, ``data/masks``. No splits. ``aug_data``, which has altered copies of them, is left out.
- Kvasir-SEG and others: ``images``, ``masks``, or ``Imgs``, ``GT``. No splits.

None of these folders may have further folders with images: they would not be read.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path

from cycleqd_jax.tasks.segmentation.images import is_image_file
from cycleqd_jax.types import InputError, Split

__all__ = ["Pair", "find_pairs"]

_SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_COD10K_IMAGES, _COD10K_MASKS = ("Image", "Images", "Imgs"), ("GT_Object", "GT")
_COD10K_EMPTY = "NonCAM"  # in the names of images without an object
_ISIC: dict[Split, str] = {"train": "Training", "validation": "Validation", "test": "Test_v2"}
_ISIC_MASK, _ISIC_OTHER = "_segmentation", "_superpixels"  # ends of file names
_FLAT = (("images", "masks"), ("Imgs", "GT"))
_LAYOUTS = (
    "index.csv, images and masks (Kvasir-SEG), data/images and data/masks (leaf disease), Train/Image and Train/GT_Object "
    "(COD10K), Images/Train and GT (CAMO), ISIC-2017_Training_Data (ISIC 2017), or Original and Ground Truth (CVC-ClinicDB)"
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image file with its mask file.

    Attributes:
        name: path of the image from the folder, without the suffix.
        image: path of the image.
        mask: path of the mask.
        where: the row of the index, or the path of the image, for messages.
        split: as the index or the layout gives it; None if it gives none.
        group: what must stay in one split; empty if the image is a group of its own.
    """

    name: str
    image: Path
    mask: Path
    where: str
    split: Split | None = None
    group: str = ""


def find_pairs(folder: Path) -> list[Pair]:
    """All pairs of a folder, ordered by name; of an index, in the order of its rows.

    The files are not opened.

    Raises:
        InputError: the folder is missing or has no known layout, there is no pair, an image has no mask, a mask has no image,
            images are in folders of a folder of images, or the index is malformed, has a file as a mask twice, or has one as
            image and mask.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder of images and masks, got no folder at {folder}; check the path in the config")
    try:
        pairs = _found(folder)
    except OSError as error:
        raise InputError(f"expected a readable folder, got {error.strerror or error} in {folder}; check it") from error
    if not pairs:
        raise InputError(f"expected at least one image with a mask, got none in {folder}; add files")
    seen: dict[str, Pair] = {}
    for pair in pairs:
        if pair.name in seen:
            raise InputError(
                f"expected different names of images ({pair.name} is also in {seen[pair.name].where}), got it again in "
                f"{pair.where}; remove or rename one"
            )
        seen[pair.name] = pair
    _check_masks(pairs)
    return pairs


def _found(folder: Path) -> list[Pair]:
    if (folder / "index.csv").is_file():
        return _from_index(folder / "index.csv")
    if folder.name == "aug_data":
        raise InputError(
            f"expected original images, got augmented copies in {folder}; give the folder that has data/images and data/masks"
        )
    for data in (folder, folder / "data"):
        for images, masks in _FLAT:
            if (data / images).is_dir() and (data / masks).is_dir():
                return _matched(folder, _files(data / images), data / masks)
    for find in (_from_cod10k, _from_camo, _from_isic, _from_clinicdb):
        pairs = find(folder)
        if pairs is not None:
            return pairs
    there = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(there[:5]) + (", …" if len(there) > 5 else "")
    raise InputError(f"expected {_LAYOUTS}, got {shown or 'nothing'} in {folder}; write an index.csv")


def _from_index(path: Path) -> list[Pair]:
    pairs = []
    for where, row in _csv_rows(path, ("image", "mask")):
        split = row.get("split") or ""
        if split and split not in _SPLITS:
            raise InputError(f"expected split train, validation or test, got {split!r} in {where}; correct it")
        image, mask = (path.parent / row[column] for column in ("image", "mask"))
        for file in (image, mask):
            if not file.is_file():
                raise InputError(f"expected the file of {where}, got no file at {file}; add it, or remove the row")
        name = posixpath.normpath(Path(row["image"]).with_suffix("").as_posix())
        pairs.append(Pair(name, image, mask, where, _SPLITS.get(split), row.get("group") or ""))
    without = [pair for pair in pairs if pair.split is None]
    if without and len(without) < len(pairs):
        raise InputError(f"expected a split in all rows or in none, got none in {without[0].where}; add it")
    return pairs


def _check_masks(pairs: list[Pair]) -> None:
    """Raises where the file of a mask is also that of another row: a copied row with one cell changed would go unnoticed."""
    images = {os.path.normpath(pair.image): pair for pair in pairs}
    masks: dict[str, Pair] = {}
    for pair in pairs:
        mask = os.path.normpath(pair.mask)
        other = images.get(mask)
        if other is not None:
            raise InputError(
                f"expected a mask, got the file that is the image in {other.where}, in {pair.where}; correct the row"
            )
        other = masks.setdefault(mask, pair)
        if other is not pair:
            raise InputError(
                f"expected a mask of its own for every image, got {pair.mask} in {pair.where} and in {other.where}; correct a "
                "row, or copy the mask"
            )


def _csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The rows of a CSV file that has some columns, each with its place for messages; these values are not empty."""
    try:
        text = path.read_text("utf-8-sig")
        reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
        found = tuple(reader.fieldnames or ())
        rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a readable CSV file in UTF-8, got {error} in {path}; replace it") from error
    missing = [column for column in columns if column not in found]
    if missing:
        got = ", ".join(found) or "an empty file"
        raise InputError(f"expected the columns {', '.join(columns)}, got {got} in {path}; add a line of column names")
    twice = next((column for column in found if column and found.count(column) > 1), None)
    if twice is not None:
        raise InputError(f"expected different names of columns, got {twice!r} twice in {path}; rename or remove one")
    for where, row in rows:
        if None in row or None in row.values():
            raise InputError(f"expected {len(found)} values, got another number in {where}; correct the row")
        for column in columns:
            if not row[column].strip():
                raise InputError(f"expected a value in column {column}, got nothing in {where}; correct or remove the row")
        yield where, {name: value.strip() for name, value in row.items()}


def _from_cod10k(folder: Path) -> list[Pair] | None:
    pairs: list[Pair] = []
    splits: dict[str, Split] = {"Train": "train", "Test": "test"}
    for part, split in splits.items():
        images, masks = _first(folder / part, _COD10K_IMAGES), _first(folder / part, _COD10K_MASKS)
        if images is None or masks is None:
            return None
        files = [file for file in _files(images) if _COD10K_EMPTY not in file.name]
        pairs += _matched(folder, files, masks, split, without=_COD10K_EMPTY)
    return pairs


def _from_camo(folder: Path) -> list[Pair] | None:
    images, masks = folder / "Images", folder / "GT"
    if not all(path.is_dir() for path in (images / "Train", images / "Test", masks)):
        return None
    files = {file: split for part, split in (("Train", "train"), ("Test", "test")) for file in _files(images / part)}
    return [dataclasses.replace(pair, split=_SPLITS[files[pair.image]]) for pair in _matched(folder, [*files], masks)]


def _from_isic(folder: Path) -> list[Pair] | None:
    pairs: list[Pair] = []
    for split, part in _ISIC.items():
        images, masks = folder / f"ISIC-2017_{part}_Data", folder / f"ISIC-2017_{part}_Part1_GroundTruth"
        if images.is_dir():
            files = [file for file in _files(images) if not file.stem.endswith(_ISIC_OTHER)]
            pairs += _matched(folder, files, masks, split, end=_ISIC_MASK)
    return pairs or None


def _from_clinicdb(folder: Path) -> list[Pair] | None:
    for data in (folder / "PNG", folder / "TIF", folder):
        images, masks = data / "Original", data / "Ground Truth"
        if images.is_dir() and masks.is_dir():
            break
    else:
        return None
    metadata = folder / "metadata.csv"
    if not metadata.is_file():
        raise InputError(
            f"expected the videos of the frames of CVC-ClinicDB, whose frames are too alike to be split one by one, got no "
            f"metadata.csv in {folder}; add it with the columns frame_id and sequence_id, or write an index.csv with splits"
        )
    videos = {row["frame_id"]: row["sequence_id"] for _, row in _csv_rows(metadata, ("frame_id", "sequence_id"))}
    pairs = _matched(folder, _files(images), masks)
    for pair in pairs:
        if pair.image.stem not in videos:
            raise InputError(
                f"expected a row for frame {pair.image.stem}, got none in {metadata}; add it, or remove {pair.image}"
            )
    return [dataclasses.replace(pair, group=f"sequence {videos[pair.image.stem]}") for pair in pairs]


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _files(folder: Path) -> list[Path]:
    """The image files of a folder.

    Raises:
        InputError: a folder in it has images too. Hidden folders, such as those of editors, do not count.
    """
    found = sorted(folder.iterdir())
    for path in found:
        if path.is_dir() and any(_is_shown_image(file.relative_to(folder)) for file in path.rglob("*")):
            raise InputError(
                f"expected all images directly in {folder}, got more in its folder {path.name}; move them there, or write an "
                "index.csv"
            )
    return [path for path in found if is_image_file(path)]


def _is_shown_image(path: Path) -> bool:
    return is_image_file(path) and not any(part.startswith(".") for part in path.parts)


def _matched(
    folder: Path, images: list[Path], masks: Path, split: Split | None = None, *, end: str = "", without: str | None = None
) -> list[Pair]:
    """Pairs of images with the masks of the same name.

    Args:
        folder: which the names of the pairs start from.
        images: the image files.
        masks: the folder of the masks.
        split: of all pairs.
        end: what the name of a mask has after that of its image.
        without: masks with this in their name are left out.

    Raises:
        InputError: an image has no mask, a mask no image, or one has two of the other.
    """
    found: dict[str, Path] = {}
    for mask in _files(masks) if masks.is_dir() else []:
        if without is not None and without in mask.name:
            continue
        if mask.stem in found:
            raise InputError(f"expected one mask of an image, got {found[mask.stem].name} too in {mask}; remove one")
        found[mask.stem] = mask
    pairs, seen = [], dict[str, Path]()
    for image in images:
        other = seen.setdefault(image.stem, image)
        if other is not image:
            raise InputError(
                f"expected one image of a mask, got {other.name} of the same name too in {image}; rename one with its mask"
            )
        mask = found.pop(image.stem + end, None)
        if mask is None:
            raise InputError(
                f"expected a mask {image.stem}{end} in {masks}, got none for {image}; add the mask, or remove the image"
            )
        name = image.relative_to(folder).with_suffix("").as_posix()
        pairs.append(Pair(name, image, mask, str(image), split))
    if found:
        mask = next(iter(found.values()))
        raise InputError(f"expected an image of every mask, got none for {mask}; add the image, or remove the mask")
    return pairs
