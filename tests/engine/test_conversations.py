"""Conversations: their cache between turns, and the order in which requests get slots."""

from __future__ import annotations

import numpy as np
import pytest

from cycleqd_jax.engine.scheduler import PATIENCE

from .small_model import converse, make, plain_loop


@pytest.mark.exhaustive
@pytest.mark.parametrize("count", [3, 9])  # as many as slots at most, and more
@pytest.mark.parametrize("edits", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_conversations_equal_the_uncached_loop(engine, params, count, edits):
    before = engine.statistics.reused
    played = converse(engine, 4, np.random.default_rng(2), edits=edits, count=count)
    assert len(played) == 4 * count
    for prompt, generation in played:
        assert generation == plain_loop(params, prompt, 5)
    if count == 3 and not edits:
        prompts = sum(len(prompt) for prompt, _ in played)
        # All but the new tokens; with pages, whole pages only.
        assert engine.statistics.reused - before > (0.15 if engine.layout.attention.paged else 0.5) * prompts
    if edits and engine.layout.attention.paged:
        assert engine.statistics.reused == before  # the first page has changed


@pytest.mark.exhaustive
def test_release_frees_the_cache_of_a_conversation(engine):
    def reused(release):
        before = engine.statistics.reused
        for _ in range(2):
            engine.generate([list(range(6, 40))], [3], conversation="x")
            if release:
                engine.release("x")
        engine.release("x")
        return engine.statistics.reused - before

    assert reused(release=False) >= 24
    assert reused(release=True) == 0


def test_first_come_first_served(params, attention):
    engine = make(attention=attention, slots=2)
    engine.load(params)
    begun = []
    for n in range(9):  # conversations that are never released must not keep their slots
        engine.submit([n + 6] * (n + 1), 4, conversation=n, on_tokens=lambda ids, n=n: n in begun or begun.append(n))
    done = []
    for _ in range(200):
        done += [number for number, _ in engine.advance()]
    assert begun == list(range(9))
    assert sorted(done) == list(range(9))
    assert not engine.busy


def test_conversations_that_have_begun_go_first(params, attention):
    engine = make(attention=attention, slots=1)
    engine.load(params)
    order = []

    def ask(prompt, **options):
        engine.submit(prompt, 2, on_tokens=lambda ids: order.append(options.get("conversation")), **options)

    ask([7], conversation="begun")
    while engine.busy:
        engine.advance()
    order.clear()
    ask([8])
    ask([9], conversation="new")
    ask([7, 8, 9], conversation="begun")
    while engine.busy:
        engine.advance()
    assert list(dict.fromkeys(order)) == ["begun", None, "new"]


@pytest.mark.exhaustive
def test_no_request_waits_longer_than_its_patience(params, attention):
    engine = make(attention=attention, slots=2)
    engine.load(params)
    talks = {n: [n + 6] for n in range(4)}  # a new turn follows every reply
    names = {engine.submit(talk, 2, conversation=n): n for n, talk in talks.items()}
    for _ in range(2):
        for number, _ in engine.advance():
            names[engine.submit([7], 2, conversation=names[number])] = names[number]
    waiting = {engine.submit([9], 2), engine.submit([9], 2, conversation="late")}
    for _ in range(3 * PATIENCE):
        for number, _ in engine.advance():
            if number in names:
                names[engine.submit([7], 2, conversation=names[number])] = names[number]
            waiting.discard(number)
    assert not waiting


def test_idle_conversations_hold_no_slot(params, attention):
    engine = make(attention=attention, slots=2)
    engine.load(params)
    first = [engine.submit([n + 6] * 9, 4, conversation=n) for n in range(2)]
    single = [engine.submit([9], 4) for _ in range(2)]
    syncs = []
    for _ in range(3):
        syncs.append({number for number, _ in engine.advance()})
    assert syncs[0] >= set(first)
    assert syncs[1] >= set(single)  # the two conversations are idle, and not released


@pytest.mark.exhaustive
def test_releasing_an_active_conversation_drops_its_reply(engine, expected):
    prompts, limits, wanted = expected[0]
    engine.generate(prompts[:1], [1])
    decoded = engine.statistics.decoded
    gone = [engine.submit([7] * 5, 24, conversation=("gone", n)) for n in range(9)]  # more than slots
    engine.advance()
    for n in range(9):
        engine.release(("gone", n))
    done = dict(engine.advance())  # replies that were complete may still be returned
    assert not engine.busy
    assert set(done) <= set(gone)
    assert engine.statistics.decoded <= decoded + 4 * 4
    assert engine.generate(prompts, limits) == wanted
