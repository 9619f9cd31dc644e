"""Pictures of a run of Segment Anything: test images with the truth, and with the masks of base, experts and final model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cycleqd_jax.evaluation import SegmentationEvaluator
from cycleqd_jax.files import make_folder, write_json
from cycleqd_jax.report.read import load_items, load_pictures
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.evolution import Evolution
from cycleqd_jax.runs.results.rows import found_rows
from cycleqd_jax.tasks.segmentation import SegmentationFolder, overlay
from cycleqd_jax.types import Params, ProblemSet

__all__ = ["draw_pictures", "pictures_are_drawn"]

EACH = 3
"""Test images of every task that are drawn."""

_GAP, _SIDE = 6, 224
"""Pixels between the parts of a picture, and of the longest side of a part."""

_TRUTH = 90, 200, 120
"""The colour of the truth; that of predictions is :func:`~cycleqd_jax.tasks.segmentation.overlay`'s."""


def draw_pictures(context: Context, evolution: Evolution) -> list[Path]:
    """Writes ``pictures/*.png`` and ``pictures/pictures.json``, which the report shows.

    The JSON has for every picture its ``file``, the ``task``, the name of the ``item``, the ``rows`` of the results table whose
    masks follow image and truth from left to right, and their ``scores``. The last row is the exported model. Pictures of these
    rows and items that are there already, with the scores of the results, are kept.

    Args:
        context: the context of the run.
        evolution: its evolution, which evolves first where that has not been done.

    Returns:
        The written files; none where the pictures are there.
    """
    if pictures_are_drawn(context.folder, _rows(context), context.tasks):
        return []
    final, models = evolution.final(), context.models
    evaluator = evolution.placement.ensure_evaluator()
    assert isinstance(evaluator, SegmentationEvaluator)
    rows: dict[str, Callable[[], Params]] = {"base": lambda: models.base}
    rows |= {f"expert/{name}": functools.partial(models.expert_params, name) for name in context.config.task_names}
    rows[_rows(context)[-1]] = functools.partial(evolution.placement.express, final.genome)
    tasks = [task for task in context.tasks if isinstance(task, SegmentationFolder)]
    chosen = [(task, item) for task in tasks for item in evaluator.items(task, "test")[:EACH]]
    masks = [evaluator.masks(make(), [item for _, item in chosen]) for make in rows.values()]
    folder = context.folder / "pictures"
    make_folder(folder)
    written, entries = [], []
    for i, (task, item) in enumerate(chosen):
        found = [of_row[i] for of_row in masks]
        parts = [overlay(item.image, box=item.box, longest_side=_SIDE)]
        parts += [overlay(item.image, item.mask, color=_TRUTH, longest_side=_SIDE)]
        parts += [overlay(item.image, mask, longest_side=_SIDE) for mask in found]
        written.append(folder / f"{task.name}-{i % EACH}.png")
        _beside(parts).save(written[-1])
        scores = [task.score(mask, item) for mask in found]
        entries.append({"file": written[-1].name, "task": task.name, "item": item.name, "rows": [*rows], "scores": scores})
    written.append(folder / "pictures.json")
    write_json(written[-1], entries)
    return written


def pictures_are_drawn(folder: Path, rows: Sequence[str], tasks: Sequence[ProblemSet]) -> bool:
    """Whether a run folder has the pictures of these rows, with the scores of its results.

    Args:
        folder: the run folder.
        rows: rows of the results table.
        tasks: the tasks. Only folders of images have pictures.
    """
    found = [(one.task, one.item, list(one.rows), list(one.scores)) for one in load_pictures(folder)]
    results, expected = load_items(folder), []
    for task in tasks:
        for i, pair in enumerate(task.pairs["test"][:EACH] if isinstance(task, SegmentationFolder) else ()):
            scores = [results.get(row, {}).get("test", {}).get(task.name, [])[i : i + 1] for row in rows]
            expected.append((task.name, pair.name, [*rows], [score for one in scores for score in one]))
    return found == expected


def _rows(context: Context) -> list[str]:
    """The rows of the results table that are drawn; the last is the exported model."""
    config = context.config
    exported = next(row for row, model in found_rows(config).items() if model == config.export.method)
    return ["base", *(f"expert/{name}" for name in config.task_names), exported]


def _beside(parts: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size, from left to right."""
    width, height = parts[0].size
    whole = Image.fromarray(np.full((height, len(parts) * (width + _GAP) - _GAP, 3), 255, np.uint8))
    for i, part in enumerate(parts):
        whole.paste(part, (i * (width + _GAP), 0))
    return whole
