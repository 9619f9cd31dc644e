"""The asynchronous loop: its journal determines the state, in whatever order evaluations end."""

from __future__ import annotations

import json
import random
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import CycleQD
from cycleqd_jax.evaluation import Evaluation, SerialWorker, StreamEvaluator, WorkerPool
from cycleqd_jax.search import Checkpoints, Journal, evolve_steadily
from cycleqd_jax.types import FailuresError, InputError

from ..journals import lines_without_checksums

COUNT, TASKS = 3, ("coding", "db", "os")


def steadily(run, evaluators, *, children=16, seed=0, journal=None, checkpoints=None, **more):
    pool = WorkerPool([SerialWorker(run.space.express, one) for one in evaluators])
    assert isinstance(pool, StreamEvaluator)
    return evolve_steadily(
        CycleQD(run.space, bins=5),
        jax.tree.map(lambda *x: jnp.stack(x), *(run.space.expert(k) for k in range(COUNT))),
        pool,
        tasks=TASKS,
        key=jax.random.key(seed),
        children=children,
        journal=journal or Journal(run.folder / "history.jsonl"),
        checkpoints=checkpoints,
        **more,
    )


def sleepy(run, count, seconds=0.02):
    """Evaluators that take different times."""
    draw = random.Random(1)

    class Sleepy(run.Evaluator):
        def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()):
            time.sleep(draw.uniform(0, 2 * seconds))
            return super().__call__(params, split, donate=donate, stop=stop)

    return [Sleepy() for _ in range(count)]


@pytest.mark.exhaustive
def test_with_one_worker_it_is_the_search_of_one_child_per_generation(new_run, assert_identical):
    one, steady = new_run("one"), new_run("steady")
    state = one.evolve(batch_size=1, generations=12)
    assert_identical(steadily(steady, [new_run.Evaluator()], children=12), state)
    lines = lines_without_checksums(steady.folder / "history.jsonl")
    assert [line.pop("asked", None) for line in lines] == [None] * COUNT + [[t, t] for t in range(12)]
    expected = lines_without_checksums(one.folder / "history.jsonl")
    assert [line | {"seconds": {}} for line in lines] == [line | {"seconds": {}} for line in expected]


@pytest.mark.exhaustive
@pytest.mark.parametrize("workers", [2, 5])
def test_telling_in_the_order_of_the_journal_gives_the_same_archives(new_run, assert_identical, workers):
    run = new_run()
    state = steadily(run, sleepy(new_run, workers), children=20)
    lines = run.lines()
    assert [line["id"] for line in lines] == list(range(COUNT + 20))
    assert all(parent < line["id"] for line in lines for parent in line["parents"])
    asked = [line["asked"] for line in lines[COUNT:]]
    assert max(inserted - after for inserted, (after, _) in enumerate(asked)) >= 1, "all children came in the order of asking"
    assert sorted(serial for _, serial in asked) == list(range(20))
    never = new_run.Evaluator()
    assert_identical(steadily(run, [never], children=20), state)  # from the journal alone
    assert never.calls == 0
    assert run.lines() == lines


def test_a_killed_search_goes_on_from_its_journal(new_run, assert_identical):
    run = new_run()
    evaluators = sleepy(new_run, 3)
    evaluators[1].dies_at = 3
    with pytest.raises(new_run.Killed):
        steadily(run, evaluators)
    before = run.lines()
    assert COUNT < len(before) < COUNT + 16
    state = steadily(run, sleepy(new_run, 3))
    assert run.lines()[: len(before)] == before
    assert [line["id"] for line in run.lines()] == list(range(COUNT + 16))
    assert_identical(steadily(run, [new_run.Evaluator()]), state)


def test_the_budget_and_the_last_checkpoint(new_run):
    run = new_run()
    checkpoints = Checkpoints(run.folder / "checkpoints")
    steadily(run, sleepy(new_run, 4), budget=10, checkpoints=checkpoints)
    assert len(run.lines()) == 10
    assert checkpoints.latest() == 7
    checkpoints.close()
    with pytest.raises(InputError, match=r"^expected a budget above 3, the number of experts, got 3; increase search.budget"):
        steadily(new_run("small"), [new_run.Evaluator()], budget=3)


def test_failures_in_a_row_stop_the_search_and_are_taken_back(new_run):
    class Fails(new_run.Evaluator):
        def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()):
            found = super().__call__(params, split, donate=donate, stop=stop)
            return found if self.calls < 8 else Evaluation({}, "InfraError: no box", {}, transient=True)

    run = new_run()
    with pytest.raises(FailuresError, match="got individuals 7 to 9"):
        steadily(run, [Fails()], max_failures=3)
    assert [line["id"] for line in run.lines()] == list(range(7))
    assert len({tuple(line["parents"]) for line in run.lines()}) > 1
    steadily(run, [new_run.Evaluator()])
    assert len(run.lines()) == COUNT + 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asked": None}, "individuals of a steady search, got individual 5 of generations"),
        ({"asked": [4, 2]}, "asked for once, before it was inserted, got asked 4, 2 of individual 5"),
        ({"asked": [1, 0]}, "asked for once, before it was inserted, got asked 1, 0 of individual 5"),
        ({"id": 40}, "ids without a gap from a steady search, got 9 ids up to 40"),
        ({"parents": [1, 1]}, "expected parents = "),
    ],
    ids=str,
)
def test_a_journal_that_is_not_of_a_steady_search(new_run, change, message):
    run = new_run()
    steadily(run, [new_run.Evaluator()], children=6)
    path = run.folder / "history.jsonl"
    lines = lines_without_checksums(run.folder / "history.jsonl")
    lines[5] |= change
    path.write_text(
        "".join(json.dumps({k: v for k, v in line.items() if v is not None or k != "asked"}) + "\n" for line in lines)
    )
    with pytest.raises(InputError, match=message):
        steadily(run, [new_run.Evaluator()], children=6)


def test_an_exception_in_one_worker_stops_the_others():
    stopped = []

    class Worker:
        size = 1

        def __call__(self, genomes, stop, relatives=()):
            if int(np.asarray(genomes[0])) == 1:
                raise ZeroDivisionError
            stopped.append(stop.wait(10))
            return []

    numbers = iter(range(5))
    with pytest.raises(ZeroDivisionError):
        WorkerPool([Worker(), Worker()]).stream(lambda: (n := next(numbers), [np.asarray(n)], ()), lambda n, found: None)
    assert stopped == [True]


@pytest.mark.e2e
def test_workers_are_busy_where_evaluations_take_five_times_as_long_as_others(new_run, capsys):
    """Beside it, generations of as many children as there are workers, which wait for the slowest."""
    workers, children, shares = 4, 80, {}

    class Timed(new_run.Evaluator):
        spent = 0.0
        lock = threading.Lock()
        draw = random.Random(0)

        def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()):
            with Timed.lock:
                seconds = Timed.draw.uniform(1.0, 5.0)
                Timed.spent += seconds
            time.sleep(seconds)
            return super().__call__(params, split, donate=donate, stop=stop)

    for name in ("steady", "generations"):
        run = new_run(name)
        steadily(run, [new_run.Evaluator()], children=0)  # the experts
        if name == "generations":
            new_run("compiled too").evolve(batch_size=workers, generations=2)
            Timed.spent, start = 0.0, time.monotonic()
            run.evolve(batch_size=workers, generations=children // workers, evaluators=[Timed() for _ in range(workers)])
        else:
            steadily(new_run("compiled"), [new_run.Evaluator()], children=3)
            Timed.spent, start = 0.0, time.monotonic()
            steadily(run, [Timed() for _ in range(workers)], children=children)
        shares[name] = Timed.spent / (workers * (time.monotonic() - start))
    print(f"busy: steady {shares['steady']:.3f}, generations {shares['generations']:.3f}")
    assert shares["steady"] >= 0.9
    assert shares["generations"] < shares["steady"]
