"""Rollouts: the order of requests, threads, errors and interrupts."""

from __future__ import annotations

import dataclasses
import random
import threading
import time

import pytest

from cycleqd_jax.evaluation import rollout
from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import Reply, Score


class Count:
    """An episode of ``rounds`` rounds that scores 1 if every reply is its number."""

    def __init__(self, number, rounds, fails=None):
        self.number, self.rounds, self.fails = number, rounds, fails
        self.started, self.closed = 0, 0
        self.replies = []

    def start(self):
        self.started += 1
        if self.fails == "start":
            raise InfraError("no box")
        return [{"role": "system", "content": "count"}, {"role": "user", "content": str(self.number)}]

    def step(self, reply):
        if self.fails == "step":
            raise InfraError("box broke")
        self.replies.append(reply)
        if len(self.replies) == self.rounds:
            return Score(float(set(self.replies) == {str(self.number)}), "end")
        return [{"role": "user", "content": str(self.number)}]

    def close(self):
        self.closed += 1
        if self.fails == "close":
            raise InfraError("box stays")


class Echo:
    """Replies with the last user message, ``most`` replies per call.

    It refuses the messages in ``refuses`` and is interrupted in call number ``stops``.
    """

    def __init__(self, refuses=(), stops=None, most=None):
        self.log, self.waiting, self.released, self.calls = [], {}, [], 0
        self.refuses, self.stops, self.most = refuses, stops, most

    def submit(self, conversation, messages, max_new_tokens):
        assert messages[-1]["role"] == "user"
        assert conversation not in self.waiting
        self.waiting[conversation] = messages[-1]["content"]
        self.log.append((self.calls, conversation, max_new_tokens, len(messages)))

    def advance(self):
        if self.stops == self.calls:
            raise KeyboardInterrupt
        self.calls += 1
        ready = list(self.waiting)[: self.most]
        texts = [(conversation, self.waiting.pop(conversation)) for conversation in ready]
        return [(c, Reply("", 0, "refused") if text in self.refuses else Reply(text, 3, "stop")) for c, text in texts]

    def release(self, conversation):
        self.waiting.pop(conversation, None)
        self.released.append(conversation)


@pytest.mark.parametrize("overlap", [True, False])
def test_all_episodes_advance_together(overlap):
    episodes = [Count(n, 1 + n % 3) for n in range(7)]
    echo = Echo()
    outcomes = rollout(episodes, echo, range(1, 8), workers=3, overlap=overlap)
    assert [o.score for o in outcomes] == [Score(1.0, "end")] * 7
    assert [o.rounds for o in outcomes] == [1 + n % 3 for n in range(7)]
    assert [o.tokens for o in outcomes] == [3 * o.rounds for o in outcomes]
    requested = [[n for _, n, _, length in echo.log if length == 2 * turn] for turn in (1, 2, 3)]
    assert requested == [[0, 1, 2, 3, 4, 5, 6], [1, 2, 4, 5], [2, 5]]
    assert all(limit == n + 1 for _, n, limit, _ in echo.log)
    assert [m["content"] for m in outcomes[1].messages] == ["count", "1", "1", "1", "1"]
    assert [m["role"] for m in outcomes[1].messages] == ["system", "user", "assistant", "user", "assistant"]
    assert all(e.started == 1 and e.closed >= 1 for e in episodes)
    assert sorted(echo.released) == list(range(7))


def test_single_turn_episodes_are_requested_last():
    class Once(Count):
        single_turn = True

    echo = Echo()
    rollout([Once(0, 1), Count(1, 2), Once(2, 1), Count(3, 1)], echo, [9] * 4)
    assert [number for call, number, _, _ in echo.log if call == 0] == [1, 3, 0, 2]


def test_a_refused_prompt_scores_zero():
    echo = Echo(refuses=("1",))
    outcomes = rollout([Count(0, 1), Count(1, 1)], echo, [9, 9])
    assert [o.score.value for o in outcomes] == [1.0, 0.0]
    assert "cache" in outcomes[1].score.reason
    assert (outcomes[1].rounds, outcomes[1].tokens, len(outcomes[1].messages)) == (0, 0, 2)
    assert sorted(echo.released) == [0, 1]


class Slow(Count):
    """Its steps take random times."""

    def __init__(self, number, rounds, seed):
        super().__init__(number, rounds)
        self.random = random.Random(f"{number} {seed}")

    def step(self, reply):
        time.sleep(self.random.choice([0, 0, 0.002, 0.01]))
        return super().step(reply)


def test_requests_do_not_depend_on_how_long_environments_take():
    def play(seed, workers=3, **options):
        echo = Echo(most=4)
        return rollout([Slow(n, 1 + n % 4, seed) for n in range(12)], echo, [9] * 12, workers=workers, **options), echo.log

    outcomes, log = play(0)
    assert len(log) == 30
    for seed, workers in ((1, 3), (2, 1), (3, 12)):
        assert play(seed, workers) == (outcomes, log)
    sequential, other = play(0, overlap=False)
    assert sequential == outcomes
    assert other != log


def test_the_generator_continues_while_environments_act():
    advanced = threading.Event()

    class Waits(Count):
        def step(self, reply):
            assert advanced.wait(10), "the generator waits for the environment"
            return super().step(reply)

    class Signals(Echo):
        def advance(self):
            if self.calls:
                advanced.set()
            return super().advance()

    (first, second) = rollout([Waits(0, 1), Count(1, 1)], Signals(most=1), [9, 9])
    assert (first.score.value, second.score.value) == (1.0, 1.0)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("fails", ["start", "step", "close"])
def test_infra_errors_are_raised_and_all_episodes_closed(fails, overlap):
    episodes = [Count(n, 2, fails if n == 3 else None) for n in range(8)]
    with pytest.raises(InfraError):
        rollout(episodes, Echo(), [9] * 8, workers=2, overlap=overlap)
    assert all(e.closed >= 1 for e in episodes)


@pytest.mark.parametrize("stops", [0, 1, 2])
def test_an_interrupt_closes_all_episodes(stops):
    episodes = [Count(n, 3) for n in range(5)]
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        rollout(episodes, Echo(stops=stops), [9] * 5)
    assert all(e.closed == 1 for e in episodes)
    assert set(threading.enumerate()) <= before


def test_no_episodes():
    assert rollout([], Echo(), []) == []


def test_lengths_must_be_equal():
    with pytest.raises(ValueError, match="as many"):
        rollout([Count(0, 1)], Echo(), [])


def test_outcomes_do_not_depend_on_the_number_of_threads():
    def scores(workers):
        return rollout([Count(n, 1 + n % 4) for n in range(20)], Echo(refuses=("5",)), [9] * 20, workers=workers)

    assert scores(1) == scores(8)


def test_no_episode_waits_for_the_score_of_a_single_turn_episode():
    ended = threading.Event()

    class Slow(Count):
        single_turn = True

        def step(self, reply):
            assert ended.wait(20)
            return super().step(reply)

    class Last(Count):
        def step(self, reply):
            result = super().step(reply)
            if isinstance(result, Score):
                ended.set()  # this episode ends before the slow ones have scores
            return result

    generator = Echo()
    episodes = [Slow(0, 1), Last(1, 6), Slow(2, 1)]
    outcomes = rollout(episodes, generator, [5] * 3, workers=2)
    assert [outcome.score.value for outcome in outcomes] == [1.0] * 3
    assert all(episode.closed for episode in episodes)
    assert generator.released.index(0) < generator.released.index(1)


def test_after_an_error_all_conversations_are_released():
    generator = Echo()
    with pytest.raises(InfraError):
        rollout([Count(0, 3), Count(1, 3, fails="step"), Count(2, 3)], generator, [5] * 3)
    assert {0, 1, 2} <= set(generator.released)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_single_turn_episode_that_continues_is_an_error(overlap):
    class Continues(Count):
        single_turn = True

    with pytest.raises(TypeError, match=r"expected the first reply to end Continues, got messages"):
        rollout([Continues(0, 2)], Echo(), [5], overlap=overlap)


class Drafted(Echo):
    """An echo with token ids, which records the drafts of every request."""

    def __init__(self):
        super().__init__()
        self.drafts = []

    def submit(self, conversation, messages, max_new_tokens, **options):
        super().submit(conversation, messages, max_new_tokens)
        self.drafts.append((conversation, options))

    def advance(self):
        return [(c, dataclasses.replace(reply, ids=(len(reply.text), c))) for c, reply in super().advance()]


def test_the_replies_of_relatives_are_drafts_of_the_same_turn():
    first = rollout([Count(0, 2), Count(1, 1)], Drafted(), [9, 9])
    assert [len(outcome.replies) for outcome in first] == [2, 1]
    (same, last), _ = first[0].replies, first[1].replies
    relatives = [[[[7]], [[8], [9]], [list(same), [5]], []], []]
    echo = Drafted()
    outcomes = rollout([Count(0, 2), Count(1, 1)], echo, [9, 9], relatives=relatives)
    assert outcomes == first
    assert echo.drafts == [
        (0, {"drafts": [[7], [8], list(same)]}),
        (1, {}),
        (0, {"drafts": [[5], [9]]}),  # the third relative has given the same reply before
    ]
    with pytest.raises(ValueError, match="relatives' replies to each of 2 episodes, got those to 1"):
        rollout([Count(0, 1), Count(1, 1)], Drafted(), [9, 9], relatives=[[]])
    assert last


def test_a_generator_without_token_ids_gives_no_replies():
    (outcome,) = rollout([Count(0, 2)], Echo(), [9])
    assert outcome.replies == ()
