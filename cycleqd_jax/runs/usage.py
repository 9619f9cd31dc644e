"""What a run has used: tokens and seconds, and the figures from which the report computes FLOPs. See ``tables/usage.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.evaluation import Evaluation, GenomeEvaluator, Relatives
from cycleqd_jax.files import write_json
from cycleqd_jax.plan import DEVICES, UTILISATION, ModelFlops, express_flops
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.devices import Space
from cycleqd_jax.runs.gradient import GradientMerge
from cycleqd_jax.training import TrainMetrics
from cycleqd_jax.types import Genome, Split

__all__ = ["GPU", "Metered", "evaluation_usage", "write_training", "write_usage"]

GPU = "h100-80gb"
"""The device for which the report extrapolates GPU-hours, as the paper counts them; see :mod:`cycleqd_jax.plan`."""

EvaluationUsage = Mapping[str, Mapping[Split, Mapping[str, Any]]]
"""Method → split → tokens and seconds."""


def write_training(cache: Path, folder: Path, metrics: TrainMetrics) -> None:
    """Records what the training of a model has used, before the model is saved.

    The record lies in the cache, beside the models, because other programs read model folders.

    Args:
        cache: the cache of the run.
        folder: the model's folder; its name is that of the record.
        metrics: of the training.
    """
    used = {"steps": len(metrics.losses), "tokens": metrics.tokens, "attended": metrics.attended, "seconds": metrics.seconds}
    write_json(_training_file(cache, folder), used)


def _training_file(cache: Path, folder: Path) -> Path:
    return cache / "training" / f"{folder.name}.json"


def evaluation_usage(evaluation: Evaluation) -> dict[str, Any]:
    """Tokens and seconds of an evaluation."""
    return {"tokens": evaluation.tokens, "seconds": sum(evaluation.seconds.values())}


def write_usage(context: Context, space: Space, evaluation: EvaluationUsage | None = None) -> None:
    """Writes ``tables/usage.json``.

    Args:
        context: the context of the run.
        space: the genome space.
        evaluation: what the rows of the results table have used; None keeps what the file has.
    """
    usage: dict[str, Any] = {
        "flops": {**dataclasses.asdict(ModelFlops.of(context.models.config)), "express": express_flops(space)},
        "gpu": {"name": GPU, "peak": DEVICES[GPU].half, "utilisation": UTILISATION},
        "training": _training(context),
    }
    file = _usage_file(context.folder)
    write_json(file, {**_read(file), **usage, **({} if evaluation is None else {"evaluation": evaluation})})


class Metered:
    """A :class:`~cycleqd_jax.evaluation.GenomeEvaluator` that adds the seconds of the selection to ``tables/usage.json``.

    Attributes:
        size: genomes per group.
    """

    def __init__(self, evaluator: GenomeEvaluator, folder: Path) -> None:
        """Args:
        evaluator: evaluates candidates.
        folder: the run folder.
        """  # noqa: D205
        self.size = evaluator.size
        self._evaluator = evaluator
        self._file = _usage_file(folder)

    def __call__(
        self,
        groups: Sequence[Sequence[Genome]],
        on_result: Callable[[int, list[Evaluation]], None],
        relatives: Sequence[Relatives] = (),
    ) -> None:
        """Evaluates groups of genomes; see :class:`~cycleqd_jax.evaluation.GenomeEvaluator`."""

        def counted(i: int, evaluations: list[Evaluation]) -> None:
            usage = _read(self._file)
            seconds = sum(sum(evaluation.seconds.values()) for evaluation in evaluations)
            write_json(self._file, usage | {"selection": {"seconds": usage.get("selection", {}).get("seconds", 0.0) + seconds}})
            on_result(i, evaluations)

        options = {"relatives": relatives} if any(relatives) else {}
        self._evaluator(groups, counted, **options)


def _usage_file(folder: Path) -> Path:
    return folder / "tables" / "usage.json"


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def _training(context: Context) -> dict[str, Any]:
    """What the training of every model of this run has used; None for a model that was trained by a version without records."""
    folders, cache = context.models.folders, Path(context.config.cache)
    found: dict[str, Any] = {}
    for name, folder in {**folders.search, **folders.baselines}.items():
        if folder.parent == cache / "models" and folder.exists():
            file = _training_file(cache, folder)
            found[name] = json.loads(file.read_text("utf-8")) if file.exists() else None
    gradient = GradientMerge.file_of(context.folder)
    if context.config.gradient is not None and gradient.exists():
        fitted = json.loads(gradient.read_text("utf-8"))
        found["gradient"] = {name: fitted[name] for name in ("tokens", "attended", "seconds")}
    return found
