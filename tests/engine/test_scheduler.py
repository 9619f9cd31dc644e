"""The scheduler, without an engine."""

from __future__ import annotations

import pytest

from cycleqd_jax.engine.requests import Request
from cycleqd_jax.engine.scheduler import PATIENCE, Scheduler


def scheduler_of(slots=2, *, paged=True, keep=True):
    return Scheduler(slots, paged=paged, keep_conversations=keep)


def request(number, conversation=None):
    return Request(number, (1, 2), 3, conversation)


def started(scheduler):
    """Assigns and starts; the numbers of the requests that got a slot."""
    pairs = scheduler.assign()
    for one, slot in pairs:
        scheduler.start(one, slot)
    return [one.number for one, _ in pairs]


def finish_all(scheduler):
    for slot in scheduler.active:
        scheduler.finish(slot)
    scheduler.count_idle()


@pytest.mark.parametrize("paged", [True, False])
def test_requests_get_slots_in_the_order_of_their_arrival(paged):
    scheduler = scheduler_of(paged=paged)
    for number in range(5):
        scheduler.add(request(number))
    for numbers in ([0, 1], [2, 3], [4]):
        assert started(scheduler) == numbers
        assert started(scheduler) == []
        finish_all(scheduler)
    assert not scheduler.busy
    assert len(scheduler.slots) == 2


def test_waiting_is_counted_for_requests_without_a_slot():
    scheduler = scheduler_of(1)
    for number in range(3):
        scheduler.add(request(number))
    started(scheduler)
    started(scheduler)
    assert [one.waited for one in scheduler.queue] == [2, 2]


def test_the_next_turn_of_a_conversation_goes_first():
    scheduler = scheduler_of(1)
    scheduler.add(request(0, "a"))
    started(scheduler)
    finish_all(scheduler)
    for number, name in ((1, None), (2, "b"), (3, "a")):
        scheduler.add(request(number, name))
    own = next(slot for slot in scheduler.slots if slot.conversation == "a")
    (pair,) = scheduler.assign()
    assert (pair[0].number, pair[1]) == (3, own)


def test_one_late_request_per_host_sync_goes_before_open_conversations():
    scheduler = scheduler_of(1)
    scheduler.add(request(0, "a"))
    started(scheduler)
    finish_all(scheduler)
    scheduler.add(request(1, "a"))
    late = [request(2), request(3)]
    for one in late:
        one.waited = PATIENCE
        scheduler.add(one)
    assert started(scheduler) == [2]
    finish_all(scheduler)
    late[1].waited = 0
    assert started(scheduler) == [1]


def test_without_pages_the_longest_idle_conversation_gives_way():
    scheduler = scheduler_of(2, paged=False)
    for number, name in enumerate("ab"):
        scheduler.add(request(number, name))
        started(scheduler)
        finish_all(scheduler)
    scheduler.add(request(2, "c"))
    ((_, slot),) = scheduler.assign()
    assert slot.conversation == "a"
    scheduler.add(request(3, "a"))  # a turn of its own is waiting: the other one gives way
    ((one, slot), *_) = scheduler.assign()
    assert (one.conversation, slot.conversation) == ("a", "a")


def test_with_pages_idle_conversations_keep_their_slots():
    scheduler = scheduler_of(1)
    for number in range(4):
        scheduler.add(request(number, number))
        assert started(scheduler) == [number]
        finish_all(scheduler)
    assert [slot.conversation for slot in scheduler.slots] == [0, 1, 2, 3]
    assert [slot.idle for slot in scheduler.slots] == [4, 3, 2, 1]


def test_release_drops_the_request_and_names_the_slot():
    scheduler = scheduler_of(1)
    scheduler.add(request(0, "a"))
    scheduler.add(request(1, "b"))
    started(scheduler)
    assert scheduler.waits("a")
    assert scheduler.release("a") == scheduler.slots
    assert scheduler.release("b") == []
    assert not scheduler.waits("a")
    assert not scheduler.busy


def test_dropping_all_requests_keeps_idle_conversations():
    scheduler = scheduler_of(2)
    scheduler.add(request(0, "idle"))
    started(scheduler)
    finish_all(scheduler)
    scheduler.add(request(1, "active"))
    started(scheduler)
    scheduler.add(request(2, "queued"))
    (ended,) = scheduler.drop_requests()
    assert ended.conversation == "active"
    assert not scheduler.busy
    assert not any(scheduler.waits(name) for name in ("active", "queued"))
    assert [slot.conversation for slot in scheduler.slots if slot is not ended] == ["idle"]
