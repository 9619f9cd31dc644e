"""A cluster whose workers are threads, a program that doubles numbers, and pools of them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.evaluation.ray import Host, Hosted, RayPool, WorkerLost
from cycleqd_jax.types import Outcome, Score


class Died(Exception):
    """Stands for the death of a process; ``process`` is False where its machine is lost."""

    def __init__(self, process: bool = True):
        super().__init__("the process is dead")
        self.process = process


class Killed(Exception):
    """The cluster has ended the worker."""


@dataclasses.dataclass
class FakeWorker:
    """A worker of the fake cluster: a thread with a host, on a node once it is placed."""

    node: str | None = None
    killed: bool = False
    host: Host = dataclasses.field(default_factory=Host)
    thread: Any = dataclasses.field(default_factory=lambda: concurrent.futures.ThreadPoolExecutor(1))
    pending: list[Callable[[], None]] = dataclasses.field(default_factory=list)
    gone: threading.Event = dataclasses.field(default_factory=threading.Event)


class FakeCluster:
    """Places one worker on every node."""

    def __init__(self, *nodes: str):
        self.alive = list(nodes)
        self.workers: list[FakeWorker] = []
        self.avoided: list[set[str]] = []
        self.closed = False
        self.unknown: set[str] = set()  # nodes whose workers fail before they say where they are

    def spawn(self, avoid):
        worker = FakeWorker()
        self.workers.append(worker)
        self.avoided.append(set(avoid))
        self._place()
        return worker

    def add(self, node: str):
        self.alive.append(node)
        self._place()

    def _place(self):
        for worker, avoid in zip(self.workers, self.avoided, strict=True):
            used = {one.node for one in self.workers if not one.killed}
            free = [node for node in self.alive if node not in used and node not in avoid]
            if worker.node is None and not worker.killed and free:
                worker.node = free[0]
                for begin in worker.pending:
                    begin()

    def call(self, worker, method, *arguments):
        outcome: concurrent.futures.Future = concurrent.futures.Future()

        def run():
            if worker.killed:
                return
            try:
                if worker.node in self.unknown:
                    raise ModuleNotFoundError("No module named 'numpy'")
                value = getattr(worker.host, method)(*arguments)
                value = {**value, "node": worker.node} if method == "identify" else value
            except Died as error:
                outcome.set_exception(WorkerLost(str(error), process=error.process))
            except BaseException as error:
                outcome.set_exception(error)
            else:
                outcome.set_result(value)

        def begin():
            worker.thread.submit(run)

        if worker.node is None:
            worker.pending.append(begin)
        else:
            begin()
        return outcome

    def wait(self, calls, seconds):
        return list(concurrent.futures.wait(calls, seconds, concurrent.futures.FIRST_COMPLETED).done)

    def result(self, call):
        return call.result()

    def end(self, worker, process):
        worker.killed = True
        worker.gone.set()
        worker.thread.shutdown(wait=False, cancel_futures=True)
        self._place()

    def nodes(self):
        return frozenset(self.alive)

    def describe(self):
        return "a worker needs 1 CPU; 0 CPU are free"

    def close(self):
        self.closed = True


def doubled(number: int) -> Evaluation:
    return Evaluation({"task": [Outcome(Score(2.0 * number), (), 1, 1)]}, None, {"evaluate": 0.0})


class Doubler:
    """A worker's program. ``acts[number]`` is called first, with the number of times that this number was tried before."""

    def __init__(self, size: int = 1, acts=None, starts=None, devices=None):
        self.size, self.acts = size, acts or {}
        self.starts, self.devices = list(starts or []), list(devices or [])
        self.tried: list[list[int]] = []
        self._lock = threading.Lock()

    def start(self, log):
        with self._lock:
            act = self.starts.pop(0) if self.starts else None
            device = self.devices.pop(0) if self.devices else "cpu"
        if act is not None:
            act()
        log("loaded")
        return Hosted({split: self for split in ("train", "validation", "test")}, {"device": device})

    def __call__(self, genomes, stop, relatives=()):
        numbers = [int(np.asarray(genome)) for genome in genomes]
        with self._lock:
            before = [sum(number in group for group in self.tried) for number in numbers]
            self.tried.append(numbers)
        for number, count in zip(numbers, before, strict=True):
            if number in self.acts:
                self.acts[number](count)
        return [doubled(number) for number in numbers]


def pool_of(cluster, program, workers=2, **options):
    return RayPool(cluster, program, size=program.size, workers=workers, **options)


def results_of(one, numbers, quarantine=True, size=1):
    results = {}

    def on_result(i, evaluations):
        assert i not in results
        results[i] = evaluations

    groups = [[np.asarray(n) for n in numbers[i : i + size]] for i in range(0, len(numbers), size)]
    one.evaluator("train", quarantine=quarantine)(groups, on_result)
    return [evaluation for i in range(len(groups)) for evaluation in results[i]]


def die_times(count, process=True):
    def act(before):
        if before < count:
            raise Died(process)

    return act


def raise_error(text="No module named 'cycleqd_jax'"):
    def act(*arguments):
        error = ModuleNotFoundError(text)
        error.add_note("Traceback:\n  line 7 of the worker")
        raise error

    return act
