"""Failures of single evaluations: attempts are repeated, and what fails for good becomes a quarantined evaluation.

An evaluation fails if a sandbox or a server breaks (``InfraError``), if the memory of a device runs out, if it exceeds its
deadline, or if it ends the processes of workers. Errors of the disk and every other exception stop the run.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from cycleqd_jax.disk_errors import disk_error
from cycleqd_jax.evaluation.evaluator import EvaluationCancelled
from cycleqd_jax.evaluation.workers import Relatives, Stages, Worker, given
from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import Evaluation, Genome, first_line

__all__ = ["FaultPolicy", "GuardedWorker", "in_less_memory", "is_transient", "out_of_memory"]

T = TypeVar("T")

_REASON_LENGTH = 300
"""The most characters of an exception in the reason of a quarantine."""

_INFRA, _MEMORY, _DEADLINE = "InfraError: ", "out of memory: ", "the evaluation exceeded search.deadline"
_WORKERS = "the evaluation ended "
"""How the reasons of transient failures begin."""


@dataclasses.dataclass(frozen=True)
class FaultPolicy:
    """What to do about an evaluation that fails.

    Attributes:
        retries: attempts after the first one that an ``InfraError`` ended.
        pause: seconds before the second attempt; every further pause is four times as long: 1, 4 and 16 s.
        deadline: seconds for one individual, all attempts and pauses included; None is no limit. A group of individuals has
            that many seconds for each of them.
        quarantine: whether an individual that fails for good gets an evaluation with an error. Otherwise the last exception is
            raised.
    """

    retries: int = 3
    pause: float = 1.0
    deadline: float | None = None
    quarantine: bool = True


class GuardedWorker:
    """A worker whose failures become quarantined evaluations.

    A group that fails for good is evaluated again one individual at a time, so that one individual does not take the others
    with it. The last bits of results may depend on the group, so those individuals may get other bits than in a run without
    failures. A group that succeeds in a repeated attempt gets the same bits. A
    :class:`~cycleqd_jax.evaluation.PopulationWorker` pads a single individual to its size, so it needs as much memory for
    weights as the group.

    Attributes:
        size: that of the worker.
    """

    def __init__(
        self,
        worker: Worker,
        policy: FaultPolicy,
        *,
        shrink: Callable[[], bool] = lambda: False,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Args:
        worker: evaluates the individuals.
        policy: what to do about failures.
        shrink: called when memory has run out; makes the worker need less of it, or returns False.
        log: called with a line for every attempt that is repeated, and for every group that is divided.
        """  # noqa: D205
        self.size = worker.size
        self._worker = worker
        self._policy = policy
        self._shrink = shrink
        self._log = log

    def __call__(
        self, genomes: Sequence[Genome], stop: threading.Event, relatives: Relatives = (), stages: Stages = ()
    ) -> list[Evaluation]:
        """Evaluations of the genomes, in order; see :class:`Worker`. Where one failed, ``transient`` is set.

        ``seconds["retries"]`` is the time of failed attempts and pauses, where there were any. A group's time is divided by
        the number of its individuals.

        Raises:
            EvaluationCancelled: ``stop`` was set.
            KeyboardInterrupt: an ``InfraError`` or another exception hid it while the evaluation ended.
            InfraError: without ``policy.quarantine``, every attempt failed; or the disk was the cause.
        """
        start = time.perf_counter()
        found = self._attempts(genomes, stop, given(relatives, stages))
        if not isinstance(found, str):
            return found
        if len(genomes) == 1:
            return [Evaluation({}, found, {"evaluate": time.perf_counter() - start}, transient=True)]
        self._log(
            f"warning: a group of {len(genomes)} individuals failed, each is evaluated alone, which may change the last bits "
            f"of their results: {found}"
        )
        spent = (time.perf_counter() - start) / len(genomes)
        known = relatives or [()] * len(genomes)
        alone = [self([genome], stop, [known[i]], stages[i : i + 1])[0] for i, genome in enumerate(genomes)]
        return [with_retries(one, spent) for one in alone]

    def _attempts(self, genomes: Sequence[Genome], stop: threading.Event, options: Mapping[str, Any]) -> list[Evaluation] | str:
        """The evaluations, or why there are none."""
        policy, attempt, start = self._policy, 1, time.perf_counter()
        until = stop if policy.deadline is None else _DeadlineOrStop(stop, policy.deadline * len(genomes))
        while True:
            try:
                spent = (time.perf_counter() - start) / len(genomes)
                found = in_less_memory(lambda: self._uninterrupted(genomes, until, **options), self._shrink)
                return found if attempt == 1 else [with_retries(one, spent) for one in found]
            except EvaluationCancelled:
                if stop.is_set() or not until.is_set():
                    raise
                return f"{_DEADLINE}, {policy.deadline:g} s"
            except InfraError as error:
                if attempt > policy.retries and (not policy.quarantine or disk_error(error) is not None):
                    raise
                reason = f"{_INFRA}{first_line(error, _REASON_LENGTH)}"
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not policy.quarantine or not out_of_memory(error):
                    raise
                return f"{_MEMORY}{first_line(error, _REASON_LENGTH)}"
            if attempt > policy.retries:
                return f"{reason} (in {attempt} attempts)"
            pause = policy.pause * 4 ** (attempt - 1)
            self._log(f"warning: attempt {attempt} of {policy.retries + 1} failed, the next follows in {pause:g} s: {reason}")
            until.wait(pause)
            attempt += 1

    def _uninterrupted(self, genomes: Sequence[Genome], stop: threading.Event, **options: Any) -> list[Evaluation]:
        """Calls the worker. Where closing a sandbox failed while an interrupt ended the call, the interrupt is raised."""
        handled = sys.exc_info()[1]  # the caller may handle an older interrupt, which is behind every exception
        try:
            return self._worker(genomes, stop, **options)
        except Exception as error:
            interrupt = _interrupt_behind(error)
            if interrupt is not None and interrupt is not handled:
                raise interrupt from None
            raise


class _DeadlineOrStop(threading.Event):
    """Is set when another event is set, and when a time is over. The clock is monotonic: changes of the date have no effect."""

    def __init__(self, event: threading.Event, seconds: float) -> None:
        super().__init__()
        self._event = event
        self._end = time.monotonic() + seconds

    def is_set(self) -> bool:
        return self._event.is_set() or time.monotonic() >= self._end

    def wait(self, timeout: float | None = None) -> bool:
        left = max(self._end - time.monotonic(), 0.0)
        self._event.wait(left if timeout is None else min(timeout, left))
        return self.is_set()


def is_transient(reason: str) -> bool:
    """Whether the error of an individual says that another evaluation may succeed; see :class:`~cycleqd_jax.types.Evaluation`.

    >>> from cycleqd_jax.evaluation import is_transient
    >>> is_transient("InfraError: no box (in 4 attempts)"), is_transient("the logits are not finite")
    (True, False)
    """
    return reason.startswith((_INFRA, _MEMORY, _DEADLINE, _WORKERS))


def in_less_memory(evaluate: Callable[[], T], shrink: Callable[[], bool]) -> T:
    """Evaluates; where memory runs out, shrinks what needs it and evaluates once more.

    Args:
        evaluate: called without arguments, once or twice.
        shrink: makes it need less memory, or returns False.

    Raises:
        Exception: what ``evaluate`` raised, where it was another error or there was nothing to shrink.
    """
    try:
        return evaluate()
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not out_of_memory(error) or not shrink():
            raise
    return evaluate()  # the exception is freed, and so are the arrays in its frames


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of a device or of the host has run out.

    >>> from cycleqd_jax.evaluation import out_of_memory
    >>> out_of_memory(MemoryError()), out_of_memory(ValueError("RESOURCE_EXHAUSTED: Error writing"))
    (True, False)
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def ended_workers(count: int, reason: str) -> str:
    """The error of an individual whose evaluation ended several workers.

    >>> from cycleqd_jax.evaluation.faults import ended_workers, is_transient
    >>> is_transient(ended_workers(3, "killed"))
    True
    """
    return f"{_WORKERS}{count} workers: {reason}"


def with_retries(evaluation: Evaluation, seconds: float) -> Evaluation:
    """An evaluation with further seconds of failed attempts."""
    known = evaluation.seconds
    return dataclasses.replace(evaluation, seconds={**known, "retries": known.get("retries", 0.0) + seconds})


def _interrupt_behind(error: BaseException) -> BaseException | None:
    """The KeyboardInterrupt or SystemExit that was being handled when an exception was raised; None if there is none."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if isinstance(cause, KeyboardInterrupt | SystemExit):
            return cause
        seen.append(cause)
        cause = cause.__context__ or cause.__cause__
    return None
