"""What a run of Segment Anything works on: its image folders and its models, before weights are read."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
import typing
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cycleqd_jax.config import SEGMENTATION, RunConfig, TaskConfig
from cycleqd_jax.files import digest
from cycleqd_jax.machine import cpu_count
from cycleqd_jax.models import sam
from cycleqd_jax.models.files import peft
from cycleqd_jax.tasks.options import check_option
from cycleqd_jax.tasks.segmentation import SegmentationFolder
from cycleqd_jax.tasks.segmentation.layouts import find_pairs
from cycleqd_jax.types import InputError, SegmentationItem, Split

__all__ = ["FolderInput", "images_digest", "resolve_sam", "training_start"]

_OPTIONS = tuple(
    name
    for name in inspect.signature(SegmentationFolder.__init__).parameters
    if name not in ("self", "name", "data", "train_size", "validation_size", "test_size", "workers")
)


@dataclasses.dataclass(frozen=True)
class FolderInput:
    """A segmentation task of a run before its images are read.

    Attributes:
        config: the config of the task.
    """

    config: TaskConfig

    def check(self) -> None:
        """Checks the options.

        Raises:
            InputError: an option is unknown or has another type.
        """
        hints = typing.get_type_hints(SegmentationFolder.__init__)
        for option, value in self.config.options.items():
            if option not in _OPTIONS:
                raise InputError(
                    f"expected an option of {SEGMENTATION} ({', '.join(_OPTIONS)}), got {option!r} in task "
                    f"{self.config.name!r}; correct the config"
                )
            if option != "seed":  # it may be 0, which the folder checks
                check_option(self.config.name, option, hints[option], value)

    def open(self) -> SegmentationFolder:
        """Reads and checks all images.

        Validation images are taken out of the train images first, unless the folder gives them. Of the remaining train images
        the first ``train_size`` are scored.

        Raises:
            InputError: an option is wrong, a file is missing or refused, or there are too few images.
        """
        config, options = self.config, dict[str, Any](self.config.options)
        assert config.train is not None
        cuts = config.validation_size is None and all(pair.split != "validation" for pair in find_pairs(Path(config.train)))
        folder = SegmentationFolder(
            config.name,
            config.train,
            train_size=config.train_size if cuts else None,  # validation has what train leaves
            validation_size=config.validation_size,
            test_size=config.test_size,
            workers=cpu_count(),
            **options,
        )
        count = len(folder.pairs["train"])
        if config.train_size is not None and config.train_size > count:
            raise InputError(
                f"expected at least {config.train_size} train images for train_size {config.train_size}, got {count} in "
                f"{config.train} of task {config.name!r}; decrease it, or validation_size"
            )
        return folder

    def size(self, split: Split) -> int:
        """Number of images of a split that a model is scored on.

        The folder is read, unless it is elsewhere and the config has the size.

        Raises:
            InputError: see :meth:`open`.
        """
        config = self.config
        given = {"train": config.train_size, "validation": config.validation_size, "test": config.test_size}[split]
        if given is not None and config.train is not None and not Path(config.train).exists():
            return given
        count = len(self.open().pairs[split])
        return min(count, self.config.train_size or count) if split == "train" else count

    def training_items(self, folder: SegmentationFolder) -> Sequence[SegmentationItem]:
        """The images that the expert of the task is fine-tuned on. No validation or test image is among them.

        Each access to an image reads its files.

        Raises:
            InputError: no image is left for fine-tuning.
        """
        items = folder.items("train")
        return items[training_start(self.config, len(items), "images") :][: self.config.finetune_size]


def training_start(config: TaskConfig, count: int, what: str) -> int:
    """How many of the first train problems an expert is not fine-tuned on, because the search scores them.

    Args:
        config: the task.
        count: number of train problems, without those for validation.
        what: the problems, in messages.

    Raises:
        InputError: none is left.
    """
    if config.finetune_on_train:
        return 0
    scored = config.train_size or count
    if scored >= count:
        raise InputError(
            f"expected more than {scored} train {what} of task {config.name!r} beside those for validation, got {count}, so "
            "none is left for fine-tuning; decrease train_size or validation_size, or set finetune_on_train: true"
        )
    return scored


def images_digest(folder: str | Path) -> str:
    """Sixteen hexadecimal digits that identify the images of a folder, their masks, names, splits and groups.

    Raises:
        InputError: the folder has no known layout, or its index is malformed.
        OSError: a file can't be read.
    """
    pairs = find_pairs(Path(folder))
    files = [file for pair in pairs for file in (pair.image, pair.mask)]
    with ThreadPoolExecutor(cpu_count()) as threads:
        contents = [*threads.map(lambda file: hashlib.sha256(file.read_bytes()).hexdigest(), files)]
    return digest([[pair.name, pair.split, pair.group] for pair in pairs] + [contents], digits=16)


def resolve_sam(config: RunConfig) -> sam.SamConfig:
    """The architecture of base and experts, with the dtype they are evaluated in, from configs and headers alone.

    Raises:
        InputError: a model is not here, is no Segment Anything model, or its tensors do not belong to its config; or an expert
            has another architecture or dtype than the base.
    """
    model = config.model
    assert model.base is not None
    base = sam.read_config(_folder("the base", model.base))
    for name, path in config.given_experts.items():
        folder = _folder(f"the expert of task {name!r}", path)
        found = sam.read_config(folder)
        for field in dataclasses.fields(sam.SamConfig):
            ours, theirs = getattr(base, field.name), getattr(found, field.name)
            if field.compare and ours != theirs and not (field.name == "dtype" and model.dtype):
                raise InputError(
                    f"expected {field.name} {ours!r} of the base {model.base}, got {theirs!r} in the expert {folder}; "
                    + ("set model.dtype to cast all models" if field.name == "dtype" else "use fine-tunings of one base")
                )
    return base.replace(dtype=model.dtype or base.dtype)


def _folder(what: str, model: str) -> Path:
    if not os.path.isdir(model):
        raise InputError(
            f"expected {what} to be a folder of Segment Anything on this machine, got {model}; correct the path, or download "
            "the model"
        )
    if peft.is_adapter(Path(model)):
        raise InputError(
            f"expected {what} to be a whole model of Segment Anything, got the adapter {model}; multiply it out into the base"
        )
    return Path(model)
