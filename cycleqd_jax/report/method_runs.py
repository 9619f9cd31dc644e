"""The runs of one method of a comparison, and what they evaluated and found."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.report.history import History, load_history
from cycleqd_jax.report.labels import compared_label, method_label
from cycleqd_jax.report.read import load_selection
from cycleqd_jax.types import InputError

__all__ = ["MethodRuns", "best_so_far", "effort"]


@dataclasses.dataclass(frozen=True)
class MethodRuns:
    """The finished runs of a method.

    Attributes:
        name: the name of the method.
        search: its search method, with which the names of its rows begin in the run folders.
        label: its display name; None is that of the search method if that is its name, or else its name.
        folders: seed → run folder.
    """

    name: str
    search: str
    label: str | None
    folders: Mapping[int, Path]

    @functools.cached_property
    def histories(self) -> dict[Path, History | None]:
        """Run folder → its journal; None where there is none."""
        return {folder: load_history(folder) for folder in self.folders.values()}

    def row(self, found: str) -> str:
        """The name of a row in the comparison: that of the run, beginning with the method's name."""
        if found == self.search or found.startswith(f"{self.search}_"):
            return self.name + found.removeprefix(self.search)
        return f"{self.name}_{found}"

    def row_label(self, found: str) -> str:
        """The display name of a row."""
        search, text = method_label(self.search), method_label(found)
        shown = compared_label(self.name, self.search, self.label)
        return shown + text.removeprefix(search) if text.startswith(search) else f"{shown}: {text}"


def effort(runs: MethodRuns) -> dict[str, Any]:
    """What the runs of a method evaluated.

    Returns:
        JSON-ready: the ``search`` method, and lists with a number for each run: ``individuals`` that the search evaluated, the
        experts included, and the ``items`` (problems) that they were scored on; ``candidates`` for the final model, with the
        soups that were tried, and the ``validation_items`` that they were scored on.
    """
    found: dict[str, Any] = {"search": runs.search}
    found |= {key: [] for key in ("individuals", "items", "candidates", "validation_items")}
    for folder, history in runs.histories.items():
        selection = load_selection(folder)
        individuals = [] if history is None else history.individuals
        candidates = [] if selection is None else selection["candidates"]
        found["individuals"].append(len(individuals))
        found["items"].append(sum(len(scores) for one in individuals for scores in one.items.values()))
        found["candidates"].append(len(candidates))
        found["validation_items"].append(sum(len(scores) for one in candidates for scores in one["items"].values()))
    return found


def best_so_far(runs: MethodRuns) -> np.ndarray:
    """The best average on the train problems of any individual so far, Float ``[run, individual]``.

    Runs that evaluated fewer individuals than others end the curves of all.

    Raises:
        InputError: a run has no journal, or an empty one.
    """
    curves = []
    for folder, history in runs.histories.items():
        if history is None or not history.individuals:
            raise InputError(f"expected grid.json and individuals in history.jsonl, got none in {folder}; run the search first")
        curves.append(np.fmax.accumulate(history.averages))
    shortest = min(map(len, curves))
    return np.stack([curve[:shortest] for curve in curves])
