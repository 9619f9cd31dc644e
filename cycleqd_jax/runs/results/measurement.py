"""The final measurement of a run: every row of the results table, on the train and test problems of every task."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cycleqd_jax.evaluation import Evaluation, in_less_memory, out_of_memory
from cycleqd_jax.files import write_json, write_text
from cycleqd_jax.runs.coefficients import Merges
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.evolution import Evolution
from cycleqd_jax.runs.results.known import KilledMeasurement, Measured, RowResult, add_known
from cycleqd_jax.runs.results.rows import found_rows
from cycleqd_jax.runs.results.selection import Key
from cycleqd_jax.runs.training.gradient import GradientMerge
from cycleqd_jax.runs.usage import evaluation_usage, write_usage
from cycleqd_jax.types import REPORTED, Genome, Params, Split

__all__ = ["TableRow", "lacks_rows", "measure", "table_rows"]


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One row of the results table.

    Attributes:
        make: makes the weights.
        donate: whether the weights belong to the evaluator, which may use their buffers up.
        key: identifies a model that the search found; equal for equal weights. None for models that no search found.
        error: why the row can't be evaluated; None if it can.
    """

    make: Callable[[], Params]
    donate: bool
    key: Key | None = None
    error: str | None = None


def lacks_rows(context: Context, results: Mapping[str, Any]) -> bool:
    """Whether a run's config asks for rows that its results lack: of ``baselines``, ``merges`` or ``gradient``.

    Args:
        context: the context of the run.
        results: the content of its ``results.json``.
    """
    config, folders = context.config, context.models.folders
    wanted = [*(name for name, folder in folders.baselines.items() if folder.exists()), *config.merges]
    if config.selects:
        wanted.append(f"{config.search.method}_selected")  # a version that did not select has none
    merge = _gradient(context)
    return any(name not in results["methods"] for name in wanted) or (merge is not None and not merge.is_in(results))


def _gradient(context: Context) -> GradientMerge | None:
    options = context.config.gradient
    return None if options is None else GradientMerge(context, options)


def measure(context: Context, evolution: Evolution, isolation: str | None, *, keep: bool = False) -> dict[str, Any]:
    """Evaluates every row on train and test; writes ``results.json``, ``items.json``, ``usage.json`` and ``transcripts/``.

    The JSON files are in ``tables/``. Seconds are in ``usage.json`` only, so a run that was killed ends with the same results.

    Rows with equal weights are evaluated once. The transcripts are those of the first of them. Rows that do not depend on the
    search are taken over from ``context.shared``, with the record of their training. Transcripts of other rows, which an
    earlier measurement left, are removed.

    Every row is kept in ``measured.json`` until all are there. A measurement that was killed evaluates only what the file
    lacks.

    Args:
        context: the context of the run.
        evolution: the evolution of the run. It evolves first if that has not been done.
        isolation: the isolation of the sandbox, for the record; None where nothing is executed.
        keep: keep what the run folder has: measure only rows that it lacks, and keep rows that the config does not name.

    Returns:
        The content of ``results.json``. ``found`` names the rows of models that the search found, and ``keys`` what identifies
        their weights. ``gradient`` is the digest of the coefficients of the row of this name.
    """
    evolution.ensure_evolved()  # the run folder belongs to this config before anything is written into it
    merge = _gradient(context)
    known = Measured()
    if keep:
        add_known(known, context.folder, merge, context.log)
    own = {*known.scores}
    if context.shared is not None:
        add_known(known, context.shared, merge, context.log, searched=False, seed=context.config.seed)
    rows = table_rows(context, evolution, None if merge is None else _gradient_row(evolution, merge, known))
    found = Measured(keys={name: row.key for name, row in rows.items() if row.key is not None})
    if merge is not None and "gradient" not in known.scores:
        found.training["gradient"] = merge.usage() if rows["gradient"].error is None else None
    measurement = KilledMeasurement(context)
    first: dict[Key, str] = {}
    for done, (name, row) in enumerate(rows.items()):
        context.progress("measure", done, len(rows), {})
        if keep and row.key is not None and not first:  # the rows of the search are the last ones
            for other in known.scores:
                if other not in rows and other not in known.keys:
                    found.take(other, known, other)
        twin = name if row.key is None else first.setdefault(row.key, name)
        if name in known.scores and known.keys.get(name) == row.key:
            found.take(name, known, name)
        elif twin != name:
            found.take(name, found, twin)
        else:
            evaluate = functools.partial(_evaluate, context, evolution, name, row)
            found.scores[name], found.items[name], found.usage[name] = measurement.ensure(name, row.key, evaluate)
    context.progress("measure", len(rows), len(rows), {})
    _remove_transcripts(context.folder, {name: found.items[name] for name in found.scores if name in measurement.rows | own})
    results = {
        "methods": found.scores,
        "found": [*found.keys],
        "keys": {name: [kind, list(ids)] for name, (kind, ids) in found.keys.items()},
        "tasks": list(context.config.task_names),
        "seed": context.config.seed,
        **({"aggregate": dict(evolution.aggregate().facts)} if evolution.is_cycleqd else {}),
        **({"selected": dict(evolution.selected().facts)} if context.config.selects else {}),
        "best_elite": evolution.best_elite().facts["id"],
        **({} if (identity := known.gradient if merge is None else merge.digest()) is None else {"gradient": identity}),
        "isolation": isolation,
    }
    write_usage(context, evolution.placement.ensure_space(), found.usage, found.training)
    write_json(context.folder / "tables" / "items.json", found.items)
    write_json(context.folder / "tables" / "results.json", results)
    measurement.remove()
    return results


def _evaluate(context: Context, evolution: Evolution, name: str, row: TableRow) -> RowResult:
    """Evaluates a row on all splits; its transcripts are written."""
    scores: dict[Split, Mapping[str, float | None]] = {}
    items: dict[Split, Mapping[str, Sequence[float]]] = {}
    usage: dict[Split, Mapping[str, Any]] = {}
    for split in REPORTED:
        scores[split], items[split], usage[split] = _score(context, evolution, name, row, split)
    return scores, items, usage


def _remove_transcripts(folder: Path, rows: Mapping[str, Mapping[Split, Any]]) -> None:
    """Removes the transcripts of all rows but these, which are given with their scores of problems."""
    kept = {_transcripts(folder, name, split) for name, items in rows.items() for split in items if items[split]}
    for file in (folder / "transcripts").glob("*.jsonl"):
        if file not in kept:
            file.unlink()


def _transcripts(folder: Path, method: str, split: Split) -> Path:
    """The file of the conversations of a row on a split."""
    return folder / "transcripts" / f"{method.replace('/', '-')}-{split}.jsonl"


def _gradient_row(evolution: Evolution, merge: GradientMerge, known: Measured) -> TableRow:
    """The row of gradient descent; the coefficients are found now, before anything is evaluated, unless the row is known."""
    row = TableRow(merge.express, donate=True)
    if "gradient" in known.scores:
        return row
    evolution.placement.ensure_evaluator().unload()  # to make room
    try:
        merge.ensure_fitted()
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        return dataclasses.replace(row, error="the device's memory does not suffice; decrease gradient.batch_size")
    return row


def table_rows(context: Context, evolution: Evolution, gradient: TableRow | None) -> dict[str, TableRow]:
    """The rows of the results table.

    Args:
        context: the context of the run.
        evolution: the evolution of the run.
        gradient: the row of gradient descent, if there is one.
    """
    models, merges = context.models, Merges(context)
    rows = {"base": TableRow(models.base_params, donate=False)}
    if context.config.model.prepare is not None:
        rows = {"base": TableRow(models.load_original, donate=True), "prepared_base": rows["base"]}
    for name in context.config.expert_names:
        rows[f"expert/{name}"] = TableRow(functools.partial(models.expert_params, name), donate=False)
    for name, folder in models.folders.baselines.items():
        if folder.exists():
            rows[name] = TableRow(functools.partial(models.load_baseline, name), donate=True)

    def expressed(genome: Genome, key: Key | None = None) -> TableRow:
        return TableRow(functools.partial(evolution.placement.express, genome), donate=True, key=key)

    rows["uniform_merge"] = TableRow(merges.uniform, donate=True)
    for name in context.config.merges:
        rows[name] = TableRow(functools.partial(merges.static, name), donate=True)
    if gradient is not None:
        rows["gradient"] = gradient
    for name, model in found_rows(context.config).items():
        merged = evolution.model(model)
        rows[name] = expressed(merged.genome, merged.key)
    return rows


def _score(
    context: Context, evolution: Evolution, method: str, row: TableRow, split: Split
) -> tuple[Mapping[str, float | None], Mapping[str, list[float]], Mapping[str, Any]]:
    """Scores of one row on one split, the score of every problem by task, and what was used; its transcripts are written.

    Where the row can't be evaluated, its scores are None, and there are no scores of problems.
    """
    if row.error is not None:
        context.log(f"warning: {method} can't be evaluated: {row.error}")
        return dict.fromkeys((*context.config.task_names, "average")), {}, {"tokens": None, "seconds": 0.0}
    evaluator = evolution.placement.ensure_evaluator()
    evaluator.unload()  # the weights are made anew for every split, so that memory holds one set at a time
    evaluation = in_less_memory(lambda: evaluator(row.make(), split, donate=row.donate), evaluator.shrink)
    if evaluation.scores is None:
        context.log(f"warning: {method} can't be evaluated: {evaluation.error}")
        return dict.fromkeys((*context.config.task_names, "average")), {}, evaluation_usage(evaluation)
    _write_transcripts(context, method, split, evaluation)
    scores = {**evaluation.scores, "average": float(np.mean(list(evaluation.scores.values())))}
    return scores, evaluation.items, evaluation_usage(evaluation)


def _write_transcripts(context: Context, method: str, split: Split, evaluation: Evaluation) -> None:
    lines = [
        {
            "task": task,
            "split": split,
            "method": method,
            "index": index,
            "score": outcome.score.value,
            "reason": outcome.score.reason,
            "messages": outcome.messages,
            "dropped": outcome.dropped,
        }
        for task, outcomes in evaluation.outcomes.items()
        for index, outcome in enumerate(outcomes)
    ]
    write_text(_transcripts(context.folder, method, split), "".join(json.dumps(line) + "\n" for line in lines))
