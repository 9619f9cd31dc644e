"""A segmentation task: a folder of images with masks, in three splits, and the metric of its field."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from jaxtyping import Bool, Float, UInt8

from cycleqd_jax.files import digest
from cycleqd_jax.tasks.options import check_option, option_error
from cycleqd_jax.tasks.records import Row, by_digest, split_evenly, validation_slice
from cycleqd_jax.tasks.segmentation.damage import check_undamaged
from cycleqd_jax.tasks.segmentation.images import read_image, read_mask
from cycleqd_jax.tasks.segmentation.layouts import Pair, find_pairs
from cycleqd_jax.tasks.segmentation.metrics import METRICS
from cycleqd_jax.tasks.segmentation.prompts import image_box, item_generator, mask_box, widened_box
from cycleqd_jax.types import SPLITS, InputError, SegmentationItem, Split

__all__ = ["SegmentationFolder"]

# Part of every fingerprint. Raise it with each change of images, masks, prompts or metrics.
_VERSION = 2

ScoreName = Literal["iou", "dice", "s_measure", "e_measure", "weighted_f"]


class SegmentationFolder:
    """A folder of images with masks. Implements the ``SegmentationTask`` contract.

    Splits that the folder gives are kept. Otherwise it is split evenly by the SHA-256 digests of the image files; equal files,
    and images of one group, never come into two splits. Validation items that the folder does not give are taken from the
    train items: those after the first ``train_size``, in the order of the digests.

    The selected files are checked before the constructor returns. Images are read from disk when they are used.

    Attributes:
        name: name of the task in configs, journals and tables.
        pairs: the files of every split, in the order of the items.
    """

    def __init__(
        self,
        name: str,
        data: str | Path,
        *,
        score: ScoreName = "iou",
        prompt: Literal["box", "image"] = "box",
        jitter: int | float | None = None,
        seed: int = 0,
        threshold: int | None = None,
        train_size: int | None = None,
        validation_size: int | None = 32,
        test_size: int | None = None,
        workers: int = 4,
    ) -> None:
        """Finds the files, splits them, and reads the selected ones once.

        Args:
            name: name of the task.
            data: the folder; :mod:`cycleqd_jax.tasks.segmentation.layouts` has the layouts that are known.
            score: a metric of :data:`~cycleqd_jax.tasks.segmentation.metrics.METRICS`.
            prompt: ``"box"`` is the box of the true mask, ``"image"`` the whole image.
            jitter: the edges of the box are moved outwards by up to this many pixels of the model's input, whose longest side
                has 1024 (MedSAM: 20). Null leaves the box as it is. An item has the same box for every model.
            seed: of the jitter, at least 0.
            threshold: the smallest value of the object in a mask, at most 255. Null requires masks of two values.
            train_size: number of train items. Null uses all that validation leaves.
            validation_size: number of validation items. Null uses all that are given, or all train items after ``train_size``.
            test_size: number of test items. Null uses all.
            workers: number of threads that check the files.

        Raises:
            InputError: an option is wrong, there are too few images for the sizes, or a file is missing or refused; the message
                names it.
        """
        self.name = name
        self._check_options(
            score=(ScoreName, score),
            prompt=(Literal["box", "image"], prompt),
            jitter=(int | float | None, jitter),
            threshold=(int | None, threshold),
            train_size=(int | None, train_size),
            test_size=(int | None, test_size),
            workers=(int, workers),
        )
        for option, value, optional in (("seed", seed, False), ("validation_size", validation_size, True)):
            if (value is None and not optional) or (value is not None and (type(value) is not int or value < 0)):
                expected = f"a whole number of at least 0{' or null' if optional else ''}"
                raise option_error(name, option, expected, value)
        if threshold is not None and threshold > 255:
            raise option_error(name, "threshold", "at most 255", threshold)
        if jitter is not None and prompt == "image":
            raise option_error(name, "jitter", "null with the prompt image", jitter)
        self._score, self._metric = score, METRICS[score]
        self._prompt, self._jitter, self._seed, self._threshold = prompt, jitter, seed, threshold
        folder = Path(data)
        with ThreadPoolExecutor(workers) as pool:
            pairs = find_pairs(folder)
            contents = [*pool.map(lambda pair: _file_digest(pair.image), pairs)]
            rows = [
                Row({"id": content, "content": united}, pair.where)
                for pair, content, united in zip(pairs, contents, _united(pairs, contents), strict=True)
            ]
            split = _split(name, folder, pairs, rows, train_size, validation_size, test_size)
            by_where = {pair.where: pair for pair in pairs}
            self.pairs: dict[Split, list[Pair]] = {key: [by_where[row.where] for row in split[key]] for key in SPLITS}
            selected = [pair for key in SPLITS for pair in self.pairs[key]]
            masks = dict(zip((pair.where for pair in selected), pool.map(self._checked, selected), strict=True))
        self._digests = {key: [(row.id, masks[row.where]) for row in split[key]] for key in SPLITS}

    def _check_options(self, **options: tuple[Any, Any]) -> None:
        for option, (annotation, value) in options.items():
            check_option(self.name, option, annotation, value)

    def items(self, split: Split) -> Sequence[SegmentationItem]:
        """The items of a split, always in the same order. Each access to an item reads its files."""
        return _Items(self.pairs[split], self._item)

    def score(self, mask: Bool[np.ndarray, "height width"], item: SegmentationItem) -> float:
        """The score of a predicted mask by the metric of the task.

        Args:
            mask: the prediction, of the size of the image.
            item: one of :meth:`items`.

        Raises:
            InputError: the mask has another size.
        """
        if mask.shape != item.mask.shape:
            raise InputError(
                f"expected a mask of {_size(item.mask)} pixels, got {_size(mask)} for the image {item.name} of task "
                f"{self.name!r}; resize it to the size of the image"
            )
        return self._metric(mask, item.mask)

    def settings(self) -> dict[str, Any]:
        """Everything besides the files that affects prompts or scores; for fingerprints."""
        return {
            "score": self._score,
            "prompt": self._prompt,
            "jitter": self._jitter,
            "seed": self._seed,
            "threshold": self._threshold,
        }

    def problems(self, split: Split | None) -> Sequence[str]:
        """A digest of the files of every item, and of the settings that affect its prompt or score.

        Args:
            split: the items; None is those of train and validation.
        """
        splits: tuple[Split, ...] = ("train", "validation") if split is None else (split,)
        return [
            digest([_VERSION, type(self).__name__, self.settings(), pair.name, *files])
            for key in splits
            for pair, files in zip(self.pairs[key], self._digests[key], strict=True)
        ]

    def fingerprint(self, split: Split) -> str:
        """A digest of the items of a split: of their files, and of all settings that affect masks or prompts.

        The metric has no part in it, so experts for another metric are not trained again.
        """
        names = [pair.name for pair in self.pairs[split]]
        settings = {name: value for name, value in self.settings().items() if name != "score"}
        return digest([_VERSION, type(self).__name__, settings, self._digests[split], names])

    def _read(self, pair: Pair) -> tuple[UInt8[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]]:
        image, mask = read_image(pair.image), read_mask(pair.mask, self._threshold)
        if image.shape[:2] != mask.shape:
            raise InputError(
                f"expected a mask of {_size(image)} pixels, the size of {pair.image}, got {_size(mask)} in {pair.mask}; "
                "replace one of them"
            )
        return image, mask

    def _checked(self, pair: Pair) -> str:
        """The digest of the mask's file, once the pair is searched for damage and read."""
        for file in (pair.image, pair.mask):
            check_undamaged(file)
        self._read(pair)
        return _file_digest(pair.mask)

    def _item(self, pair: Pair) -> SegmentationItem:
        image, mask = self._read(pair)
        return SegmentationItem(pair.name, image, mask, self._box(pair.name, mask))

    def _box(self, name: str, mask: Bool[np.ndarray, "height width"]) -> Float[np.ndarray, " 4"]:
        height, width = mask.shape
        if self._prompt == "image":
            return image_box(height, width)
        box = mask_box(mask)
        return box if self._jitter is None else widened_box(box, height, width, self._jitter, item_generator(self._seed, name))


class _Items(Sequence[SegmentationItem]):
    """Items that are read from disk when they are used."""

    def __init__(self, pairs: Sequence[Pair], read: Callable[[Pair], SegmentationItem]) -> None:
        self._pairs, self._read = pairs, read

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, index: int) -> SegmentationItem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SegmentationItem]: ...
    def __getitem__(self, index: int | slice) -> SegmentationItem | Sequence[SegmentationItem]:
        if isinstance(index, slice):
            return _Items(self._pairs[index], self._read)
        return self._read(self._pairs[index])


def _united(pairs: Sequence[Pair], contents: Sequence[str]) -> list[str]:
    """A key for every pair, which is the same where images are equal or of one group, directly or through other images."""
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while parents.setdefault(key, key) != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for pair, content in zip(pairs, contents, strict=True):
        if pair.group:
            parents[root(f"group {pair.group}")] = root(content)
    return [root(content) for content in contents]


def _split(
    name: str,
    folder: Path,
    pairs: Sequence[Pair],
    rows: Sequence[Row],
    train_size: int | None,
    validation_size: int | None,
    test_size: int | None,
) -> dict[Split, list[Row]]:
    """The rows of every split."""
    given: dict[Split, list[Row]] = {key: [] for key in SPLITS}
    for pair, row in zip(pairs, rows, strict=True):
        given[pair.split or "train"].append(row)
    if pairs[0].split is None:
        train, test = split_evenly(given["train"])
    else:
        train, test = by_digest(given["train"]), by_digest(given["test"])
    where = f"{folder} of task {name!r}"
    for key, found in (("train", train), ("test", test)):
        if not found:
            raise InputError(f"expected at least one {key} image, got none in {where}; add some")
    validation = by_digest(given["validation"])
    _refuse_overlap(name, train, test, "train and test")
    _refuse_overlap(name, train, validation, "train and validation")
    _refuse_overlap(name, validation, test, "validation and test")
    if validation:
        train, validation = _first("train", train, train_size, where), _first("validation", validation, validation_size, where)
    else:
        train, validation = _hold_out(train, train_size, validation_size, where)
    return {"train": train, "validation": validation, "test": _first("test", test, test_size, where)}


def _refuse_overlap(name: str, rows: Sequence[Row], others: Sequence[Row], splits: str) -> None:
    seen = {row.problem: row for row in rows}
    for row in others:
        other = seen.get(row.problem)
        if other is not None:
            found = "equal images" if other.id == row.id else "images of one group"
            raise InputError(
                f"expected different images and groups for {splits}, got {found} in {other.where} and {row.where} of task "
                f"{name!r}; give them the same split, or remove one"
            )


def _first(split: str, rows: list[Row], size: int | None, where: str) -> list[Row]:
    if size is not None and size > len(rows):
        raise InputError(
            f"expected at least {size} {split} images for {split}_size {size}, got {len(rows)} in {where}; decrease it, or set "
            f"{split}_size: null, which takes all"
        )
    return rows if size is None else rows[:size]


def _hold_out(rows: list[Row], train_size: int | None, validation_size: int | None, where: str) -> tuple[list[Row], list[Row]]:
    """Train and validation rows, without a group in both: of a group that the sizes cut, one part is left out."""
    if validation_size == 0:
        return _first("train", rows, train_size, where), []
    held = validation_slice(len(rows), train_size, validation_size, where)
    train, validation = rows[: held.start], rows[held]
    if train_size is None:
        groups = {row.problem for row in validation}
        train = [row for row in train if row.problem not in groups]
    else:
        groups = {row.problem for row in train}
        validation = [row for row in rows[held.start :] if row.problem not in groups][:validation_size]
    if not train or not validation:
        raise InputError(
            f"expected images for both train and validation without a group in both, got none for "
            f"{'validation' if train else 'train'} in {where}; change train_size or validation_size"
        )
    return train, validation


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} × {image.shape[0]}"


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"expected a readable file, got {error.strerror or error} in {path}; check it") from error
