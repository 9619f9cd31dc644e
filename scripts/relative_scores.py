"""What merged models keep of their experts: test scores relative to each expert, and the similarity of the experts beside them.

    python scripts/relative_scores.py COMPARISON… [--rows ROW…] [--json FILE]

Every COMPARISON is a finished folder of ``cycleqd compare`` with the same test problems for all seeds. A relative score is a
model's mean score of a task, divided by that of the task's expert. Problems and seeds are resampled together for both, so the
95 % intervals are paired. What a model keeps is the mean of its relative scores. Where there are three comparisons or more,
the similarity of the experts is correlated (Pearson) with what the rows keep.

The paper's numbers are those of its Table 4, of SAM ViT-H.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import itertools
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.files import without_nan, write_json
from cycleqd_jax.report.labels import method_label
from cycleqd_jax.statistics import Interval, intervals_by_task, resampled_means
from cycleqd_jax.types import InputError

PAPER = ({"polyp": 0.98, "skin": 0.95}, {"polyp": 0.40, "leaf": 0.84}, {"skin": 0.83, "leaf": 0.84})
"""CycleQD's scores relative to each expert, by task, of every pair of tasks."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """What the models of a comparison keep of their experts.

    Attributes:
        tasks: the tasks, whose experts were merged.
        seeds: number of seeds.
        scores: by row, the mean test score of every task.
        relative: by row, the relative score of every task, and their mean.
        similarity: of the experts: mean over the seeds of the paper's, and of the cosine of task vectors, averaged over pairs.
            NaN where an expert is equal to the base, because the similarity of a task vector of zeros is undefined.
    """

    tasks: tuple[str, ...]
    seeds: int
    scores: Mapping[str, tuple[float, ...]]
    relative: Mapping[str, tuple[Interval, ...]]
    similarity: tuple[float, float]


def kept(folder: Path) -> Kept:
    """Reads a comparison.

    Args:
        folder: of the comparison.

    Raises:
        InputError: it is not finished, a file is damaged, seeds have other test problems, a row lacks the scores of problems,
            or an expert's score is 0, or would be in a bootstrap sample.
    """
    file, table = folder / "tables" / "items.json.gz", folder / "tables" / "comparison.json"
    for one in (file, table):
        if not one.exists():
            raise InputError(f"expected a finished comparison in {folder}, got no {one.name}; run `cycleqd compare` first")
    seeds = [*_read_json(file).items()]
    rows = [*dict.fromkeys(row for _, one in seeds for row in one)]
    tasks = tuple(name.removeprefix("expert/") for name in rows if name.startswith("expert/"))
    for row, (seed, one), task in itertools.product(rows, seeds, tasks):
        if not one.get(row, {}).get("test", {}).get(task):
            raise InputError(
                f"expected test scores of task {task!r} for the row {row} of seed {seed}, got none in {file}; measure the row "
                "with `cycleqd evaluate`, and compare again"
            )
    found = [[[one[row]["test"][task] for _, one in seeds] for row in rows] for task in tasks]
    same = _read_json(table)["same_problems"]["test"]
    if not same or any(len({len(items) for row in of_task for items in row}) > 1 for of_task in found):
        raise InputError(f"expected the same test problems for all seeds, got others in {table}; compare on files")
    scores = [np.asarray(table, np.float64) for table in found]  # by task: [row, seed, item]
    means = np.stack([table.mean(-1) for table in scores], axis=-1)  # [row, seed, task]
    resampled = resampled_means(scores, crossed=True)
    experts = [rows.index(f"expert/{task}") for task in tasks]
    for k, (task, expert) in enumerate(zip(tasks, experts, strict=True)):
        if not (means[expert, :, k] > 0).all() or not (resampled[expert, :, k] > 0).all():
            raise InputError(
                f"expected an expert with test scores above 0 on most problems of task {task!r}, got a mean of "
                f"{means[expert, :, k].mean():.3g} in {file}, so that scores relative to it are undefined; train it longer"
            )
    counts, relative = [table.shape[-1] for table in scores], {}
    for i, row in enumerate(rows):
        ratios = np.stack([means[i, :, k] / means[expert, :, k] for k, expert in enumerate(experts)], axis=-1)
        drawn = np.stack([resampled[i, :, k] / resampled[expert, :, k] for k, expert in enumerate(experts)], axis=-1)
        relative[row] = intervals_by_task(drawn, ratios, counts)
    return Kept(
        tasks,
        len(seeds),
        {row: tuple(means[i].mean(0).tolist()) for i, row in enumerate(rows)},
        relative,
        _similarity(folder, [seed for seed, _ in seeds]),
    )


def _read_json(file: Path) -> dict[str, Any]:
    """The object of a JSON file, which may be compressed."""
    try:
        content = file.read_bytes()
        return json.loads(gzip.decompress(content) if file.suffix == ".gz" else content)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"expected a whole file of `cycleqd compare`, got {error} in {file}; compare again") from error


def _similarity(folder: Path, seeds: Sequence[str]) -> tuple[float, float]:
    """The mean similarity of two experts, by singular values and by task vectors."""
    found = []
    for seed in seeds:
        file = next(iter(sorted((folder / f"seed-{seed}").glob("*/tables/basis.json"))), None)
        if file is None:
            raise InputError(f"expected tables/basis.json of a run in {folder / f'seed-{seed}'}, got none; run it again")
        tables = _read_json(file)["similarity"]
        pairs = np.triu_indices(len(tables["task_vectors"]), 1)
        found.append([np.asarray(tables[key], np.float64)[pairs].mean() for key in ("singular_values", "task_vectors")])
    values, vectors = np.mean(found, axis=0).tolist()
    return values, vectors


def markdown(comparisons: Sequence[Kept], rows: Sequence[str]) -> str:
    """The tables.

    Args:
        comparisons: of :func:`kept`.
        rows: those of the last table.

    Raises:
        InputError: a comparison has no such row.
    """
    for one in comparisons:
        if missing := [row for row in rows if row not in one.scores]:
            raise InputError(
                f"expected --rows to be rows of all comparisons, got {missing[0]!r} and one of {' + '.join(one.tasks)} with "
                f"{', '.join(one.scores)}; correct --rows"
            )
    lines: list[str] = []
    for one in comparisons:
        head = ["method", *(f"{task} {part}" for task in one.tasks for part in ("score", "relative")), "kept"]
        lines += [f"**{' + '.join(one.tasks)}**, {one.seeds} seed{'s'[: one.seeds > 1]}", "", _line(head), _rule(head)]
        for row, scores in one.scores.items():
            *each, mean = map(_text, one.relative[row])
            cells = [cell for pair in zip(map("{:.3f}".format, scores), each, strict=True) for cell in pair]
            lines.append(_line([method_label(row), *cells, mean]))
        for paper in (paper for paper in PAPER if {*paper} == {*one.tasks}):
            cells = [cell for task in one.tasks for cell in ("", f"{paper[task]:.2f}")]
            lines.append(_line(["The paper's CycleQD (ViT-H)", *cells, f"{np.mean([*paper.values()]):.2f}"]))
        lines.append("")
    head = ["experts", "similarity", "cosine of task vectors", *(f"{method_label(row)} keeps" for row in rows)]
    lines += [_line(head), _rule(head)]
    for one in comparisons:
        cells = ["–" if np.isnan(value) else f"{value:.3f}" for value in one.similarity]
        cells += [_text(one.relative[row][-1]) for row in rows]
        lines.append(_line([" + ".join(one.tasks), *cells]))
    if len(comparisons) > 2:
        for name, correlated in correlations(comparisons, rows).items():
            cells = ["–" if np.isnan(value) else f"{value:.2f}" for value in correlated]
            lines.append(_line([f"correlation with the {name}", "", "", *cells]))
    return "\n".join(lines) + "\n"


def correlations(comparisons: Sequence[Kept], rows: Sequence[str]) -> dict[str, list[float]]:
    """Pearson's correlation of the experts' similarity with what every row keeps, by kind of similarity.

    NaN where a similarity is undefined, or where one of the two is the same for all comparisons.
    """
    kept_by = {row: [one.relative[row][-1].mean for one in comparisons] for row in rows}
    found = {}
    for i, name in enumerate(("similarity", "cosine of task vectors")):
        similar = [one.similarity[i] for one in comparisons]
        found[name] = [_correlation(similar, values) for values in kept_by.values()]
    return found


def _correlation(one: Sequence[float], other: Sequence[float]) -> float:
    if np.isnan(one).any() or 0 in (np.ptp(one), np.ptp(other)):
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])


def _text(interval: Interval) -> str:
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(head: Sequence[str]) -> str:
    return f"|---{'|---:' * (len(head) - 1)}|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="COMPARISON", help="folders of finished comparisons")
    parser.add_argument(
        "--rows", nargs="+", default=["uniform_merge", "cycleqd_selected"], help="rows set beside the similarity of the experts"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    args = parser.parse_args()
    try:
        comparisons = [kept(folder) for folder in args.folders]
        text = markdown(comparisons, args.rows)
    except InputError as error:
        parser.exit(2, f"relative_scores: {error}\n")
    print(text, end="")
    if args.json:
        write_json(args.json, without_nan([dataclasses.asdict(one) for one in comparisons]))


if __name__ == "__main__":
    main()
