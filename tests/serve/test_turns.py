"""Which model's requests are decoded next."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st

from cycleqd_jax.serve.jobs import Job, Ticket
from cycleqd_jax.serve.turns import Turns


def ticket(model):
    return Ticket(Job(model, (1,), 1), lambda: None)


def models(tickets):
    return "".join(one.job.model for one in tickets)


def play(turns, slots=1, length=1, most=1000):
    """Decodes everything, each reply for ``length`` host syncs; the order of the starts."""
    order, running = [], []
    for _ in range(most):
        if not running and not turns.change():
            return "".join(order)
        started = turns.start(slots - len(running))
        order += [one.job.model for one in started]
        running += [length for _ in started]
        turns.count_sync()
        running = [left - 1 for left in running if left > 1]
    raise AssertionError("requests are left")


def test_requests_of_one_model_start_in_their_order():
    turns, tickets = Turns(4), [ticket("a") for _ in range(5)]
    turns.add(tickets)
    assert turns.change()
    assert turns.start(2) == tickets[:2]
    assert turns.start(9) == tickets[2:]
    assert not turns.change()


def test_models_take_turns():
    turns = Turns(2)
    turns.add(map(ticket, "aaaaabbbcc"))
    assert play(turns) == "aabbccaaba"


def test_a_model_alone_keeps_its_turn():
    turns = Turns(1)
    turns.add(map(ticket, "aaaa"))
    assert play(turns) == "aaaa"


def test_running_requests_are_finished_before_the_turn_passes_on():
    turns = Turns(2)
    turns.add(map(ticket, "aaab"))
    assert turns.change()
    assert models(turns.start(2)) == "aa"
    turns.count_sync()
    turns.count_sync()
    assert turns.start(1) == []  # the turn is over, and one is running
    assert turns.change()
    assert turns.current == "b"


@hypothesis.given(st.text("abcd", max_size=30), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
def test_everything_starts_once(names, turn, slots, length):
    turns = Turns(turn)
    turns.add(map(ticket, names))
    assert sorted(play(turns, slots, length)) == sorted(names)
    assert len(turns) == 0


@hypothesis.given(st.integers(1, 4), st.integers(1, 3))
def test_no_model_starves_while_others_keep_asking(turn, slots):
    turns = Turns(turn)
    turns.add(map(ticket, "a" * 8 + "b" * 8))
    turns.add([ticket("z")])
    started = []
    for _ in range(4 * turn + 4):
        turns.change()
        started += turns.start(slots)
        turns.add(map(ticket, "aabb"))
        turns.count_sync()
    assert "z" in models(started)


def test_removing():
    turns, tickets = Turns(2), [ticket("a"), ticket("b"), ticket("a")]
    turns.add(tickets)
    assert turns.remove(tickets[1])
    assert not turns.remove(tickets[1])
    assert models(turns) == "aa"
    assert turns.clear() == [tickets[0], tickets[2]]
    assert len(turns) == 0
