"""Searches in which evaluations fail: at random, for good, and too many in a row."""

from __future__ import annotations

import contextlib
import re
import threading
import time

import numpy as np
import pytest

from cycleqd_jax.evaluation import Evaluation, FaultPolicy, GuardedWorker, SerialWorker, WorkerPool
from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import FailuresError, InputError

SHARE = 0.2
GENERATIONS, BATCH = 12, 3
INDIVIDUALS = 3 + GENERATIONS * BATCH


def residue(weights):
    return int(np.abs(weights).sum() * 1e4) % 8


@pytest.fixture
def doomed(space):
    """Says of some weights, but not of those of the experts, that their evaluation fails every time."""
    experts = {residue(np.asarray(space.express(space.expert(k))["w"], np.float64)) for k in range(3)}
    return lambda weights: residue(weights) == min(set(range(8)) - experts)


@pytest.fixture
def guarded(new_run):
    """Searches with several workers and failing evaluations."""

    def search(run, evaluators, *, retries=0, **options):
        policy = FaultPolicy(retries=retries, pause=0.0)
        workers = [GuardedWorker(SerialWorker(run.space.express, one), policy) for one in evaluators]
        return run.evolve(workers=WorkerPool(workers), **{"generations": GENERATIONS, "batch_size": BATCH, **options})

    return search


def faulty(new_run, *, kills=lambda weights: False, share=0.0, seed=0):
    """Evaluators that break at random, by a seed, and with some weights every time."""
    rng, lock = np.random.default_rng(seed), threading.Lock()

    class Faulty(new_run.Evaluator):
        faults = 0

        def __call__(self, params, split="train", **options):
            with lock:
                unlucky = rng.random() < share
            if unlucky or kills(np.asarray(params["w"], np.float64)):
                Faulty.faults += 1
                raise InfraError("expected a working sandbox, got a worker that was killed; try again")
            return super().__call__(params, split, **options)

    return Faulty


def without_errors(lines):
    return [{name: value for name, value in line.items() if name not in ("error", "checksum")} for line in lines]


@pytest.mark.exhaustive
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.exhaustive), pytest.param(2, marks=pytest.mark.exhaustive)]
)
def test_random_faults_change_nothing_where_attempts_are_repeated(new_run, guarded, assert_identical, count, seed):
    clean, run = new_run("clean"), new_run("faulty")
    state = clean.evolve(generations=GENERATIONS, batch_size=BATCH)
    kind = faulty(new_run, share=SHARE, seed=seed)
    assert_identical(guarded(run, [kind() for _ in range(count)], retries=12), state)
    assert run.lines() == clean.lines()
    assert kind.faults > 3


def test_random_faults_change_nothing_with_the_default_number_of_retries(new_run, guarded, assert_identical):
    clean, run = new_run("clean"), new_run("faulty")
    state = clean.evolve()
    kind = faulty(new_run, share=SHARE)
    assert_identical(guarded(run, [kind()], retries=FaultPolicy().retries, generations=4, batch_size=2), state)
    assert run.lines() == clean.lines()
    assert kind.faults > 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("count", [1, 3])
def test_children_that_fail_every_time_change_nothing_for_the_others(new_run, guarded, doomed, assert_identical, count):
    """20 % of evaluations fail at random, and some children break their worker in every attempt."""
    clean, run = new_run("clean"), new_run("faulty")
    state = clean.evolve(new_run.Evaluator(broken=doomed), generations=GENERATIONS, batch_size=BATCH)
    kind = faulty(new_run, kills=doomed, share=SHARE)
    assert_identical(guarded(run, [kind() for _ in range(count)], retries=12), state)
    lines = run.lines()
    assert without_errors(lines) == without_errors(clean.lines())
    failed = [line for line in lines if line["scores"] is None]
    assert 0 < len(failed) < INDIVIDUALS / 2
    reason = "InfraError: expected a working sandbox, got a worker that was killed; try again (in 13 attempts)"
    assert {line["error"] for line in failed} == {reason}
    ids = np.asarray(state.archives.repertoires.extra_scores["id"])[np.asarray(state.archives.occupied())]
    assert not set(ids.tolist()) & {line["id"] for line in failed}
    assert not {line["id"] for line in failed} & {parent for line in lines for parent in line["parents"]}


def test_without_retries_random_faults_are_quarantines_that_a_resume_keeps(new_run, guarded, assert_identical):
    """The journal decides: what it has as quarantined stays so, although another attempt would have succeeded."""
    whole, run = new_run("whole"), new_run("resumed")
    kind = faulty(new_run, share=SHARE, seed=6)

    class Later(kind):  # experts have no faults
        def __call__(self, params, split="train", **options):
            if self.calls < 3:
                return new_run.Evaluator.__call__(self, params, split, **options)
            return super().__call__(params, split, **options)

    state = guarded(whole, [Later()])
    lines = (whole.folder / "history.jsonl").read_bytes().splitlines(keepends=True)
    assert sum(line["scores"] is None for line in whole.lines()) > 2
    (run.folder / "history.jsonl").write_bytes(b"".join(lines))
    unused = new_run.Evaluator(dies_at=0)
    assert_identical(guarded(run, [unused]), state)
    assert unused.calls == 0


# ------------------------------------------------------------------------------------------------------ too many in a row


def test_too_many_failures_in_a_row_stop_the_search(new_run, guarded, assert_identical):
    clean, run = new_run("clean"), new_run()
    state = clean.evolve(generations=4)
    broken = faulty(new_run, kills=lambda weights: True)
    run.evolve(generations=2)
    with pytest.raises(FailuresError) as error:
        guarded(run, [broken()], generations=4, batch_size=2, max_failures=3)
    assert re.fullmatch(
        r"expected fewer than search\.max_failures = 3 failed individuals in a row, got individuals 7 to 9 \(3 × 'InfraError: "
        r".*'\) in .*history\.jsonl; correct the cause and run the same command to continue",
        str(error.value),
    )
    assert [line["id"] for line in run.lines()] == list(range(7))  # the row is not recorded
    with pytest.raises(FailuresError, match="individuals 7 to 9"):
        guarded(run, [broken()], generations=4, batch_size=2, max_failures=3)
    assert_identical(guarded(run, [new_run.Evaluator()], generations=4, batch_size=2, max_failures=3), state)
    assert run.lines() == clean.lines()
    first = new_run("first")
    first.evolve(generations=2)
    with pytest.raises(FailuresError):
        guarded(first, [broken()], generations=4, batch_size=2, max_failures=1)
    assert len(first.lines()) == 7  # the first failure stops the search, and nothing is quarantined
    assert_identical(first.evolve(generations=4), state)
    assert first.lines() == clean.lines()


def test_a_resumed_search_does_not_stop_for_failures_that_the_journal_has(new_run, guarded, assert_identical):
    run, broken = new_run(), faulty(new_run, kills=lambda weights: True)
    run.evolve(generations=2)
    state = guarded(run, [broken()], generations=4, batch_size=2)
    assert_identical(guarded(run, [broken()], generations=4, batch_size=2, max_failures=1), state)


def test_failures_that_a_checkpoint_covers_stay(new_run, guarded):
    run, broken = new_run(), faulty(new_run, kills=lambda weights: True)
    run.evolve(generations=2)
    with pytest.raises(FailuresError, match=r"individuals 7 to 10 \(4 × '.*'; individuals 7 to 8 stay quarantined\) in "):
        guarded(run, [broken()], generations=4, batch_size=2, max_failures=4, every=3)
    assert [line["id"] for line in run.lines()] == list(range(9))
    guarded(run, [new_run.Evaluator()], generations=4, batch_size=2, max_failures=4, every=3)
    assert [line["id"] for line in run.lines() if line["scores"] is None] == [7, 8]


def test_too_many_children_without_finite_logits_stop_the_search_and_stay(new_run, guarded, assert_identical):
    clean, unlimited, run, seen = new_run("clean"), new_run("unlimited"), new_run(), set()

    def broken(weights):
        """All children after the second."""
        seen.add(weights.tobytes())
        return len(seen) > 5

    state = unlimited.evolve(new_run.Evaluator(broken=broken))
    seen.clear()
    evaluator = new_run.Evaluator(broken=broken)
    for last in (8, 10):  # each start goes on for four more, and the search ends after two
        message = rf"children in a row without finite logits, got {last - 4} up to individual {last} \(the logits"
        with pytest.raises(FailuresError, match=message) if last == 8 else contextlib.nullcontext():
            found = clean.evolve(evaluator, max_failures=4)
        assert [line["id"] for line in clean.lines() if line["scores"] is None] == list(range(5, last + 1))
    assert_identical(found, state)
    assert clean.lines() == unlimited.lines()
    seen.clear()

    class Mixed(new_run.Evaluator):
        """The sandbox breaks in every second child after the second, and the others have no finite logits."""

        number = 0

        def __call__(self, params, split="train", **options):
            Mixed.number += 1
            if Mixed.number > 5 and Mixed.number % 2:
                raise InfraError("no")
            return super().__call__(params, split, **options)

    evaluator = Mixed(broken=lambda weights: Mixed.number > 5)
    with pytest.raises(FailuresError, match=r"got individuals 6 to 10 \(3 × 'InfraError: no \(in 1 attempts\)'\)"):
        guarded(run, [evaluator], generations=9, batch_size=2, max_failures=3)
    assert [line["id"] for line in run.lines()] == list(range(6))


def test_scores_that_came_early_are_kept_with_the_failures_before_them(new_run):
    """A score of a generation belongs to the failures of the generations before it, which stay then."""
    run = new_run()
    run.evolve(generations=2)

    class Reversed:
        """Evaluates the last child first. Children 7, 8 and 9 fail."""

        size = 1

        def __call__(self, groups, on_result, relatives=()):
            for i in reversed(range(len(groups))):
                known = len(run.lines())
                if known == 9 and i == 1:
                    on_result(i, [new_run.Evaluator()(run.space.express(groups[i][0]))])
                else:
                    on_result(i, [Evaluation({}, "InfraError: no (in 1 attempts)", {}, transient=True)])

    with pytest.raises(FailuresError, match=r"individuals 7 to 9 \(.*; individuals 7 to 8 stay quarantined\) in "):
        run.evolve(workers=Reversed(), max_failures=3)
    assert [line["id"] for line in run.lines()] == [*range(9), 10]
    rest = new_run.Evaluator()
    run.evolve(rest, max_failures=3)
    assert rest.calls == 1
    assert [line["id"] for line in run.lines() if line["scores"] is None] == [7, 8]


def test_a_resume_evaluates_pending_failures_again(new_run, assert_identical):
    """The run is killed while a transient failure waits for the result of a child before it."""
    run, clean = new_run(), new_run("clean")
    run.evolve(generations=2)

    class Killed:
        size = 1

        def __call__(self, groups, on_result, relatives=()):
            if groups:
                on_result(1, [Evaluation({}, "InfraError: no (in 1 attempts)", {}, transient=True)])
                raise new_run.Killed

    with pytest.raises(new_run.Killed):
        run.evolve(workers=Killed())
    assert_identical(run.evolve(), clean.evolve())
    assert run.lines() == clean.lines()


def test_an_expert_that_fails_is_not_recorded(new_run, guarded, assert_identical):
    run, clean = new_run(), new_run("clean")
    with pytest.raises(FailuresError, match=r"expected scores of expert 'coding', got: InfraError: .* in .*jsonl; correct the"):
        guarded(run, [faulty(new_run, kills=lambda weights: True)()])
    assert run.lines() == []
    assert_identical(run.evolve(), clean.evolve())
    with pytest.raises(InputError, match="expected finite scores of expert"):
        new_run("other").evolve(new_run.Evaluator(broken=lambda weights: True))


@pytest.mark.exhaustive
def test_with_several_workers_finished_scores_are_kept(new_run, guarded):
    run = new_run()
    run.evolve(generations=1, batch_size=6)
    kept = 3 + 6 + 5

    class Third(new_run.Evaluator):
        """The first child fails when the scores of all others are in the journal."""

        lock, count = threading.Lock(), 0

        def __call__(self, params, split="train", **options):
            with Third.lock:
                number, Third.count = Third.count, Third.count + 1
            if number > 0:
                return super().__call__(params, split, **options)
            deadline = time.monotonic() + 60
            while len(run.lines()) < kept and time.monotonic() < deadline:
                time.sleep(0.01)
            raise InfraError("no")

    with pytest.raises(FailuresError):
        guarded(run, [Third() for _ in range(6)], generations=2, batch_size=6, max_failures=1)
    lines = run.lines()
    assert len(lines) == kept
    assert all(line["scores"] is not None for line in lines)
