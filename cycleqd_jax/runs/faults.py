"""What a run does about evaluations that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cycleqd_jax.config import SearchConfig
from cycleqd_jax.engine import Engine
from cycleqd_jax.evaluation import FaultPolicy, GuardedWorker, Worker
from cycleqd_jax.files import write_json
from cycleqd_jax.report.read import load_engine
from cycleqd_jax.schema import SCHEMA
from cycleqd_jax.types import ModelEvaluator, Split

__all__ = ["forget_slots", "guarded", "halve_batch", "halve_slots", "known_slots"]

FILE = "engine.json"
"""The file in a run folder that says that slots were halved."""


def guarded(
    worker: Worker, evaluator: ModelEvaluator, options: SearchConfig, split: Split, log: Callable[[str], None]
) -> Worker:
    """A worker that repeats attempts and needs less memory where it runs out.

    On train problems an individual that fails for good is quarantined. On others the exception is raised: a candidate for the
    final model is not left out because a sandbox broke.

    Args:
        worker: evaluates individuals.
        evaluator: that of the worker.
        options: the config of the search.
        split: the problems that individuals are scored on.
        log: called with a line for every attempt that is repeated.
    """
    train = split == "train"
    policy = FaultPolicy(options.retries, deadline=options.deadline if train else None, quarantine=train)
    return GuardedWorker(worker, policy, shrink=evaluator.shrink, log=log)


def forget_slots(folder: Path) -> None:
    """Removes ``engine.json`` of a folder without scores, which an earlier start left; the next scores are of all slots.

    Args:
        folder: the run folder, when a run is opened. A later attempt of this run has the slots that it halved.
    """
    if not (folder / "history.jsonl").exists():
        (folder / FILE).unlink(missing_ok=True)


def known_slots(folder: Path, configured: int) -> int:
    """The slots with which a run continues: those in ``engine.json`` where its memory has run out before.

    In bfloat16 replies may depend on the slots, and masks on the images per call. So a run continues with the same number.

    Args:
        folder: the run folder. One without scores belongs to no config yet, and its file is not used.
        configured: the slots in the config, or ``masks.batch_size``.

    Raises:
        InputError: the file is damaged, or of a newer version.
    """
    found = load_engine(folder) if (folder / "history.jsonl").exists() else None
    return configured if found is None or found["configured"] != configured else found["slots"]


def halve_slots(engine: Engine, configured: int, log: Callable[[str], None], folder: Path | None = None) -> bool:
    """Halves the slots of an engine whose memory has run out; see :func:`halve_batch`.

    Args:
        engine: the engine; its weights are dropped.
        configured: the slots in the config.
        log: called with a line that says so.
        folder: the run folder, where ``engine.json`` records it; None records nothing.
    """
    what = "slots, which may change the last bits of results in bfloat16"
    return halve_batch(engine.slots, engine.resize, configured, log, folder, what=what, key="engine.slots")


def halve_batch(
    now: int,
    resize: Callable[[int], None],
    configured: int,
    log: Callable[[str], None],
    folder: Path | None,
    *,
    what: str,
    key: str,
) -> bool:
    """Halves what is computed at once, where memory has run out.

    Args:
        now: how much is computed at once.
        resize: changes it, and drops the weights.
        configured: how much the config says.
        log: called with a line that says so.
        folder: the run folder, where ``engine.json`` records it; None records nothing.
        what: what is computed at once, for the line.
        key: the key of the config.

    Returns:
        Whether it did; False where it was halved before, or where it is 1.

    Raises:
        OSError: the disk refuses.
    """
    if now < configured or configured == 1:
        return False
    half = configured // 2
    if folder is not None:
        write_json(folder / FILE, {"schema": SCHEMA, "configured": configured, "slots": half})
    resize(half)
    log(
        f"warning: the memory has run out in an evaluation, which starts again with {half} instead of {configured} {what}; "
        f"give a new run this number as {key}"
    )
    return True
