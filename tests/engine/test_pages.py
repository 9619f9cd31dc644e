"""The page pool, without an engine."""

from __future__ import annotations

import pytest

from cycleqd_jax.engine import Attention, EngineLayout
from cycleqd_jax.engine.cache import BLOCK
from cycleqd_jax.engine.pages import PagePool
from cycleqd_jax.engine.requests import Request
from cycleqd_jax.engine.scheduler import Slot

from .small_model import CONFIG


def pool_of(slots=64, size=0, attention="products"):
    layout = EngineLayout.of(CONFIG, slots=slots, max_len=48, platform="cpu", attention=Attention(attention), chunk=4)
    pool = PagePool(layout)
    if size:
        pool.grow(size)
    return pool


def test_a_slot_gets_the_lowest_free_pages():
    pool, slots = pool_of(size=10), [Slot(), Slot()]
    assert pool.take(slots[0], 9)
    assert pool.take(slots[1], 4)
    assert (slots[0].pages, slots[1].pages) == ([1, 2, 3], [4])
    pool.give_back(slots[0])
    assert pool.take(slots[1], 16)
    assert slots[1].pages == [4, 1, 2, 3]
    assert not pool.take(slots[0], 100)  # takes all that are free
    assert sorted(slots[0].pages) == [5, 6, 7, 8, 9]
    assert pool.free == []


def test_the_pool_doubles_up_to_its_largest_size():
    pool = pool_of()
    sizes = []
    while (size := pool.larger()) is not None:
        pool.grow(size)
        sizes.append(size)
    assert sizes == [2 * BLOCK, 4 * BLOCK, 8 * BLOCK, 832]
    assert sorted(pool.free) == list(range(1, 832))
    pool.lose()
    assert (pool.size, pool.free, pool.larger()) == (0, [], 832)  # as large as the one that was lost


def test_without_pages_the_cache_has_one_size():
    pool, slot = pool_of(slots=5, attention="xla"), Slot(3)
    assert not pool.take(slot, 20)
    assert pool.larger() == 5
    pool.grow(5)
    assert pool.take(slot, 20)
    assert slot.pages == []
    assert pool.larger() is None


def test_the_longest_idle_slot_is_evicted_and_wanted_ones_last():
    pool = pool_of(size=10)
    slots = [Slot(conversation=name, idle=idle) for name, idle in (("a", 5), ("b", 9), ("c", 2))]
    slots.append(Slot(request=Request(0, (1,), 1), idle=20))
    for slot in slots:
        pool.take(slot, 4)
    slots.append(Slot(idle=30))  # has no page
    assert pool.evictable(slots, ()).conversation == "b"
    assert pool.evictable(slots, ("b",)).conversation == "a"
    assert pool.evictable(slots, ("a", "b", "c")).conversation == "b"


@pytest.mark.parametrize("apart", [False, True])
def test_pages_of_active_slots_are_compacted_where_they_are_far_apart(apart):
    pool = pool_of(size=832)
    slots = [Slot() for _ in range(150)]
    for slot in slots:
        pool.take(slot, 20)
    active = slots[::30] if apart else slots[:5]
    before = {id(slot): list(slot.pages) for slot in slots}
    pairs = pool.compact(active, slots)
    assert bool(pairs) == apart
    moved = dict(pairs) | {b: a for a, b in pairs}
    assert all(slot.pages == [moved.get(page, page) for page in before[id(slot)]] for slot in slots)
    assert sorted(page for slot in active for page in slot.pages) == list(range(1, 26))
    assert sorted([page for slot in slots for page in slot.pages] + pool.free) == list(range(1, 832))
