"""The models of a finished run on other tasks: what merging keeps, as in the paper's Table 3."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cycleqd_jax.config import RunConfig, Suite, SuiteTask, TaskConfig, to_dict
from cycleqd_jax.evaluation import Evaluation, in_less_memory
from cycleqd_jax.files import digest, load_json, write_json
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.runs.context import Context, workers
from cycleqd_jax.runs.evolution import Evolution
from cycleqd_jax.runs.results.measurement import TableRow, table_rows
from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.schema import SCHEMA
from cycleqd_jax.tasks import RecordTask, TaskOptions, make_task
from cycleqd_jax.types import InputError

__all__ = ["measure_suite", "suite_file"]


def suite_file(folder: Path, suite: Suite) -> Path:
    """The file with the results of a suite, in a run folder."""
    return folder / "tables" / f"suite-{suite.name}.json"


def measure_suite(context: Context, evolution: Evolution, sandbox: Sandbox | None, suite: Suite) -> dict[str, Any]:
    """Scores every row of the results table, gradient descent excepted, on the tasks of a suite.

    The results are written after every row. A row that is there, with the same weights and problems, is not scored again.

    Args:
        context: the context of the run.
        evolution: the evolution of the run. It evolves first if that has not been done.
        sandbox: executes the replies.
        suite: the tasks.

    Returns:
        The content of ``tables/suite-NAME.json``: for every row its scores by task, the scores of the problems, and what
        identifies its weights; for every task its kind, its number of problems, and a digest of problems and settings.

    Raises:
        InputError: the run is one of images or distributed, a task can't be opened, or ``max_len`` is beyond the context of
            the model.
    """
    models = context.models
    if sandbox is None or not isinstance(models.config, LlamaConfig):
        raise InputError("expected a run of language models for a suite, got one of images; leave --suite out")
    if context.mirror is not None:
        raise InputError("expected a run in one process for a suite, got --distributed; leave one of both out")
    given = context.config.engine
    max_len = suite.max_len or given.max_len
    if max_len > models.config.context_length:
        raise InputError(
            f"expected max_len of at most {models.config.context_length}, the context of the model, got {max_len} in suite "
            f"{suite.name}; decrease it"
        )
    with contextlib.ExitStack() as stack:
        tasks = [_open(task, context.config, sandbox, stack) for task in suite.tasks]
        config = dataclasses.replace(
            context.config,
            tasks=tuple(TaskConfig(name=task.name, kind=task.kind, test_size=None) for task in suite.tasks),
            engine=dataclasses.replace(
                context.config.engine, max_len=max_len, slots=suite.slots or context.config.engine.slots
            ),
        )
        evolution.ensure_evolved()
        file = suite_file(context.folder, suite)
        facts = {
            task.name: {"kind": one.kind, "problems": len(task.rows["test"]), "digest": task.fingerprint("test")}
            for one, task in zip(suite.tasks, tasks, strict=True)
        }
        settings = digest([facts, to_dict(config.engine) | {"slots": None}])
        known = _known(file, settings, {name: task["problems"] for name, task in facts.items()})
        rows = table_rows(context, evolution, None)
        evolution.placement.ensure_evaluator().unload()  # to make room
        found: dict[str, Any] = {}
        record = {"schema": SCHEMA, "title": suite.title or suite.name, "settings": settings, "tasks": facts, "rows": found}
        evaluator = dataclasses.replace(context, config=config, tasks=tuple(tasks), read_only=True).evaluator(
            models.config, models.processor, context.groups[0]
        )
        for done, (name, row) in enumerate(rows.items()):
            context.progress("suite", done, len(rows), {})
            key = None if row.key is None else [row.key[0], list(row.key[1])]
            twin = next((other for other in found.values() if key is not None and other["key"] == key), None)
            if name in known and known[name]["key"] == key:
                found[name] = known[name]
            elif twin is not None:
                found[name] = twin
            else:
                evaluator.unload()
                evaluation = in_less_memory(functools.partial(_evaluated, evaluator, row), evaluator.shrink)
                found[name] = _row(context, name, evaluation, key)
            later = {other: row for other, row in known.items() if other in rows and other not in found}
            write_json(file, record | {"rows": found | later})
        write_json(file, record)
        context.progress("suite", len(rows), len(rows), {})
        evaluator.unload()
    return record


def _evaluated(evaluator: Any, row: TableRow) -> Evaluation:
    return evaluator(row.make(), "test", donate=row.donate)


def _row(context: Context, name: str, evaluation: Evaluation, key: Any) -> dict[str, Any]:
    if evaluation.scores is None:
        context.log(f"warning: {name} can't be evaluated: {evaluation.error}")
        return {"key": key, "scores": None, "items": {}}
    return {"key": key, "scores": dict(evaluation.scores), "items": {task: list(x) for task, x in evaluation.items.items()}}


def _known(file: Path, settings: str, problems: Mapping[str, int]) -> Mapping[str, Any]:
    """The rows of an earlier measurement with the same settings that have a score for each of the problems of every task."""
    try:
        tree = load_json(file)
        if tree["settings"] != settings:
            return {}
        return {
            name: row
            for name, row in tree["rows"].items()
            if row["scores"] and "key" in row and {task: len(x) for task, x in row["items"].items()} == problems
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _open(task: SuiteTask, config: RunConfig, sandbox: Sandbox, stack: contextlib.ExitStack) -> RecordTask[Any]:
    options = TaskOptions(
        sandbox=sandbox,
        name=task.name,
        max_new_tokens=task.max_new_tokens,
        data=task.data,
        workers=workers(config),
    )
    opened = make_task(task.kind, options, **task.options)
    stack.callback(opened.close)
    opened.test_on_all(task.limit)
    return opened
