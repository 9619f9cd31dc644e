"""The final measurement of a run: every row of the results table, on the train and test problems of every task."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax import operators
from cycleqd_jax.config import to_dict
from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.files import write_json, write_text
from cycleqd_jax.genome import CoefficientGenome, CoefficientSpace
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.evolution import Evolution
from cycleqd_jax.runs.gradient import GradientMerge
from cycleqd_jax.runs.selection import Key
from cycleqd_jax.runs.usage import evaluation_usage, write_usage
from cycleqd_jax.types import REPORTED, Genome, Params, Split

__all__ = ["measure"]


_SEEDED = ("dare", "dare_ties", "gradient")
"""Rows that depend on the seed of the run, beside those that the search found: random masks, the order of conversations."""


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


@dataclasses.dataclass(frozen=True)
class _Scored:
    """What is known of a row, by split.

    Attributes:
        scores: of every task, and the average.
        items: the scores of problems, by task; empty where the model can't be evaluated.
        usage: tokens and seconds.
    """

    scores: Mapping[Split, Mapping[str, float | None]]
    items: Mapping[Split, Mapping[str, Sequence[float]]]
    usage: Mapping[Split, Mapping[str, Any]]


def measure(context: Context, evolution: Evolution, isolation: str) -> dict[str, Any]:
    """Evaluates every row on train and test; writes ``results.json``, ``items.json``, ``usage.json`` and ``transcripts/``.

    The JSON files are in ``tables/``. Seconds are in ``usage.json`` only, so a run that was killed ends with the same results.

    Rows of equal weights are evaluated once. The transcripts are those of the first of them. Rows that do not depend on the
    search are taken over from ``context.shared``. Transcripts of other rows, which an earlier measurement left, are removed.

    Every row is kept in ``measured.json`` until all are there. A measurement that was killed evaluates only what the file
    lacks.

    Args:
        context: the context of the run.
        evolution: the evolution of the run. It evolves first if that has not been done.
        isolation: the isolation of the sandbox, for the record.

    Returns:
        The content of ``results.json``. ``found`` names the rows of models that the search found.
    """
    known = {} if context.shared is None else _known(context.shared, context.config.seed)
    rows = _rows(context, evolution, fit="gradient" not in known)
    measured = _Measured(context)
    found: dict[str, _Scored] = {}
    first: dict[Key, str] = {}
    for done, (name, row) in enumerate(rows.items()):
        context.progress("measure", done, len(rows), {})
        twin = name if row.key is None else first.setdefault(row.key, name)
        if row.key is None and name in known:
            found[name] = known[name]
        elif twin != name:
            found[name] = found[twin]
        else:
            found[name] = measured.ensure(name, row, lambda name=name, row=row: _scored(context, evolution, name, row))
    context.progress("measure", len(rows), len(rows), {})
    _remove_transcripts(context.folder, measured.rows)
    results = {
        "methods": {name: one.scores for name, one in found.items()},
        "found": [name for name, row in rows.items() if row.key is not None],
        "tasks": list(context.config.task_names),
        "seed": context.config.seed,
        **({"aggregate": dict(evolution.aggregate().facts)} if evolution.is_cycleqd else {}),
        **({"selected": dict(evolution.selected().facts)} if context.config.selects else {}),
        "best_elite": evolution.best_elite().facts["id"],
        "isolation": isolation,
    }
    write_usage(context, evolution.ensure_space(), {name: one.usage for name, one in found.items()})
    write_json(context.folder / "tables" / "items.json", {name: one.items for name, one in found.items()})
    write_json(context.folder / "tables" / "results.json", results)
    measured.remove()
    return results


class _Measured:
    """The rows that this measurement has evaluated, in ``tables/measured.json``."""

    def __init__(self, context: Context) -> None:
        """Reads the file, where it belongs to a measurement of the same models."""
        config = context.config
        self._file = context.folder / "tables" / "measured.json"
        self._models = {"generations": config.search.generations, "gradient": to_dict(config.gradient)}
        self._known: dict[str, Any] = {}
        self.rows: dict[str, _Scored] = {}
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is damaged
            found = json.loads(self._file.read_text("utf-8"))
            if found["models"] == self._models:
                self._known = found["rows"]

    def ensure(self, name: str, row: _Row, score: Callable[[], _Scored]) -> _Scored:
        """What is known of a row; it is evaluated where that is nothing."""
        known = self._known.get(name)
        if known is not None and known.pop("key") == repr(row.key):
            self.rows[name] = _Scored(**known)
        else:
            self.rows[name] = score()
        self._known[name] = {"key": repr(row.key), **dataclasses.asdict(self.rows[name])}
        write_json(self._file, {"models": self._models, "rows": self._known})
        return self.rows[name]

    def remove(self) -> None:
        """Removes the file, when all results are written."""
        self._file.unlink(missing_ok=True)


def _remove_transcripts(folder: Path, rows: Mapping[str, _Scored]) -> None:
    """Removes the transcripts of all rows but these."""
    kept = {_transcripts(folder, name, split) for name, one in rows.items() for split in one.items if one.items[split]}
    for file in (folder / "transcripts").glob("*.jsonl"):
        if file not in kept:
            file.unlink()


def _transcripts(folder: Path, method: str, split: Split) -> Path:
    """The file of the conversations of a row on a split."""
    return folder / "transcripts" / f"{method.replace('/', '-')}-{split}.jsonl"


def _known(folder: Path, seed: int) -> dict[str, _Scored]:
    """Scores, scores of problems, and what was used, of the rows of a finished run that are also those of a seed, by name."""
    files = (folder / "tables" / name for name in ("results.json", "items.json", "usage.json"))
    results, items, usage = (json.loads(file.read_text("utf-8")) for file in files)
    rows = [name for name in results["methods"] if results["seed"] == seed or name not in _SEEDED]
    return {name: _Scored(results["methods"][name], items[name], usage["evaluation"][name]) for name in rows}


def _rows(context: Context, evolution: Evolution, *, fit: bool) -> dict[str, _Row]:
    """The rows of the results table.

    Args:
        context: the context of the run.
        evolution: the evolution of the run.
        fit: whether the coefficients of gradient descent are needed.
    """
    models = context.models
    rows = {"base": _Row(lambda: models.base, donate=False)}
    if context.config.model.prepare is not None:
        rows = {"base": _Row(models.load_original, donate=True), "prepared_base": rows["base"]}
    for name in context.config.task_names:
        rows[f"expert/{name}"] = _Row(functools.partial(models.expert_params, name), donate=False)
    for name, folder in models.folders.baselines.items():
        if folder.exists():
            rows[name] = _Row(functools.partial(models.load_baseline, name), donate=True)

    def expressed(genome: Genome, key: Key | None = None) -> _Row:
        return _Row(functools.partial(evolution.express, genome), donate=True, key=key)

    rows["uniform_merge"] = _Row(functools.partial(_uniform, context), donate=True)
    for name in context.config.merges:
        rows[name] = _Row(functools.partial(_merged, context, name), donate=True)
    if context.config.gradient is not None:
        merge = GradientMerge(context, context.config.gradient)
        if fit:
            evolution.ensure_evaluator().unload()  # to make room
            merge.ensure_fitted()  # before anything is evaluated
        rows["gradient"] = _Row(merge.express, donate=True)
    method = context.config.search.method
    found = {method: evolution.best_elite}
    if evolution.is_cycleqd:
        found = {f"{method}_best_elite": evolution.best_elite, method: evolution.aggregate}
    if context.config.selects:
        found |= {f"{method}_soup": evolution.soup, f"{method}_selected": evolution.selected}
    for name, model in found.items():
        merged = model()
        rows[name] = expressed(merged.genome, merged.key)
    return rows


def _uniform(context: Context) -> Params:
    """The uniform merge of the experts. It is computed in one way, because genome spaces round differently."""
    group, models = context.groups[0], context.models
    space = CoefficientSpace.from_experts(models.base, models.experts, densify=context.config.genome.densify)
    space = group.place_space(space, models.config)
    count = len(models.experts)
    return group.express(space.express)(CoefficientGenome(jnp.full((1, count), 1 / count, jnp.float32)))


def _merged(context: Context, method: str) -> Params:
    """The experts merged by a static method, with random masks by the seed of the run."""
    models = context.models
    return operators.static_merge(method, models.base, models.experts, jax.random.key(context.config.seed))


def _scored(context: Context, evolution: Evolution, method: str, row: _Row) -> _Scored:
    """One row on all splits; its transcripts are written."""
    scores: dict[Split, Mapping[str, float | None]] = {}
    items: dict[Split, Mapping[str, Sequence[float]]] = {}
    usage: dict[Split, Mapping[str, Any]] = {}
    for split in REPORTED:
        scores[split], items[split], usage[split] = _score(context, evolution, method, row, split)
    return _Scored(scores, items, usage)


def _score(
    context: Context, evolution: Evolution, method: str, row: _Row, split: Split
) -> tuple[Mapping[str, float | None], Mapping[str, Sequence[float]], Mapping[str, Any]]:
    """Scores of one row on one split, the score of every problem by task, and what was used; its transcripts are written.

    Where the row can't be evaluated, its scores are None, and there are no scores of problems.
    """
    evaluator = evolution.ensure_evaluator()
    evaluator.unload()  # the weights are made anew for every split, so that memory holds one set at a time
    evaluation = evaluator(row.make(), split, donate=row.donate)
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
