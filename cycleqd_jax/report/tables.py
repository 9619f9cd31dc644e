"""The results table: scores of every method on every task and split, of one run or of several."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cycleqd_jax.report.history import load_grid
from cycleqd_jax.report.read import load_results
from cycleqd_jax.types import InputError

__all__ = ["AVERAGE", "SEARCHES", "ResultsTable", "method_label", "results_table"]

AVERAGE = "average"
_SPLITS = ("test", "train")
_LABELS = {
    "base": "Base model",
    "finetune_all": "Fine-tuned on all data (steps of one expert)",
    "finetune_all_longer": "Fine-tuned on all data (steps of all experts)",
    "uniform_merge": "Uniform merge",
    "cycleqd_best_elite": "CycleQD, best elite",
}
SEARCHES = {
    "random": "Random search",
    "cmaes": "CMA-ES",
    "nsga2": "NSGA-II",
    "qd": "Plain QD",
    "dns": "Dominated Novelty Search",
    "cycleqd": "CycleQD",
}
"""The display name of every search method. Its row is the model that the method ends with."""


def method_label(method: str) -> str:
    """The display name of a method: ``"expert/mbpp"`` → ``"Expert: mbpp"``."""
    if method.startswith("expert/"):
        return f"Expert: {method.removeprefix('expert/')}"
    return _LABELS.get(method) or SEARCHES.get(method, method)


@dataclasses.dataclass(frozen=True)
class ResultsTable:
    """Scores of methods on tasks.

    Attributes:
        methods: names of the rows, the base first and the searches last.
        splits: the splits with scores, ``test`` first.
        columns: the tasks and ``"average"``.
        values: split → scores in [0, 1], Float ``[run, method, column]``; NaN where a run has no score.
    """

    methods: tuple[str, ...]
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    values: dict[str, np.ndarray]

    @property
    def runs(self) -> int:
        """Number of runs."""
        return len(next(iter(self.values.values()))) if self.values else 0

    def count(self, split: str) -> np.ndarray:
        """Number of runs with a score, Int ``[method, column]``."""
        return np.isfinite(self.values[split]).sum(axis=0)

    def mean(self, split: str) -> np.ndarray:
        """Mean over the runs with a score, Float ``[method, column]``; NaN where no run has one."""
        count = self.count(split)
        total = np.nansum(self.values[split], axis=0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def std(self, split: str) -> np.ndarray:
        """Sample standard deviation over runs (n - 1), Float ``[method, column]``; NaN with fewer than two."""
        count = self.count(split)
        squares = np.nansum((self.values[split] - self.mean(split)) ** 2, axis=0)
        return np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)

    def best(self, split: str) -> np.ndarray:
        """Whether a mean is the highest of its column as printed, Bool ``[method, column]``. Ties are all marked."""
        shown = np.round(self.mean(split) * 100, 1)
        if not len(shown):
            return np.zeros(shown.shape, bool)
        return shown == np.where(np.isnan(shown), -np.inf, shown).max(axis=0)

    def cell(self, split: str, method: int, column: int) -> str:
        """A score in percent as printed: ``"52.4"``, ``"52.4 ± 0.8"`` over several runs, ``"–"`` if missing."""
        mean, std = self.mean(split)[method, column], self.std(split)[method, column]
        if np.isnan(mean):
            return "–"
        return f"{mean * 100:.1f}" + (f" ± {std * 100:.1f}" if np.isfinite(std) else "")

    def caption(self) -> str:
        """One line that explains the numbers."""
        over = f"; mean ± standard deviation over {self.runs} runs" if self.runs > 1 else ""
        return f"Scores in percent{over}. The best of each column is marked."

    def markdown(self) -> str:
        """The table as GitHub-flavoured Markdown, one table per split, with the best of each column in bold."""
        parts = []
        for split in self.splits:
            best = self.best(split)
            names = ["method", *self.columns]
            lines = [
                f"**{split}**",
                "",
                "| " + " | ".join(_markdown(name) for name in names) + " |",
                "|---" + "|---:" * len(self.columns) + "|",
            ]
            for m, method in enumerate(self.methods):
                cells = [self.cell(split, m, c) for c in range(len(self.columns))]
                cells = [f"**{cell}**" if best[m, c] else cell for c, cell in enumerate(cells)]
                lines.append("| " + " | ".join([_markdown(method_label(method)), *cells]) + " |")
            parts.append("\n".join(lines))
        return "\n\n".join([*parts, self.caption().replace("is marked", "is bold")]) + "\n"

    def csv(self) -> str:
        """The table as tidy CSV, ``method,split,task,mean,std,runs,best``, with scores in [0, 1]."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["method", "split", "task", "mean", "std", "runs", "best"])
        for split in self.splits:
            mean, std, count, best = self.mean(split), self.std(split), self.count(split), self.best(split)
            for m, method in enumerate(self.methods):
                for c, column in enumerate(self.columns):
                    if count[m, c]:
                        spread = f"{std[m, c]:.6g}" if count[m, c] > 1 else ""
                        row = [method, split, column, f"{mean[m, c]:.6g}", spread, count[m, c], int(best[m, c])]
                        writer.writerow(row)
        return out.getvalue()

    def text(self, color: bool = False) -> str:
        """The table for terminals, with a star at the best of each column.

        Args:
            color: whether to print the best in bold (ANSI) too.
        """
        names = [method_label(method) for method in self.methods]
        first = max(map(len, ["method", *names]))
        cells = {s: [[self.cell(s, m, c) for c in range(len(self.columns))] for m in range(len(names))] for s in self.splits}
        widths = [
            max(len(column), *(len(row[c]) for rows in cells.values() for row in rows), 4)
            for c, column in enumerate(self.columns)
        ]
        lines = []
        for split in self.splits:
            best = self.best(split)
            head = "  ".join(f"{column:>{width}} " for column, width in zip(self.columns, widths, strict=True))
            lines += [f"{split:<{first}}  {head}".rstrip(), "─" * (first + sum(widths) + 3 * len(widths))]
            for m, name in enumerate(names):
                shown = []
                for c, width in enumerate(widths):
                    value = f"{cells[split][m][c]:>{width}}" + ("*" if best[m, c] else " ")
                    shown.append(f"\x1b[1m{value}\x1b[0m" if color and best[m, c] else value)
                lines.append(f"{name:<{first}}  {'  '.join(shown)}".rstrip())
            lines.append("")
        return "\n".join([*lines, self.caption().replace("is marked", "has a star")]) + "\n"


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _order(method: str) -> int:
    if method == "base":
        return 0
    if method.startswith("expert/"):
        return 1
    return 3 + list(SEARCHES).index(method) if method in SEARCHES else 2


def results_table(run_folders: Path | Sequence[Path]) -> ResultsTable:
    """The results of one run, or of several runs (seeds) as mean ± standard deviation.

    Methods and splits may be missing from some runs. An average that a run lacks is computed if all its tasks have scores.

    Args:
        run_folders: one or more run folders with a ``tables/results.json``.

    Raises:
        InputError: if a folder has no results, or if the runs have different tasks.
    """
    folders = [Path(run_folders)] if isinstance(run_folders, (str, Path)) else [Path(folder) for folder in run_folders]
    if not folders:
        raise InputError("expected one run folder or more for a results table, got none; give the folders")
    loaded = []
    for folder in folders:
        results = load_results(folder)
        if results is None:
            raise InputError(
                f"expected results in {folder / 'tables' / 'results.json'}, got no such file; run the evaluation first"
            )
        grid = load_grid(folder)
        found = dict.fromkeys(
            task for splits in results["methods"].values() for s in splits.values() for task in s if task != AVERAGE
        )
        known = grid.tasks if grid else ()
        loaded.append((results["methods"], tuple([*known, *(task for task in found if task not in known)])))
    tasks = loaded[0][1]
    for folder, (_, others) in zip(folders, loaded, strict=True):
        if set(others) != set(tasks):
            raise InputError(
                f"expected the tasks {', '.join(tasks)} of {folders[0]} in every run, got {', '.join(others)} in {folder}; "
                "combine only runs of the same tasks"
            )
    names = dict.fromkeys(method for methods, _ in loaded for method in methods)
    methods = tuple(sorted(names, key=_order))
    columns = (*tasks, AVERAGE)
    values: dict[str, np.ndarray] = {}
    for split in _SPLITS:
        table = np.full((len(loaded), len(methods), len(columns)), np.nan)
        for r, (entries, _) in enumerate(loaded):
            for m, method in enumerate(methods):
                scores = entries.get(method, {}).get(split, {})
                for c, column in enumerate(columns):
                    if scores.get(column) is not None:
                        table[r, m, c] = float(scores[column])
                if np.isnan(table[r, m, -1]) and tasks:
                    table[r, m, -1] = table[r, m, :-1].mean()
        if np.isfinite(table).any():
            values[split] = table
    return ResultsTable(methods, tuple(values), columns, values)
