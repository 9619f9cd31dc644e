from __future__ import annotations

import threading

import pytest

from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.tasks import rollout
from cycleqd_jax.types import Reply, Score


class Count:
    """Ends after ``rounds`` replies; scores 1 if all were right (its own number)."""

    def __init__(self, number, rounds, fails=None):
        self.number, self.rounds, self.fails = number, rounds, fails
        self.started, self.closed, self.threads = 0, 0, set()
        self.heard = []

    def start(self):
        self.started += 1
        if self.fails == "start":
            raise InfraError("no box")
        return [{"role": "system", "content": "count"}, {"role": "user", "content": str(self.number)}]

    def step(self, reply):
        if self.fails == "step":
            raise InfraError("box broke")
        self.heard.append(reply)
        if len(self.heard) == self.rounds:
            return Score(float(set(self.heard) == {str(self.number)}), "end")
        return [{"role": "user", "content": str(self.number)}]

    def close(self):
        self.closed += 1
        if self.fails == "close":
            raise InfraError("box stays")


class Echo:
    """Says what the user said, in one batch per call; refuses what ``refuses`` says, stops where ``stops`` says."""

    def __init__(self, refuses=(), stops=None):
        self.batches, self.limits = [], []
        self.refuses, self.stops = refuses, stops

    def generate(self, conversations, max_new_tokens):
        assert all(c[-1]["role"] == "user" for c in conversations)
        if self.stops == len(self.batches):
            raise KeyboardInterrupt
        self.batches.append(len(conversations))
        self.limits.append(list(max_new_tokens))
        texts = [c[-1]["content"] for c in conversations]
        return [Reply("", 0, "refused") if t in self.refuses else Reply(t, 3, "stop") for t in texts]


def test_all_episodes_advance_together():
    episodes = [Count(n, 1 + n % 3) for n in range(7)]
    echo, shown = Echo(), []
    outcomes = rollout(episodes, echo, range(1, 8), workers=3, progress=lambda *a: shown.append(a))
    assert [o.score for o in outcomes] == [Score(1.0, "end")] * 7
    assert [o.rounds for o in outcomes] == [1 + n % 3 for n in range(7)]
    assert [o.tokens for o in outcomes] == [3 * o.rounds for o in outcomes]
    assert echo.batches == [7, 4, 2]
    assert echo.limits == [[1, 2, 3, 4, 5, 6, 7], [2, 3, 5, 6], [3, 6]]
    assert [m["content"] for m in outcomes[1].messages] == ["count", "1", "1", "1", "1"]
    assert [m["role"] for m in outcomes[1].messages] == ["system", "user", "assistant", "user", "assistant"]
    assert all(e.started == 1 and e.closed >= 1 for e in episodes)
    assert [(stage, done, total) for stage, done, total, _ in shown] == [("rollout", n, 7) for n in (3, 5, 7)]


def test_a_refused_prompt_scores_zero():
    outcomes = rollout([Count(0, 1), Count(1, 1)], Echo(refuses=("1",)), [9, 9])
    assert [o.score.value for o in outcomes] == [1.0, 0.0]
    assert "cache" in outcomes[1].score.reason
    assert (outcomes[1].rounds, outcomes[1].tokens, len(outcomes[1].messages)) == (0, 0, 2)


@pytest.mark.parametrize("fails", ["start", "step", "close"])
def test_infra_errors_come_through_and_everything_is_closed(fails):
    episodes = [Count(n, 2, fails if n == 3 else None) for n in range(8)]
    with pytest.raises(InfraError):
        rollout(episodes, Echo(), [9] * 8, workers=2)
    assert all(e.closed >= 1 for e in episodes)


def test_interrupt_closes_everything():
    episodes = [Count(n, 3) for n in range(5)]
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        rollout(episodes, Echo(stops=1), [9] * 5)
    assert all(e.closed == 1 for e in episodes)
    assert threading.active_count() == before


def test_nothing_to_play():
    assert rollout([], Echo(), []) == []


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="as many"):
        rollout([Count(0, 1)], Echo(), [])


def test_worker_count_does_not_matter():
    def scores(workers):
        return rollout([Count(n, 1 + n % 4) for n in range(20)], Echo(refuses=("5",)), [9] * 20, workers=workers)

    assert scores(1) == scores(8)
