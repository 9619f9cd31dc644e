"""What a run has used: tokens and seconds, and the figures from which the report computes FLOPs. See ``tables/usage.json``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.files import load_json, write_json
from cycleqd_jax.genome import DenseSpace
from cycleqd_jax.plan import DEVICES, UTILISATION, express_flops, mixed_flops
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.devices.groups import Space
from cycleqd_jax.runs.families import family_of
from cycleqd_jax.types import Split

__all__ = ["GPU", "evaluation_usage", "read_usage", "training_record", "write_selection", "write_training", "write_usage"]

GPU = "h100-80gb"
"""The device for which the report extrapolates GPU-hours, as the paper counts them; see :mod:`cycleqd_jax.plan`."""

EvaluationUsage = Mapping[str, Mapping[Split, Mapping[str, Any]]]
"""Method → split → tokens and seconds."""

TrainingUsage = Mapping[str, Mapping[str, Any] | None]
"""Model → the record of its training; None if it is unknown."""

_TRAINING = ("steps", "tokens", "attended", "seconds")


def training_record(found: Any) -> dict[str, Any] | None:
    """The record of a training in what a file holds; None if it has none.

    Args:
        found: a mapping with ``steps``, ``tokens`` (without padding), ``attended`` (pairs of tokens), ``seconds`` and, where
            the steps compute more than passes of the model, ``flops``. Segment Anything counts images instead of tokens.
    """
    try:
        record = {name: found[name] for name in (*_TRAINING, *(("flops",) if "flops" in found else ()))}
        return record if all(map(math.isfinite, record.values())) else None
    except (KeyError, TypeError, IndexError, OverflowError):
        return None


def write_training(cache: Path, folder: Path, used: Mapping[str, Any]) -> None:
    """Records what the training of a model has used, before the model is saved.

    The record lies in the cache, beside the models, because other programs read model folders.

    Args:
        cache: the cache of the run.
        folder: the model's folder; its name is that of the record.
        used: the record; see :func:`training_record`.
    """
    write_json(_training_file(cache, folder), used)


def _training_file(cache: Path, folder: Path) -> Path:
    return cache / "training" / f"{folder.name}.json"


def evaluation_usage(evaluation: Evaluation) -> dict[str, Any]:
    """Tokens and seconds of an evaluation."""
    return {"tokens": evaluation.tokens, "seconds": sum(evaluation.seconds.values())}


def write_usage(
    context: Context,
    space: Space,
    evaluation: EvaluationUsage | None = None,
    training: TrainingUsage | None = None,
) -> None:
    """Writes ``tables/usage.json``.

    The record of a training that the file has stays as long as its row does.

    Args:
        context: the context of the run.
        space: the genome space.
        evaluation: what the rows of the results table have used; None keeps what the file has.
        training: records of trainings that are not in the cache: that of gradient descent, and those of rows that were taken
            over from another run.
    """
    family = family_of(context.config)
    flops = {**family.flops(context.models.config), "express": express_flops(space), "mixed": 0}
    if context.config.engine.population > 1 and not isinstance(space, DenseSpace):
        flops |= {"express": 0, "mixed": mixed_flops(space)}
    file = _usage_file(context.folder)
    before = read_usage(context.folder, context.log)
    known = {name: training_record(one) for name, one in before.get("training", {}).items()} | dict(training or {})
    found = known | {name: one for name, one in _training(context).items() if one is not None or name not in known}
    if evaluation is not None:
        found = {name: one for name, one in found.items() if name in evaluation}
    usage: dict[str, Any] = {
        "unit": family.unit,
        "flops": flops,
        "gpu": {"name": GPU, "peak": DEVICES[GPU].half, "utilisation": UTILISATION},
        "training": found,
    }
    write_json(file, {**before, **usage, **({} if evaluation is None else {"evaluation": evaluation})})


def write_selection(folder: Path, seconds: Mapping[str, float], log: Callable[[str], None]) -> None:
    """Records the seconds of candidates for the final model in ``tables/usage.json``.

    Args:
        folder: the run folder.
        seconds: candidate → seconds of its evaluation, which replace those of an earlier one.
        log: called with a warning if the file is damaged.
    """
    usage = read_usage(folder, log)
    write_json(_usage_file(folder), {**usage, "selection": {**usage.get("selection", {}), **seconds}})


def _usage_file(folder: Path) -> Path:
    return folder / "tables" / "usage.json"


def read_usage(folder: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """The content of ``tables/usage.json``; empty where it is missing, or damaged, which is a warning."""
    file = _usage_file(folder)
    if not file.exists():
        return {}
    try:
        found = load_json(file)
        parts = [found.get(name, {}) for name in ("training", "evaluation", "selection")]
        if all(isinstance(part, dict) for part in parts):
            return found
    except (OSError, ValueError, AttributeError):
        pass
    log(f"warning: {file} is damaged; its tokens and seconds are unknown until `cycleqd evaluate` runs again")
    return {}


def _record(file: Path, log: Callable[[str], None]) -> dict[str, Any] | None:
    """The record of a training; None where it is missing (of a version without records), or damaged, which is a warning."""
    if not file.exists():
        return None
    try:
        record = training_record(load_json(file))
    except (OSError, ValueError):
        record = None
    if record is None:
        log(f"warning: the record of a training in {file} is damaged; its costs are unknown")
    return record


def _training(context: Context) -> dict[str, Any]:
    """What the training of every model that this run's config trains has used; models that it gives have no entry."""
    config, folders = context.config, context.models.folders
    given = {"base"} if config.model.base is not None else set()
    if config.model.experts is not None:
        given |= {f"expert/{name}" for name in config.expert_names}
    return {
        name: _record(_training_file(Path(config.cache), folder), context.log)
        for name, folder in {**folders.search, **folders.baselines}.items()
        if name not in given and folder.exists()
    }
