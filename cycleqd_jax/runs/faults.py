"""What a run does about evaluations that fail."""

from __future__ import annotations

from collections.abc import Callable

from cycleqd_jax.config import SearchConfig
from cycleqd_jax.engine import Engine
from cycleqd_jax.evaluation import FaultPolicy, GuardedWorker, Worker
from cycleqd_jax.types import ModelEvaluator, Split

__all__ = ["guarded", "halve_slots"]


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


def halve_slots(engine: Engine, configured: int, log: Callable[[str], None]) -> bool:
    """Halves the slots of an engine whose memory has run out.

    Args:
        engine: the engine; its weights are dropped.
        configured: the slots in the config.
        log: called with a line that says so.

    Returns:
        Whether it did; False where they were halved before, or where there is one slot.
    """
    if engine.slots < configured or configured == 1:
        return False
    engine.resize(configured // 2)
    log(
        f"warning: the memory has run out in an evaluation, which starts again with {engine.slots} instead of {configured} "
        "slots; give a new run this number as engine.slots"
    )
    return True
