"""The table of a suite: scores of the models of a run on other tasks, and what they keep of the base's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.files import load_json, write_text
from cycleqd_jax.report.labels import method_label
from cycleqd_jax.report.tables import formats
from cycleqd_jax.statistics import Interval, intervals_by_task, resampled_means
from cycleqd_jax.types import InputError

__all__ = ["SuiteTable", "suite_names", "suite_table", "write_suite"]

BASE = "base"


@dataclasses.dataclass(frozen=True)
class SuiteTable:
    """Scores on the tasks of a suite, with 95 % intervals over problems.

    Attributes:
        title: the title of the table.
        tasks: their names.
        problems: number of problems of every task.
        rows: the rows that have scores.
        scores: for every row, one interval for each task, and one for their average.
        relative: the same for the scores divided by those of the base, paired by problem; None where the base has no scores, or
            a score of zero in a bootstrap sample.
    """

    title: str
    tasks: tuple[str, ...]
    problems: tuple[int, ...]
    rows: tuple[str, ...]
    scores: dict[str, tuple[Interval, ...]]
    relative: dict[str, tuple[Interval | None, ...]]

    @property
    def caption(self) -> str:
        """What the numbers mean."""
        counts = ", ".join(f"{task} {count}" for task, count in zip(self.tasks, self.problems, strict=True))
        return (
            f"Scores in percent, and as a share of the base model's score on the same problems. Problems: {counts}. Brackets "
            "are 95 % intervals over problems (bootstrap, paired). The average of the shares is the mean over tasks."
        )

    def markdown(self) -> str:
        """The table as Markdown."""
        return formats.markdown(self.sheets, self.caption)

    def latex(self) -> str:
        """The table as LaTeX."""
        return formats.latex(self.sheets, self.caption)

    def text(self, *, color: bool = False) -> str:
        """The table as aligned columns.

        Args:
            color: use the colours of a terminal.
        """
        return formats.text(self.sheets, self.caption, color=color)

    @property
    def sheets(self) -> list[formats.Sheet]:
        """The scores, and the shares of the base's."""
        columns = (*self.tasks, "average")
        scores = [(method_label(row), [formats.Cell(_percent(interval)) for interval in self.scores[row]]) for row in self.rows]
        shares = [
            (method_label(row), [formats.Cell(_share(interval)) for interval in self.relative[row]])
            for row in self.rows
            if row != BASE
        ]
        sheets = [formats.Sheet(self.title, "method", columns, scores, unmarked=len(columns))]
        if BASE in self.rows:
            sheets.append(formats.Sheet("share of the base model's score", "method", columns, shares, unmarked=len(columns)))
        return sheets


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _share(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def suite_names(folder: str | Path) -> list[str]:
    """The names of the suites that were measured in a run folder."""
    return sorted(path.stem.removeprefix("suite-") for path in (Path(folder) / "tables").glob("suite-*.json"))


def suite_table(folder: str | Path, name: str) -> SuiteTable:
    """The table of a suite, from ``tables/suite-NAME.json``.

    Args:
        folder: the run folder.
        name: the name of the suite.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = Path(folder) / "tables" / f"suite-{name}.json"
    try:
        record: dict[str, Any] = load_json(file)
        tasks = tuple(record["tasks"])
        measured = {row: found["items"] for row, found in record["rows"].items() if found["scores"] is not None}
        scores = [np.asarray([[measured[row][task]] for row in measured], np.float64) for task in tasks]  # [row, 1, item]
        problems = tuple(int(found["problems"]) for found in record["tasks"].values())
        title = str(record["title"])
        if not tasks or (measured and not all(one.ndim == 3 and one.size and np.isfinite(one).all() for one in scores)):
            raise ValueError("no tasks, or a task without finite scores of problems")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"expected the results of a suite in {file}, got {type(error).__name__} ({error}); run cycleqd evaluate --suite"
        ) from error
    if not measured:
        return SuiteTable(title, tasks, problems, (), {}, {})
    rows = tuple(measured)
    means = np.stack([one.mean(-1)[:, 0] for one in scores], axis=-1)  # [row, task]
    drawn = resampled_means(scores, crossed=True)  # [row, resample, task]
    shown = {row: intervals_by_task(drawn[i], means[i : i + 1], problems) for i, row in enumerate(rows)}
    relative: dict[str, tuple[Interval | None, ...]] = {row: (None,) * (len(tasks) + 1) for row in rows}
    if BASE in rows:
        k = rows.index(BASE)
        known = (drawn[k] > 0).all(axis=0) & (means[k] > 0)
        divisors, drawn_divisors = np.where(known, means[k], 1.0), np.where(known, drawn[k], 1.0)
        for i, row in enumerate(rows):
            found = intervals_by_task(drawn[i] / drawn_divisors, (means[i] / divisors)[None], problems)
            relative[row] = tuple(one if fine else None for one, fine in zip(found, [*known, known.all()], strict=True))
    return SuiteTable(title, tasks, problems, rows, shown, relative)


def write_suite(folder: str | Path, name: str) -> SuiteTable:
    """Writes ``tables/suite-NAME.md`` and ``.tex``.

    Args:
        folder: the run folder.
        name: the name of the suite.

    Raises:
        InputError: see :func:`suite_table`.
    """
    table, place = suite_table(folder, name), Path(folder) / "tables"
    write_text(place / f"suite-{name}.md", table.markdown())
    write_text(place / f"suite-{name}.tex", table.latex())
    return table
