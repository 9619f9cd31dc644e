"""The table of a comparison: the rows of several methods, each run once with every seed."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.files import load_json
from cycleqd_jax.report.labels import method_label
from cycleqd_jax.report.method_runs import MethodRuns, effort
from cycleqd_jax.report.read import load_items, load_results
from cycleqd_jax.report.tables import AVERAGE, ResultsTable, formats
from cycleqd_jax.statistics import Interval, interval_over_runs, resampled_means
from cycleqd_jax.types import REPORTED, InputError

__all__ = ["ComparisonTable", "comparison_table"]

Items = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Row → split → task → the score of every problem."""


@dataclasses.dataclass(frozen=True)
class ComparisonTable(ResultsTable):
    """Scores of methods on tasks, over seeds. Rows that do not depend on a search come first.

    Intervals are over seeds and problems (:func:`~cycleqd_jax.statistics.interval_over_runs`).

    Attributes:
        title: the title of the table.
        seeds: the seeds, in the order of the runs.
        labels: row → display name.
        chosen: the row that the others are compared with.
        problems: the scores of problems of every run.
        crossed: split → whether all runs have the same problems.
        paper: row → column → the figure of a paper in percent.
        setting: name of the config with the setting of the paper.
        budgets: ``budget`` and ``budget_items``: the most individuals, and problems that they are scored on, of every run.
        efforts: method → what its runs evaluated; see :func:`effort`.
    """

    title: str = "Comparison"
    seeds: tuple[int, ...] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    chosen: str = ""
    problems: tuple[Items, ...] = ()
    crossed: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    paper: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    setting: str | None = None
    budgets: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    efforts: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def label(self, method: int) -> str:
        """The display name of a row."""
        return self.labels.get(self.methods[method], self.methods[method])

    @property
    def reference(self) -> int | None:
        """Index of the chosen row."""
        return self.methods.index(self.chosen)

    @functools.cached_property
    def _resampled(self) -> dict[str, np.ndarray]:
        """Split → means in bootstrap samples, Float ``[row, resample, column]``; NaN where a run has no scores of problems."""
        found = {}
        for split in self.splits:
            tasks = [self._stacked(split, task) for task in self.columns[:-1]]
            means = resampled_means(tasks, crossed=self.crossed.get(split, False))
            found[split] = np.concatenate([means, means.mean(axis=-1, keepdims=True)], axis=-1)
        return found

    def _stacked(self, split: str, task: str) -> np.ndarray:
        """The scores of a task's problems, Float ``[row, run, item]``; NaN where there are none, or of another number."""
        scores = [[items.get(row, {}).get(split, {}).get(task, ()) for items in self.problems] for row in self.methods]
        size = max((len(one) for runs in scores for one in runs), default=0) or 1
        return np.array([[one if len(one) == size else [np.nan] * size for one in runs] for runs in scores], np.float64)

    @functools.cached_property
    def _counts(self) -> dict[str, list[int]]:
        """Split → the number of scores that a cell of each column is made of."""
        sizes = {
            split: [self._stacked(split, task).shape[2] * self.runs for task in self.columns[:-1]] for split in self.splits
        }
        return {split: [*of_tasks, sum(of_tasks)] for split, of_tasks in sizes.items()}

    def interval(self, split: str, method: int, column: int = -1) -> Interval | None:
        """The 95 % interval of a cell, over seeds and problems, within [0, 1]; None where a run has no scores of problems."""
        return self._interval(split, self._resampled[split][method], self.values[split][:, method], column, least=0)

    def difference(self, split: str, method: int, other: int, column: int = -1) -> Interval | None:
        """By how much a row is above another, with the 95 % interval of the difference, paired by seed and problem.

        The interval lies within [−1, 1]. None where a run has no scores of problems.
        """
        means, values = self._resampled[split], self.values[split]
        return self._interval(split, means[method] - means[other], values[:, method] - values[:, other], column, least=-1)

    def _interval(self, split: str, means: np.ndarray, values: np.ndarray, column: int, *, least: int) -> Interval | None:
        if np.isnan(means[0, column]) or np.isnan(values[:, column]).any():
            return None
        found = interval_over_runs(means[:, column], values[:, column], self._counts[split][column])
        return dataclasses.replace(found, low=max(found.low, least), high=min(found.high, 1.0))

    def _equal(self, split: str, method: int, other: int) -> bool:
        """Whether two rows have the same results in every run, problem by problem."""
        if not np.array_equal(self.values[split][:, method], self.values[split][:, other], equal_nan=True):
            return False
        return all(
            items.get(self.methods[method], {}).get(split) == items.get(self.methods[other], {}).get(split)
            for items in self.problems
        )

    def details(self, split: str) -> dict[str, list[str]]:
        """Further columns, as printed: intervals and differences, and the paper's figures on the test split."""
        found = super().details(split)
        columns = [name for name in self.columns if any(name in figures for figures in self.paper.values())]
        if split == "test" and columns:
            figures = [self.paper.get(row, {}) for row in self.methods]
            shown = [" / ".join(f"{one[c]:.1f}" if c in one else "–" for c in columns) if one else "–" for one in figures]
            found[f"paper: {' / '.join(columns)}"] = shown
        return found

    def caption(self) -> str:
        """What the numbers are."""
        several, same = self.runs > 1, self.crossed.get("test", False)
        over = f"; mean ± standard deviation over the seeds {', '.join(map(str, self.seeds))}" if several else ""
        of = "seeds and problems" if several else "problems"
        nature = f" ({'the same problems' if same else 'problems of its own'} for every seed)" if several else ""
        parts = [
            f"Scores in percent{over}. {self._budget_text()}Intervals are 95 % intervals of the average over {of}{nature}. "
            f"Differences are paired by {'seed and problem' if several else 'problem'}. A score is marked where the interval "
            "of its difference to every row with other results lies above zero."
        ]
        searches = {one["search"] for one in self.efforts.values()}
        if "cycleqd" in searches:
            others = "; that of another search is its best individual on train" if searches - {"cycleqd"} else ""
            parts.append(f"A row with the name of a CycleQD alone is the merge of equation 5{others}.")
        if self.paper:
            parts.append(f"The figures of the paper are those of its own setting, {self.setting}.")
        return " ".join(parts)

    def _budget_text(self) -> str:
        """How many individuals every run evaluated."""
        counts = [count for one in self.efforts.values() for count in one["individuals"]]
        if not counts:
            return ""
        least, most = min(counts), max(counts)
        limit = self.budgets.get("budget_items")
        return (
            f"Every run evaluated {least if least == most else f'{least} to {most}'} individuals, experts included"
            f"{'' if limit is None else f', on at most {limit} problems in total'}. "
        )

    def latex(self) -> str:
        """The table as LaTeX with the package booktabs, one table per split, with marked scores in bold."""
        return formats.latex(self._sheets(), f"{self.title}. {self.caption()}".replace("is marked", "is bold"))

    def records(self) -> list[dict[str, Any]]:
        """Every cell with a score as a record: row, label, split, task, scores in [0, 1], intervals and differences.

        ``above`` is the reference's score minus that of the row. Values that do not exist are None.
        """
        records = []
        for split in self.splits:
            mean, std, best = self.mean(split), self.std(split), self.best(split)
            for m, row in enumerate(self.methods):
                for c, column in enumerate(self.columns):
                    if np.isnan(mean[m, c]):
                        continue
                    assert self.reference is not None
                    interval = self.interval(split, m, c)
                    above = None if m == self.reference else self.difference(split, self.reference, m, c)
                    record: dict[str, Any] = {"row": row, "label": self.label(m), "split": split, "task": column}
                    record |= {"mean": float(mean[m, c]), "std": _number(std[m, c])}
                    record |= {"low": interval and interval.low, "high": interval and interval.high, "marked": bool(best[m, c])}
                    record |= {"above": above and above.mean, "above_low": above and above.low}
                    record |= {"above_high": above and above.high}
                    record["paper"] = self.paper.get(row, {}).get(column) if split == "test" else None
                    record["runs"] = [_number(value) for value in self.values[split][:, m, c]]
                    records.append(record)
        return records

    def csv(self) -> str:
        """The records as CSV, with scores in [0, 1] and the paper's figures in percent; ``runs`` is the number of runs."""
        out = io.StringIO()
        records = self.records()
        writer = csv.DictWriter(out, list(records[0]) if records else ["row"], lineterminator="\n")
        writer.writeheader()
        for record in records:
            shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in record.items()}
            runs = sum(value is not None for value in record["runs"])
            writer.writerow(shown | {"marked": int(record["marked"]), "runs": runs})
        return out.getvalue()

    def facts(self) -> dict[str, Any]:
        """The whole table as JSON, without the scores of problems."""
        return {
            "title": self.title,
            "tasks": list(self.columns[:-1]),
            "seeds": list(self.seeds),
            "reference": self.chosen,
            "same_problems": dict(self.crossed),
            **self.budgets,
            "searches": {name: dict(one) for name, one in self.efforts.items()},
            "caption": self.caption(),
            "cells": self.records(),
        }


def comparison_table(
    methods: Sequence[MethodRuns],
    *,
    title: str,
    reference: str | None = None,
    rows: Sequence[str] | None = None,
    paper: Mapping[str, Mapping[str, float]] | None = None,
    setting: str | None = None,
    budgets: Mapping[str, int | None] | None = None,
) -> ComparisonTable:
    """The table of finished runs.

    Args:
        methods: the methods, each with a run for the same seeds.
        title: the title of the table.
        reference: the row that the others are compared with; by default the model of the first method that was selected on
            validation problems, or else its first row.
        rows: the rows that do not depend on a search; None takes all that the runs have.
        paper: row → column → figure of a paper, in percent.
        setting: name of the config with the setting of the paper.
        budgets: see :class:`ComparisonTable`.

    Raises:
        InputError: a run has no results, or results of other tasks; or there is no row of the reference's name.
    """
    seeds = tuple(methods[0].folders)
    labels: dict[str, str] = {}  # in the order of the table
    own: dict[str, dict[str, str]] = {method.name: {} for method in methods}  # method → row of the run → row
    scores: list[dict[str, Any]] = [{} for _ in seeds]
    problems: list[dict[str, Any]] = [{} for _ in seeds]
    tasks: tuple[str, ...] = ()
    loaded = {(m.name, seed): _load(m.folders[seed]) for m in methods for seed in seeds}
    for (name, seed), results in loaded.items():
        if tuple(results["tasks"]) != (tasks := tasks or tuple(results["tasks"])):
            raise InputError(
                f"expected the tasks {', '.join(tasks)} in every run, got {', '.join(results['tasks'])} for the method "
                f"{name!r} and seed {seed}; compare runs of one config"
            )
        shared = [row for row in results["methods"] if row not in results["found"] and (rows is None or row in rows)]
        labels |= {row: method_label(row) for row in shared}
    for method in methods:
        for seed in seeds:
            found = loaded[method.name, seed]["found"]
            own[method.name] |= {row: method.row(row) for row in found}
            labels |= {method.row(row): method.row_label(row) for row in found}
    for r, seed in enumerate(seeds):
        for method in methods:
            results, items = loaded[method.name, seed], load_items(method.folders[seed])
            names = own[method.name]
            scores[r] = _renamed(results["methods"], names) | scores[r]
            problems[r] = _renamed(items, names) | problems[r]
    first = list(own[methods[0].name].values())
    chosen = reference or next((row for row in first if row.endswith("_selected")), first[0])
    if chosen not in labels:
        raise InputError(
            f"expected the reference to be one of the rows {', '.join(labels)}, got {chosen!r}; correct --reference"
        )
    columns = (*tasks, AVERAGE)
    values = {
        split: np.array([[[_score(runs, row, split, c) for c in columns] for row in labels] for runs in scores], np.float64)
        for split in reversed(REPORTED)
    }
    return ComparisonTable(
        methods=tuple(labels),
        splits=tuple(values),
        columns=columns,
        values=values,
        title=title,
        seeds=seeds,
        labels=labels,
        chosen=chosen,
        problems=tuple(problems),
        crossed=_crossed([methods[0].folders[seed] for seed in seeds], tasks),
        paper=paper or {},
        setting=setting,
        budgets=budgets or {},
        efforts={method.name: effort(method) for method in methods},
    )


def _load(folder: Path) -> dict[str, Any]:
    results = load_results(folder)
    if results is None or not all(_is_names(results.get(key)) for key in ("found", "tasks")):
        raise InputError(
            "expected results that name the tasks and the rows found by the search in "
            f"{folder / 'tables' / 'results.json'}, got none; evaluate the run again, or repeat cycleqd compare where it has "
            "not finished"
        )
    return results


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _renamed(rows: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(row, row): value for row, value in rows.items()}


def _score(scores: Mapping[str, Any], row: str, split: str, column: str) -> float:
    value = scores.get(row, {}).get(split, {}).get(column)
    return np.nan if value is None else float(value)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _crossed(folders: Sequence[Path], tasks: Sequence[str]) -> dict[str, bool]:
    """Split → whether the problems of all runs are the same, by the digests that the runs recorded.

    Raises:
        InputError: the digests of a run are damaged.
    """
    inputs = []
    for folder in folders:
        path = folder / "inputs.json"
        try:
            inputs.append(dict(load_json(path)) if path.exists() else {})
        except (ValueError, TypeError) as error:
            raise InputError(f"expected the digests of a run's inputs in {path}, got {error}; restore the file") from error
    return {
        split: all(len({one.get(f"{task}/{split}", str(i)) for i, one in enumerate(inputs)}) == 1 for task in tasks)
        for split in REPORTED
    }
