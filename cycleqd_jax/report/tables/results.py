"""The results table: scores of every method on every task and split, of one run or of several."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from cycleqd_jax.report.history import load_grid
from cycleqd_jax.report.labels import SEARCHES, method_label
from cycleqd_jax.report.read import load_items, load_results
from cycleqd_jax.report.tables import formats
from cycleqd_jax.statistics import Interval, difference, mean_interval, over_seeds
from cycleqd_jax.types import InputError

__all__ = ["AVERAGE", "ResultsTable", "results_table"]

AVERAGE = "average"
"""The name of the column with the mean over tasks."""

_SPLITS = ("test", "train")


@dataclasses.dataclass(frozen=True)
class ResultsTable:
    """Scores of methods on tasks.

    Attributes:
        methods: names of the rows, the base first and the searches last.
        splits: the splits with scores, ``test`` first.
        columns: the tasks and ``"average"``.
        values: split → scores in [0, 1], Float ``[run, method, column]``; NaN where a run has no score.
        items: method → split → task → the score of every problem, of a single run; empty for several runs.
    """

    methods: tuple[str, ...]
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    values: dict[str, np.ndarray]
    items: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]] = dataclasses.field(default_factory=dict)

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
        """Which cells are marked, Bool ``[method, column]``.

        A mean is marked if it is the highest of its column as printed, and above another one. Where the table has intervals,
        the interval of its difference to every other method with a mean must lie above zero, so there is no mark where a
        difference has no interval. Methods with the same results on every problem count as one: they may have the same
        weights. Without intervals ties are all marked.
        """
        means = self.mean(split)
        printed = [float(formats.percent(mean)) if np.isfinite(mean) else np.nan for mean in means.flat]
        shown = np.array(printed).reshape(means.shape)
        if not len(shown):
            return np.zeros(shown.shape, bool)
        rows = range(len(shown))
        highest = shown == np.where(np.isnan(shown), -np.inf, shown).max(axis=0)
        has_intervals = any(self.interval(split, m, c) for m in rows for c in range(len(self.columns)))
        for m, c in np.argwhere(highest):
            others = [o for o in rows if not np.isnan(shown[o, c]) and not self._equal(split, int(m), o)]
            if has_intervals:
                found = [self.difference(split, int(m), other, int(c)) for other in others]
                highest[m, c] = bool(found) and all(one is not None and one.above_zero for one in found)
            else:
                highest[m, c] = any(shown[other, c] < shown[m, c] for other in others)
        return highest

    def interval(self, split: str, method: int, column: int = -1) -> Interval | None:
        """The 95 % interval of a cell: over problems for one run, over seeds for several; None where there are no such data.

        See :mod:`cycleqd_jax.statistics`.
        """
        if self.runs > 1:
            values = self.values[split][:, method, column]
            values = values[np.isfinite(values)]
            return over_seeds(values) if values.size > 1 else None
        scores = self._scores(split, method, column)
        return None if scores is None else _kept(mean_interval, scores)

    def difference(self, split: str, method: int, other: int, column: int = -1) -> Interval | None:
        """By how much a method is above another, with the 95 % interval of the paired difference.

        Pairs are problems for one run, and runs for several. None where there are no such data.
        """
        if self.runs > 1:
            values = self.values[split][:, method, column] - self.values[split][:, other, column]
            values = values[np.isfinite(values)]
            return over_seeds(values) if values.size > 1 else None
        scores, others = self._scores(split, method, column), self._scores(split, other, column)
        if scores is None or others is None or [*map(len, scores)] != [*map(len, others)]:
            return None
        return _kept(difference, scores, others)

    def _equal(self, split: str, method: int, other: int) -> bool:
        """Whether two methods have the same results: scores in every run, and the score of every problem."""
        values = self.values[split]
        items = [self.items.get(self.methods[m], {}).get(split) for m in (method, other)]
        return np.array_equal(values[:, method], values[:, other], equal_nan=True) and items[0] == items[1]

    def _scores(self, split: str, method: int, column: int) -> tuple[tuple[float, ...], ...] | None:
        """The scores of a cell's problems, by task; None where they are not known."""
        tasks, found = self.columns[:-1], self.items.get(self.methods[method], {}).get(split, {})
        tasks = tasks if self.columns[column] == AVERAGE else (self.columns[column],)
        return tuple(tuple(found[task]) for task in tasks) if tasks and all(found.get(task) for task in tasks) else None

    def label(self, method: int) -> str:
        """The display name of a row."""
        return method_label(self.methods[method])

    @property
    def reference(self) -> int | None:
        """Index of the row that the others are compared with: the last one, where it is a search's."""
        return len(self.methods) - 1 if self.methods and self.methods[-1] in SEARCHES else None

    def details(self, split: str) -> dict[str, list[str]]:
        """Further columns, as printed: the 95 % interval of the average, and the reference's average minus that of the row.

        Returns:
            Column → cell of every method; empty where there are no intervals.
        """
        rows = range(len(self.methods))
        intervals = [self.interval(split, m) for m in rows]
        if not any(intervals):
            return {}
        columns = {"95 % interval": ["–" if one is None else _interval_text(one) for one in intervals]}
        if self.reference is not None:
            above = [None if m == self.reference else self.difference(split, self.reference, m) for m in rows]
            shown = ["–" if one is None else f"{100 * one.mean:+.1f} {_interval_text(one)}" for one in above]
            columns[f"{self.label(self.reference)} above"] = shown
        return columns

    def cell(self, split: str, method: int, column: int) -> str:
        """A score in percent as printed: ``"52.4"``, ``"52.4 ± 0.8"`` over several runs, ``"–"`` if missing."""
        mean, std = self.mean(split)[method, column], self.std(split)[method, column]
        return formats.percent(mean) + (f" ± {formats.percent(std)}" if np.isfinite(std) else "")

    def caption(self) -> str:
        """One line that explains the numbers."""
        over = f"; mean ± standard deviation over {self.runs} runs" if self.runs > 1 else ""
        if not self.splits or not self.details(self.splits[0]):
            return f"Scores in percent{over}. The best of each column is marked."
        unit = "runs" if self.runs > 1 else "problems"
        return (
            f"Scores in percent{over}. Intervals are of the average, over {unit}. A score is marked where the interval of its "
            "difference to every row with other results lies above zero."
        )

    def markdown(self) -> str:
        """The table as GitHub-flavoured Markdown, one table per split, with the best of each column in bold."""
        return formats.markdown(self._sheets(), self.caption().replace("is marked", "is bold"))

    def latex(self) -> str:
        """The table as LaTeX with the package booktabs, one table per split, with the best of each column in bold."""
        return formats.latex(self._sheets(), self.caption().replace("is marked", "is bold"))

    def text(self, color: bool = False) -> str:
        """The table for terminals, with a star at the best of each column.

        Args:
            color: whether to print the best in bold (ANSI) too.
        """
        return formats.text(self._sheets(), self.caption().replace("is marked", "has a star"), color=color)

    def _sheets(self) -> list[formats.Sheet]:
        """A table per split."""
        sheets = []
        for split in self.splits:
            best, details = self.best(split), self.details(split)
            rows = []
            for m in range(len(self.methods)):
                cells = [formats.Cell(self.cell(split, m, c), bool(best[m, c])) for c in range(len(self.columns))]
                cells += [formats.Cell(column[m]) for column in details.values()]
                rows.append((self.label(m), cells))
            sheets.append(formats.Sheet(split, "method", [*self.columns, *details], rows, unmarked=len(details)))
        return sheets

    def csv(self) -> str:
        """The table as tidy CSV, ``method,split,task,mean,std,runs,best,low,high``, with scores in [0, 1]."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["method", "split", "task", "mean", "std", "runs", "best", "low", "high"])
        for split in self.splits:
            mean, std, count, best = self.mean(split), self.std(split), self.count(split), self.best(split)
            for m, method in enumerate(self.methods):
                for c, column in enumerate(self.columns):
                    if count[m, c]:
                        spread = f"{std[m, c]:.6g}" if count[m, c] > 1 else ""
                        found = self.interval(split, m, c)
                        ends = ["", ""] if found is None else [f"{found.low:.6g}", f"{found.high:.6g}"]
                        row = [method, split, column, f"{mean[m, c]:.6g}", spread, count[m, c], int(best[m, c]), *ends]
                        writer.writerow(row)
        return out.getvalue()


@functools.lru_cache(maxsize=4096)
def _kept(compute: Callable[..., Interval], *scores: tuple[tuple[float, ...], ...]) -> Interval:
    """An interval, computed once: a page, a file and a terminal show the same cells."""
    return compute(*([np.asarray(task) for task in tasks] for tasks in scores))


def _interval_text(interval: Interval) -> str:
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _order(method: str) -> int:
    if method in ("base", "prepared_base"):
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
    items = load_items(folders[0]) if len(folders) == 1 else {}
    return ResultsTable(methods, tuple(values), columns, values, items)
