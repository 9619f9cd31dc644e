"""The tokens that an engine counts for every individual."""

from __future__ import annotations

import dataclasses

import pytest

from cycleqd_jax.types import NonFiniteError, TokenCounts

from .small_model import groups_of, make, population, requests_of


def pairs(tokens):
    """Pairs of a token and one that it attends to, where every token of a text is computed."""
    return sum(range(1, tokens + 1))


def alone(prompts, replies):
    """The counts of requests that share nothing."""
    lengths = [len(prompt) + len(reply.ids) - 1 for prompt, reply in zip(prompts, replies, strict=True)]
    generated = sum(len(reply.ids) for reply in replies)
    return TokenCounts(sum(map(len, prompts)), generated, sum(lengths), sum(map(pairs, lengths)))


def test_every_token_is_counted(params, attention):
    engine = make(attention=attention, share_prefixes=False)
    engine.load(params)
    prompts, limits = requests_of(9)
    replies = engine.generate(prompts, limits)
    assert engine.usage() == (alone(prompts, replies),)
    assert engine.usage()[0].computed == engine.statistics.prefilled + engine.statistics.decoded
    before = engine.usage()
    engine.load(params)
    assert engine.usage() == (TokenCounts(),)
    assert before == (alone(prompts, replies),)


@pytest.mark.exhaustive
def test_a_shared_prefix_is_counted_once(params, attention):
    engine = make(attention=attention)
    engine.load(params)
    prompts = [[*range(6, 30), 30 + i, 7] for i in range(6)]
    replies = engine.generate(prompts, [5] * 6)
    whole, (found,) = alone(prompts, replies), engine.usage()
    assert engine.statistics.reused == 6 * 24
    assert found.computed == whole.computed - 5 * 24
    assert found.attended == whole.attended - 5 * pairs(24)
    assert (found.prompt, found.generated) == (whole.prompt, whole.generated)


def test_what_a_conversation_has_in_the_cache_is_not_counted_again(params, attention):
    engine = make(attention=attention)
    engine.load(params)
    first = list(range(6, 26))
    (reply,) = engine.generate([first], [3], conversation="x")
    second = [*first, *reply.ids, 30, 31, 32]
    reused = engine.statistics.reused
    (answer,) = engine.generate([second], [4], conversation="x")
    kept = engine.statistics.reused - reused
    assert kept > 0
    whole, (found,) = alone([first, second], [reply, answer]), engine.usage()
    assert found == dataclasses.replace(whole, computed=whole.computed - kept, attended=whole.attended - pairs(kept))


@pytest.mark.exhaustive
def test_every_individual_has_its_own_counts(params, attention):
    mixed, singles = population(params)
    prompts, limits = groups_of(6)
    wanted = []
    engine = make(attention=attention)
    for single in singles:
        engine.load(single)
        engine.generate(prompts, limits)
        wanted += engine.usage()
    engine.load(mixed)
    for who in range(len(singles)):
        for prompt, limit in zip(prompts, limits, strict=True):
            engine.submit(prompt, limit, individual=who)
    while engine.busy:
        engine.advance()
    assert engine.usage() == tuple(wanted)


@pytest.mark.exhaustive
def test_counts_survive_an_error(params):
    engine = make()
    engine.load({**params, "norm": params["norm"] * float("nan")})
    with pytest.raises(NonFiniteError):
        engine.generate([[1, 2, 7]], [4])
    assert engine.usage() == (TokenCounts(prompt=3, computed=3, attended=6),)
