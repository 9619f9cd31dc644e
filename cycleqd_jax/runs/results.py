"""The final measurement of a run: every row of the results table, on the train and test problems of every task."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cycleqd_jax import operators
from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.files import write_json, write_text
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.evolution import Evolution
from cycleqd_jax.runs.selection import Key
from cycleqd_jax.types import REPORTED, Genome, Params, Split

__all__ = ["measure"]


@dataclasses.dataclass(frozen=True)
class _Row:
    """One row of the results table.

    Attributes:
        make: makes the weights.
        donate: whether the weights belong to the evaluator, which may use their buffers up.
        key: of a model that the search found; equal for equal weights. None for models that do not depend on the search.
    """

    make: Callable[[], Params]
    donate: bool
    key: Key | None = None


def measure(context: Context, evolution: Evolution, isolation: str) -> dict[str, Any]:
    """Evaluates every row on train and test; writes ``tables/results.json``, ``tables/items.json`` and ``transcripts/``.

    Rows of equal weights are evaluated once. The transcripts are those of the first of them. Rows that do not depend on the
    search are taken over from ``context.shared``.

    Args:
        context: the context of the run.
        evolution: the evolution of the run. It evolves first if that has not been done.
        isolation: the isolation of the sandbox, for the record.

    Returns:
        The content of ``results.json``. ``found`` names the rows of models that the search found.
    """
    rows = _rows(context, evolution)
    known = {} if context.shared is None else _known(context.shared)
    methods: dict[str, dict[Split, Mapping[str, float | None]]] = {}
    items: dict[str, dict[Split, Mapping[str, list[float]]]] = {}
    first: dict[Key, str] = {}
    for done, (name, row) in enumerate(rows.items()):
        context.progress("measure", done, len(rows), {})
        if row.key is None and name in known:
            methods[name], items[name] = known[name]
            continue
        twin = name if row.key is None else first.setdefault(row.key, name)
        if twin != name:
            methods[name], items[name] = methods[twin], items[twin]
            continue
        methods[name], items[name] = {}, {}
        for split in REPORTED:
            methods[name][split], items[name][split] = _score(context, evolution, name, row, split)
    context.progress("measure", len(rows), len(rows), {})
    results = {
        "methods": methods,
        "found": [name for name, row in rows.items() if row.key is not None],
        "tasks": list(context.config.task_names),
        "seed": context.config.seed,
        **({"aggregate": dict(evolution.aggregate().facts)} if evolution.is_cycleqd else {}),
        **({"selected": dict(evolution.selected().facts)} if context.config.selects else {}),
        "best_elite": evolution.best_elite().facts["id"],
        "isolation": isolation,
    }
    write_json(context.folder / "tables" / "items.json", items)
    write_json(context.folder / "tables" / "results.json", results)
    return results


def _known(folder: Path) -> dict[str, tuple[dict[Split, Mapping[str, float | None]], dict[Split, Mapping[str, list[float]]]]]:
    """Scores and scores of problems of every row of a finished run, by name."""
    results, items = ((json.loads((folder / "tables" / name).read_text("utf-8"))) for name in ("results.json", "items.json"))
    return {name: (results["methods"][name], items[name]) for name in results["methods"]}


def _rows(context: Context, evolution: Evolution) -> dict[str, _Row]:
    models = context.models
    rows = {"base": _Row(lambda: models.base, donate=False)}
    for name in context.config.task_names:
        rows[f"expert/{name}"] = _Row(functools.partial(models.expert_params, name), donate=False)
    for name, folder in models.folders.baselines.items():
        if folder.exists():
            rows[name] = _Row(functools.partial(models.load_baseline, name), donate=True)

    def expressed(genome: Genome, key: Key | None = None) -> _Row:
        return _Row(functools.partial(evolution.express, genome), donate=True, key=key)

    experts = evolution.expert_genomes()
    rows["uniform_merge"] = expressed(jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *experts))
    for name in context.config.merges:
        rows[name] = _Row(functools.partial(_merged, context, name), donate=True)
    found = {context.config.search.method: evolution.best_elite}
    if evolution.is_cycleqd:
        found = {"cycleqd_best_elite": evolution.best_elite, "cycleqd": evolution.aggregate}
    if context.config.selects:
        found |= {"cycleqd_soup": evolution.soup, "cycleqd_selected": evolution.selected}
    for name, model in found.items():
        merged = model()
        rows[name] = expressed(merged.genome, merged.key)
    return rows


def _merged(context: Context, method: str) -> Params:
    """The experts merged by a static method, with random masks by the seed of the run."""
    models = context.models
    return operators.static_merge(method, models.base, models.experts, jax.random.key(context.config.seed))


def _score(
    context: Context, evolution: Evolution, method: str, row: _Row, split: Split
) -> tuple[Mapping[str, float | None], Mapping[str, list[float]]]:
    """Scores of one row on one split and the score of every problem by task; its transcripts are written.

    Where the row can't be evaluated, its scores are None, and there are no scores of problems.
    """
    evaluator = evolution.ensure_evaluator()
    evaluator.unload()  # the weights are made anew for every split, so that memory holds one set at a time
    evaluation = evaluator(row.make(), split, donate=row.donate)
    if evaluation.scores is None:
        context.log(f"warning: {method} can't be evaluated: {evaluation.error}")
        return dict.fromkeys((*context.config.task_names, "average")), {}
    _write_transcripts(context, method, split, evaluation)
    return {**evaluation.scores, "average": float(np.mean(list(evaluation.scores.values())))}, evaluation.items


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
    path = context.folder / "transcripts" / f"{method.replace('/', '-')}-{split}.jsonl"
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
