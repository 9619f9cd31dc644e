"""Pictures of a run of Segment Anything: test images with the truth, and with the masks of base, experts and final model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cycleqd_jax.evaluation import SegmentationEvaluator
from cycleqd_jax.files import make_folder, write_json
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.evolution import Evolution
from cycleqd_jax.tasks.segmentation import SegmentationFolder, overlay
from cycleqd_jax.types import Params

__all__ = ["draw_pictures"]

EACH = 3
"""Test images of every task that are drawn."""

_GAP, _SIDE = 6, 224
"""Pixels between the parts of a picture, and of the longest side of a part."""

_TRUTH = 90, 200, 120
"""The colour of the truth; that of predictions is :func:`~cycleqd_jax.tasks.segmentation.overlay`'s."""


def draw_pictures(context: Context, evolution: Evolution) -> list[Path]:
    """Writes ``pictures/*.png`` and ``pictures/pictures.json``, which the report shows.

    The JSON has for every picture its ``file``, the ``task``, the name of the ``item``, the ``rows`` of the results table whose
    masks follow image and truth from left to right, and their ``scores``. The last row is the exported model.

    Args:
        context: the context of the run.
        evolution: its evolution, which evolves first where that has not been done.

    Returns:
        The written files.
    """
    final, models = evolution.final(), context.models
    evaluator = evolution.ensure_evaluator()
    assert isinstance(evaluator, SegmentationEvaluator)
    rows: dict[str, Callable[[], Params]] = {"base": lambda: models.base}
    rows |= {f"expert/{name}": functools.partial(models.expert_params, name) for name in context.config.task_names}
    rows[_name(context)] = functools.partial(evolution.express, final.genome)
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


def _name(context: Context) -> str:
    """The row of the results table that the exported model is."""
    method, export = context.config.search.method, context.config.export.method
    if export in ("selected", "soup"):
        return f"{method}_{export}"
    return f"{method}_best_elite" if method == "cycleqd" and export == "best_elite" else method


def _beside(parts: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size, from left to right."""
    width, height = parts[0].size
    whole = Image.fromarray(np.full((height, len(parts) * (width + _GAP) - _GAP, 3), 255, np.uint8))
    for i, part in enumerate(parts):
        whole.paste(part, (i * (width + _GAP), 0))
    return whole
