"""Workers that may join, leave, hang and die, and the evaluations that they share."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from cycleqd_jax.evaluation.faults import ended_workers, with_retries
from cycleqd_jax.evaluation.ray.cluster import Cluster, WorkerLost
from cycleqd_jax.evaluation.ray.host import Program
from cycleqd_jax.evaluation.ray.jobs import Job, Jobs
from cycleqd_jax.evaluation.ray.records import WorkerRecord
from cycleqd_jax.evaluation.ray.starts import Starts
from cycleqd_jax.evaluation.workers import Relatives, Source, StreamEvaluator
from cycleqd_jax.interrupts import signals_held
from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import Evaluation, Genome, InputError, Split, first_line

__all__ = ["Patience", "RayPool"]

TICK_S = 1.0
"""Longest wait for a call, after which deadlines are checked."""

WAITING_S = 30.0
"""Seconds without any worker after which a line says what the cluster lacks; then after twice as many, and so on."""

RECORD_S = 5.0
"""Seconds after which the records are written again though no worker has changed its state."""

LOST_MACHINES = 20
"""Machines that may be lost while they evaluate an individual; then it is treated as if it had ended too many workers."""

TRACEBACK_LINES = 30
"""Number of last lines of a worker's traceback that are logged."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a pool waits, and how often it tries.

    Attributes:
        deadline: seconds for one individual, after which its worker is ended and the individual is evaluated elsewhere.
        start: seconds to load the models, after which a worker is ended.
        deaths: number of workers that may end while they evaluate an individual; then it is quarantined.
    """

    deadline: float = 3600.0
    start: float = 3600.0
    deaths: int = 3


@dataclasses.dataclass
class _Slot:
    """A worker, and what it does."""

    record: WorkerRecord
    worker: Any
    call: Hashable | None
    since: float
    process: Mapping[str, Any] | None = None
    job: Job | None = None

    @property
    def node(self) -> str | None:
        return None if self.process is None else self.process["node"]


class RayPool:
    """Evaluates genomes on the workers of a cluster.

    The next idle worker gets the next group, so the order of the results depends on time, and the results do not. A worker that
    dies, or that needs longer than the deadline, is replaced, and its genomes are evaluated again. An individual whose
    evaluation ends ``patience.deaths`` workers is quarantined. Where that happens to a group, each of its individuals is
    evaluated alone, which may change the last bits of their results. Workers join when the cluster has room for them.
    """

    def __init__(
        self,
        cluster: Cluster,
        program: Program,
        *,
        size: int,
        workers: int,
        patience: Patience | None = None,
        device: str | None = None,
        grace: float = 0.0,
        record: Callable[[Sequence[WorkerRecord]], None] = lambda records: None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Starts nothing yet.

        Args:
            cluster: runs the workers.
            program: loads the models in every worker.
            size: genomes per group.
            workers: the most workers.
            patience: see :class:`Patience`.
            device: the kind of devices that all workers must have; None takes that of the first.
            grace: seconds that running evaluations may take to end after an interrupt (Ctrl-C). A second one ends them.
            record: called with the records of all workers when they change.
            log: called with single lines.
        """
        self.size = size
        self.device = device
        self._cluster = cluster
        self._program = program
        self._most = workers
        self._patience = patience or Patience()
        self._grace = grace
        self._record, self._log = record, log
        self._slots: list[_Slot] = []
        self._gone: list[WorkerRecord] = []
        self._starts = Starts(workers)
        self._alone_since = time.monotonic()
        self._told_after = WAITING_S
        self._recorded = 0.0

    def evaluator(self, split: Split, *, quarantine: bool) -> StreamEvaluator:
        """Evaluates on the problems of a split: a :class:`~cycleqd_jax.evaluation.StreamEvaluator`.

        Args:
            split: the problems.
            quarantine: whether an individual that ends too many workers gets an evaluation with an error. Otherwise that is an
                ``InfraError``.
        """
        return _SplitEvaluator(self, split, quarantine)

    def close(self) -> None:
        """Ends all workers."""
        for slot in list(self._slots):
            with contextlib.suppress(Exception):  # the others must end too
                self._end(slot, "ended", None)
        self._write_records(now=True)
        self._cluster.close()

    @property
    def records(self) -> list[WorkerRecord]:
        """The records of all workers, in the order of their ids."""
        return sorted([*self._gone, *(slot.record for slot in self._slots)], key=lambda record: record.id)

    def stream(
        self, split: Split, source: Source, on_result: Callable[[int, list[Evaluation]], None], *, quarantine: bool
    ) -> None:
        """Evaluates genomes until there are no more; see :class:`~cycleqd_jax.evaluation.StreamEvaluator`.

        Args:
            split: the problems.
            source: what to evaluate next.
            on_result: called with the number and the evaluations.
            quarantine: see :meth:`evaluator`.

        Raises:
            InputError: no worker of the cluster evaluates as this run does.
            FailuresError: no worker of the cluster can start, or every one fails.
            InfraError: without ``quarantine``, an individual has ended too many workers; or the object store is full.
        """
        jobs = Jobs(source, on_result)
        try:
            self._evaluate(jobs, split, quarantine)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                self._drain(jobs)
            raise
        finally:
            for slot in list(self._slots):
                if slot.job is not None:
                    with contextlib.suppress(Exception):  # the others must end too
                        self._end(slot, "ended", "the run was stopped")
            self._write_records(now=True)

    def _evaluate(self, jobs: Jobs, split: Split, quarantine: bool) -> None:
        """Evaluates until there are no more jobs."""
        while jobs.any_left():
            self._fill()
            for slot in self._slots:
                if slot.record.state == "idle" and jobs.any_waits():
                    self._assign(slot, jobs.waiting.popleft(), split)
            self._collect(jobs, quarantine)
            self._check_any()
            self._write_records()

    def _drain(self, jobs: Jobs) -> None:
        """After an interrupt: no evaluation begins, and running ones may end within the grace period."""
        if jobs.delivering:
            return
        jobs.stopped = True
        try:
            jobs.pass_on()
            if self._grace <= 0 or not any(slot.job for slot in self._slots):
                return
            self._log(f"running evaluations have {self._grace:g} s to end; press Ctrl-C to cancel them")
            end = time.monotonic() + self._grace
            while time.monotonic() < end and any(slot.job for slot in self._slots):
                self._collect(jobs, True, end - time.monotonic())
        except Exception as error:
            self._log(f"warning: an evaluation ended with {type(error).__name__}: {error}")

    def _fill(self) -> None:
        """Asks the cluster for workers until there are as many as wanted."""
        while len(self._slots) < self._most and not self._starts.paused:
            record = WorkerRecord(len(self._slots) + len(self._gone))
            worker = self._cluster.spawn(self._starts.avoid)
            self._slots.append(_Slot(record, worker, self._cluster.call(worker, "identify"), time.monotonic()))

    def _assign(self, slot: _Slot, job: Job, split: Split) -> None:
        with signals_held():  # an evaluation that has begun has a call
            slot.call = self._cluster.call(slot.worker, "evaluate", split, job.genomes, job.relatives)
            slot.job, slot.since, slot.record.state = job, time.monotonic(), "busy"

    def _collect(self, jobs: Jobs, quarantine: bool, seconds: float = TICK_S) -> None:
        """Waits for a moment, and passes on the results of the jobs that are done. Those whose workers were lost wait again.

        A slot has its call until all is done about it: after an interrupt the call is collected again.
        """
        heard = [slot for slot in self._slots if slot.job is not None or not jobs.stopped]
        by_call = {slot.call: slot for slot in heard if slot.call is not None}
        for call in self._cluster.wait(list(by_call), max(0.0, min(seconds, self._until_deadline()))):
            slot = by_call[call]
            try:
                value = self._cluster.result(call)
            except WorkerLost as lost:
                self._lose(slot, str(lost), lost.process, jobs, quarantine)
            except InputError as error:
                if slot.record.state == "busy":
                    self._fail(slot, error, jobs, quarantine)
                else:
                    self._refuse(slot, error)
            except Exception as error:
                self._fail(slot, error, jobs, quarantine)
            else:
                if slot.record.state == "waiting":
                    self._load(slot, value)
                elif slot.job is None:
                    self._welcome(slot, *value)
                else:
                    self._complete(slot, slot.job, jobs, *value)
            jobs.pass_on()
        late = {
            slot.call: (slot, limit)
            for slot in self._slots
            if (limit := self._limit(slot)) is not None and time.monotonic() > slot.since + limit
        }
        ended = set(self._cluster.wait(list(late), 0.0)) if late else set()  # while this process did other things
        for call, (slot, limit) in late.items():
            if call not in ended:
                self._lose(slot, f"no answer within {limit:g} s", True, jobs, quarantine)
        jobs.pass_on()

    def _limit(self, slot: _Slot) -> float | None:
        if slot.record.state == "starting":
            return self._patience.start
        return None if slot.job is None else self._patience.deadline * len(slot.job.members)

    def _until_deadline(self) -> float:
        now = time.monotonic()
        ends = [slot.since + limit - now for slot in self._slots if (limit := self._limit(slot)) is not None]
        return max(0.0, min([TICK_S, *ends]))

    def _load(self, slot: _Slot, process: Mapping[str, Any]) -> None:
        """A process has started; it loads the models."""
        slot.process, slot.since = process, time.monotonic()
        slot.record.host, slot.record.pid = process["host"], process["pid"]
        call = self._cluster.call(slot.worker, "start", self._program)
        slot.call, slot.record.state = call, "starting"
        self._write_records(now=True)

    def _welcome(self, slot: _Slot, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """A worker has loaded the models."""
        for line in lines:
            self._log(f"worker {slot.record.id}: {line}")
        slot.record.device = str(facts["device"])
        self.device = self.device or slot.record.device
        if slot.record.device != self.device:
            self._refuse(
                slot,
                InputError(
                    f"expected devices of the kind {self.device}, as of the other workers, got {slot.record.device} in worker "
                    f"{slot.record.id}; give all workers the same kind of device"
                ),
            )
            return
        slot.record.start_s = time.monotonic() - slot.since
        slot.call, slot.record.state = None, "idle"
        self._starts.succeeded(slot.node)
        self._told_after = WAITING_S
        where = f"worker {slot.record.id} on {slot.record.host} ({slot.record.device})"
        self._log(f"{where} has loaded the models in {slot.record.start_s:.1f} s")
        self._write_records(now=True)

    def _complete(self, slot: _Slot, job: Job, jobs: Jobs, evaluations: list[Evaluation], lines: Sequence[str]) -> None:
        """A worker has evaluated a job."""
        for line in lines:
            self._log(f"worker {slot.record.id}: {line}")
        count, seconds = len(evaluations), time.monotonic() - slot.since
        with signals_held():
            jobs.keep(job, [with_retries(one, job.lost_s / count) for one in evaluations] if job.lost_s else evaluations)
            slot.record.evaluated += count
            slot.record.busy_s += seconds
            slot.call, slot.job, slot.record.state = None, None, "idle"
        self._starts.evaluated(slot.node)

    def _refuse(self, slot: _Slot, error: InputError) -> None:
        """A worker can't start for a reason that holds for its machine."""
        reason = first_line(error)
        where = f"worker {slot.record.id} on {slot.record.host or 'an unknown host'}"
        self._starts.refused(slot.node, f"{where}: {reason}")
        self._log(f"warning: {where} is refused: {reason}")
        self._end(slot, "refused", reason)

    def _fail(self, slot: _Slot, error: Exception, jobs: Jobs, quarantine: bool) -> None:
        """A worker has raised an exception. It is ended, because nothing is known about its state."""
        reason = f"{type(error).__name__}: {first_line(error)}"
        for note in getattr(error, "__notes__", ()):
            for line in note.splitlines()[-TRACEBACK_LINES:]:
                self._log(f"worker {slot.record.id}: {line}")
        if slot.job is not None:
            self._starts.raised(slot.node, slot.job.child, f"worker {slot.record.id} on {slot.record.host}: {reason}")
        self._lose(slot, reason, True, jobs, quarantine)

    def _lose(self, slot: _Slot, reason: str, process: bool, jobs: Jobs, quarantine: bool) -> None:
        """A worker was lost. Its job waits again, or is quarantined."""
        job = slot.job
        where = f"worker {slot.record.id} on {slot.record.host}" if slot.record.host else f"worker {slot.record.id}"
        if job is None:
            self._log(f"warning: {where} ended while it was {slot.record.state}: {reason}")
            if process and slot.record.state != "idle":
                self._starts.failed(slot.node, f"{where}: {reason}")
            self._end(slot, "ended", reason)
            return
        what = f"{len(job.members)} individual{'s' if len(job.members) > 1 else ''}"
        slot.record.lost += len(job.members)
        job.lost_s += time.monotonic() - slot.since
        self._end(slot, "ended", reason)
        if process:
            job.ends.append(reason)
        else:
            job.machines += 1
        again = len(job.ends) < self._patience.deaths and job.machines < LOST_MACHINES
        then = "which another worker evaluates" if again else "which has ended too many workers"
        then = "which is not recorded" if jobs.stopped else then
        self._log(f"warning: {where} ended while it evaluated {what}, {then}: {reason}")
        if again:
            jobs.waiting.appendleft(job)
        elif len(job.members) > 1:
            share = job.lost_s / len(job.members)
            known = job.relatives or [()] * len(job.members)
            for member, genome, one in zip(job.members, job.genomes, known, strict=True):
                jobs.waiting.append(Job(job.group, (member,), [genome], [one], lost_s=share, child=job.child))
        else:
            error = ended_workers(len(job.ends) + job.machines, reason)
            if not quarantine:
                raise InfraError(f"expected an evaluation, got none: {error}; correct the cause and run the same command again")
            jobs.keep(job, [Evaluation({}, error, {"retries": job.lost_s}, transient=True)])

    def _end(self, slot: _Slot, state: Any, reason: str | None) -> None:
        self._cluster.end(slot.worker, slot.process)
        slot.record.state, slot.record.error = state, reason
        self._slots.remove(slot)
        self._gone.append(slot.record)
        self._write_records(now=True)

    def _check_any(self) -> None:
        """Raises if no further worker can start; logs a line if none has started yet."""
        if any(slot.record.state != "waiting" for slot in self._slots):
            self._alone_since = time.monotonic()
            return
        self._starts.check(self._cluster.nodes())
        if time.monotonic() - self._alone_since > self._told_after:
            self._log(f"no worker has started for {self._told_after:g} s: {self._cluster.describe()}")
            self._told_after *= 2

    def _write_records(self, *, now: bool = False) -> None:
        if now or time.monotonic() > self._recorded + RECORD_S:
            self._recorded = time.monotonic()
            self._record(self.records)


class _SplitEvaluator:
    """A :class:`~cycleqd_jax.evaluation.StreamEvaluator` on the problems of one split."""

    def __init__(self, pool: RayPool, split: Split, quarantine: bool) -> None:
        self.size = pool.size
        self._pool, self._quarantine = pool, quarantine
        self._split: Split = split

    def __call__(
        self,
        groups: Sequence[Sequence[Genome]],
        on_result: Callable[[int, list[Evaluation]], None],
        relatives: Sequence[Relatives] = (),
    ) -> None:
        jobs = ((i, group, relatives[i] if relatives else ()) for i, group in enumerate(groups))
        self.stream(lambda: next(jobs, None), on_result)

    def stream(self, source: Source, on_result: Callable[[int, list[Evaluation]], None]) -> None:
        """See :class:`~cycleqd_jax.evaluation.StreamEvaluator`."""
        self._pool.stream(self._split, source, on_result, quarantine=self._quarantine)
