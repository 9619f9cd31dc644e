"""Replaying gold solutions: order, scores, progress, and errors of the sandbox."""

from __future__ import annotations

import pytest

from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.tasks import TaskOptions, make_task, miniature
from cycleqd_jax.tasks.base import fixed_replies, unprepared
from cycleqd_jax.tasks.replay import replay_solutions


@pytest.fixture
def task(sandbox, tmp_path):
    files = miniature.write(tmp_path, 0, 3, 2, ["dbbench"])["dbbench"]
    return make_task("dbbench", TaskOptions(sandbox=sandbox, name="dbbench", memo=False, **files), prompt="brief")


def test_gold_solutions_of_both_halves(task):
    progress: list[tuple[int, int]] = []
    replays = replay_solutions(task, workers=2, on_replay=lambda done, total: progress.append((done, total)))
    assert [replay.id for replay in replays] == [row.id for split in ("train", "test") for row in task.rows[split]]
    assert {replay.score.value for replay in replays} == {1.0}
    assert all(replay.seconds > 0 for replay in replays)
    assert progress == [(i, 5) for i in range(1, 6)]


def test_stubs_of_one_half_score_0(task):
    replays = replay_solutions(task, ["test"], stub=True)
    assert [replay.id for replay in replays] == [row.id for row in task.rows["test"]]
    assert {replay.score.value for replay in replays} == {0.0}


def test_a_record_without_solutions(task, monkeypatch):
    monkeypatch.setattr(task, "solutions", lambda record: [])
    for replay in replay_solutions(task, ["test"]):
        assert (replay.score.value, replay.score.reason) == (0.0, "there is no gold solution")


@pytest.mark.parametrize("reason", ["it took longer than 60 s", "the record is odd"])
def test_a_record_that_can_not_be_prepared_is_prepared_once(task, monkeypatch, reason):
    record = task.records["train"][0]
    environment, prepared = task.environment, []

    class Slow:
        repeatable = False

        def start(self):
            prepared.append(record)
            return [{"role": "user", "content": "x"}]

        def step(self, reply):
            return unprepared("one", reason)

        def close(self):
            pass

    monkeypatch.setattr(task, "environment", lambda one: Slow() if one is record else environment(one))
    monkeypatch.setattr(task, "solutions", lambda one: [fixed_replies("x") for _ in range(3)])
    first, *_ = replay_solutions(task, ["train"])
    assert first.score == unprepared("one", reason)
    assert len(prepared) == 1


def test_a_broken_sandbox_ends_the_replay(task, monkeypatch):
    def broken(record):
        raise InfraError("no namespaces")

    monkeypatch.setattr(task, "environment", broken)
    with pytest.raises(InfraError, match="no namespaces"):
        replay_solutions(task)


def test_an_episode_that_raises_is_a_failure_of_its_record(task, monkeypatch):
    environment, first = task.environment, task.records["train"][0]

    def broken(record):
        if record is first:
            raise KeyError("column")
        return environment(record)

    monkeypatch.setattr(task, "environment", broken)
    failed, *others = replay_solutions(task)
    assert failed.id == task.rows["train"][0].id
    assert (failed.score.value, failed.score.reason) == (0.0, "the episode raised KeyError: 'column'")
    assert {replay.score.value for replay in others} == {1.0}
