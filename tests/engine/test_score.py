"""Log-likelihoods of continuations: equal to a plain forward pass, whatever is packed, shared or batched."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.engine import Attention, rolling_windows
from cycleqd_jax.types import InputError, NonFiniteError

from .small_model import CONFIG, forward, make, population, slow_with_xla


def plain(params, context, continuation):
    """The same without cache and batch, in float64 after the logits."""
    ids = [*context, *continuation]
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(ids)] = ids
    logits = np.asarray(forward(params, padded, CONFIG), np.float64)[len(context) - 1 : len(ids) - 1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    tokens = np.asarray(continuation)
    return logprobs[np.arange(len(tokens)), tokens].sum(), bool((logits.argmax(-1) == tokens).all())


def check(params, pairs, found, tol=1e-4):
    for (context, continuation), one in zip(pairs, found, strict=True):
        logprob, greedy = plain(params, context, continuation)
        assert one.logprob == pytest.approx(logprob, abs=tol)
        assert (one.greedy, one.tokens, one.dropped) == (greedy, len(continuation), 0)


def greedy_reply(params, context, count):
    ids = list(context)
    for _ in range(count):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(np.argmax(forward(params, padded, CONFIG)[len(ids) - 1])))
    return ids[len(context) :]


def items(seed=0, *, count=7, preamble=0, most=12):
    """Pairs as of multiple choice: contexts with a common preamble, and one to five continuations of each."""
    rng = np.random.default_rng(seed)

    def tokens(n):
        return rng.integers(0, CONFIG.vocab_size, n).tolist()

    before, pairs = tokens(preamble), []
    for _ in range(count):
        context = before + tokens(rng.integers(1, most))
        pairs += [(context, tokens(rng.integers(1, 9))) for _ in range(rng.integers(1, 6))]
    return [pairs[i] for i in rng.permutation(len(pairs))]


def test_likelihoods_are_those_of_a_plain_forward_pass(engine, params):
    pairs = items(0) + items(1, preamble=24)
    context = pairs[0][0]
    pairs += [(context, greedy_reply(params, context, 6)), (context, greedy_reply(params, context, 1))]
    found = engine.score(pairs)
    check(params, pairs, found)
    assert found[-2].greedy
    assert found[-1].greedy
    assert engine.score([]) == []


@pytest.mark.exhaustive
def test_the_tokens_of_a_text_and_their_alternatives(engine, params, expected):
    rng = np.random.default_rng(8)
    texts = [rng.integers(0, 48, n).tolist() for n in (1, 2, 49, 20, 20)]
    prompts, limits, replies = expected[0]
    numbers = [engine.submit(prompt, limit) for prompt, limit in zip(prompts[:2], limits[:2], strict=True)]
    decoded, found = dict(engine.advance()), []
    while engine.busy:  # replies are the same, whatever is scored meanwhile
        found.append(engine.token_logprobs(texts, top=3))
        decoded |= dict(engine.advance())
    assert [decoded[number].ids for number in numbers] == [reply[0] for reply in replies[:2]]
    found.append(engine.token_logprobs(texts, top=3))
    for text, one in zip(texts, found[0], strict=True):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(text)] = text
        logits = np.asarray(forward(params, padded, CONFIG), np.float64)[: len(text) - 1]
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert one.logprobs == pytest.approx([row[i] for row, i in zip(logprobs, text[1:], strict=True)], abs=1e-4)
        assert len(one.top) == len(text) - 1
        for row, top in zip(logprobs, one.top, strict=True):
            assert [i for i, _ in top] == np.argsort(-row)[:3].tolist()
            assert [value for _, value in top] == pytest.approx(np.sort(row)[::-1][:3], abs=1e-4)
    for again in found[1:]:
        for one, other in zip(found[0], again, strict=True):
            assert other.logprobs == pytest.approx(one.logprobs, abs=2e-5)
    (sums,) = engine.token_logprobs([texts[3]])
    assert engine.score([(texts[3][:1], texts[3][1:])])[0].logprob == pytest.approx(sum(sums.logprobs), abs=1e-4)
    assert sums.top == ((),) * 19
    for bad, options in (([[]], {}), ([[1] * 50], {}), ([[48]], {}), ([[1]], {"top": 21}), ([[1]], {"individual": 1})):
        with pytest.raises(InputError, match=r"^expected "):
            engine.token_logprobs(bad, **options)


@pytest.mark.exhaustive
def test_the_batch_changes_the_last_bits_at_most(params, attention):
    engine = make(attention=attention)  # of its own, so that its programs do not depend on earlier tests
    engine.load(params)
    pairs = items(2, count=9) + items(3, preamble=26, count=9)
    together = engine.score(pairs)
    alone = [engine.score([pair])[0] for pair in pairs]
    differences = np.array([a.logprob - b.logprob for a, b in zip(together, alone, strict=True)])
    # One token's last bits are below 2e-5 here, and those of several tokens add up as a random walk does.
    tokens = np.array([len(continuation) for _, continuation in pairs])
    assert (np.abs(differences) <= 2e-5 * np.sqrt(tokens)).all()
    assert np.sqrt(np.mean(differences**2)) <= 1e-5
    assert [a[1:] for a in together] == [b[1:] for b in alone]
    assert engine.score(pairs) == together


def test_a_context_and_a_preamble_are_computed_once(params, attention):
    engine = make(attention=attention)
    engine.load(params)
    pairs = items(4, preamble=25, count=10)
    engine.score(pairs)
    contexts = {tuple(context) for context, _ in pairs}
    branches = sum(len(continuation) - 1 for _, continuation in pairs)
    common = 25
    wanted = common + sum(len(context) - common for context in contexts) + branches
    assert abs(engine.statistics.prefilled - wanted) <= 2 * len(contexts)  # the common beginning may be longer by chance
    assert engine.statistics.reused >= common * len(contexts)
    usage = engine.usage()[0]
    assert usage.computed == engine.statistics.prefilled
    assert usage.generated == 0


def test_many_and_long_continuations_of_one_context(engine, params):
    rng = np.random.default_rng(5)
    context = rng.integers(0, 48, 9).tolist()
    pairs = [(context, rng.integers(0, 48, 1).tolist()) for _ in range(40)]
    pairs += [(context, rng.integers(0, 48, 20).tolist()) for _ in range(8)]
    check(params, pairs, engine.score(pairs))


def test_a_pair_that_is_too_long_loses_the_beginning_of_its_context(engine, params):
    rng = np.random.default_rng(6)
    context, continuation = rng.integers(0, 48, 60).tolist(), rng.integers(0, 48, 5).tolist()
    whole, cut, full, exact = engine.score(
        [(context, continuation), (context[-44:], continuation), ([7], (context + context)[:48]), (context[:44], continuation)]
    )
    assert whole.dropped == 16  # 48 inputs: 44 of the context, and 4 of the continuation
    assert whole.logprob == pytest.approx(cut.logprob, abs=1e-5)
    assert full.dropped == exact.dropped == cut.dropped == 0
    check(params, [(context[:44], continuation)], [exact])


def windows_of_the_harness(token_list, prefix, max_seq_len):
    """lm-evaluation-harness's ``get_rolling_token_windows`` with ``context_len=1`` and ``make_disjoint_window``, restated."""
    predicted = min(max_seq_len, len(token_list))
    if token_list:
        yield [prefix], token_list[:predicted]
    while predicted < len(token_list):
        count = min(len(token_list) - predicted, max_seq_len)
        end = predicted + count
        inputs = token_list[end - max_seq_len - 1 : end - 1]
        yield inputs[: len(inputs) - (count - 1)], token_list[end - count : end]
        predicted += count


@pytest.mark.parametrize("length", [0, 1, 4, 5, 9, 10, 11, 23])
def test_rolling_windows_are_those_of_the_harness(length):
    tokens = list(range(1, length + 1))
    found = [(list(a), list(b)) for a, b in rolling_windows(tokens, 0, 5)]
    assert found == [(list(a), list(b)) for a, b in windows_of_the_harness(tokens, 0, 5)]


def test_texts_longer_than_the_context(engine, params):
    rng = np.random.default_rng(7)
    texts = [rng.integers(0, 48, n).tolist() for n in (0, 1, 20, 48, 49, 131)]
    found = engine.score_rolling(texts, 4)
    assert found[0] == (0.0, 0, True, 0)
    for text, one in zip(texts, found, strict=True):
        windows = [plain(params, context, new) for context, new in rolling_windows(text, 4, 48)]
        assert one.logprob == pytest.approx(sum(logprob for logprob, _ in windows), abs=1e-4 * max(len(windows), 1))
        assert one.tokens == len(text)


@pytest.mark.exhaustive
def test_other_requests_go_on_as_before(params, attention):
    engine = make(attention=attention, slots=2)
    engine.load(params)
    pairs = items(8, count=5)
    first = engine.generate([[9, 8, 7]], [5], conversation="kept")
    check(params, pairs, engine.score(pairs))
    turn = [9, 8, 7, *first[0].ids, 11]
    (again,) = engine.generate([turn], [5], conversation="kept")
    fresh = make(attention=attention, slots=2)
    fresh.load(params)
    assert fresh.generate([turn], [5]) == [again]
    engine.submit([1, 2], 3)
    with pytest.raises(InputError, match="an engine without requests, got one that is busy"):
        engine.score(pairs)


def test_individuals_of_a_population(params):
    mixed, singles = population(params)
    engine = make()
    engine.load(mixed)
    pairs = items(9, count=4)
    for number, single in enumerate(singles):
        check(single, pairs, engine.score(pairs, individual=number), tol=5e-4)
    with pytest.raises(InputError, match="an individual below 3, got 3"):
        engine.score(pairs, individual=3)


def test_what_is_refused(engine, params):
    for pair in (([], [1]), ([1], [])):
        with pytest.raises(
            InputError, match=r"at least one token each, got \d and \d tokens in pair 1; begin an empty context"
        ):
            engine.score([([1], [2]), pair])
    with pytest.raises(InputError, match="token ids below 48, got 2 to 48 in pair 0"):
        engine.score([([2], [48])])
    with pytest.raises(InputError, match="at most max_len = 48 tokens, got 49 in pair 0; shorten it"):
        engine.score([([2], [1] * 49)])
    with pytest.raises(InputError, match="whole numbers"):
        engine.score([([2], [1.5])])
    with pytest.raises(RuntimeError, match=r"Engine\.load"):
        make().score([([2], [1])])


def test_weights_that_are_not_finite(params):
    engine = make()
    engine.load(params | {"norm": params["norm"] * jnp.nan})
    with pytest.raises(NonFiniteError, match="weight norm"):
        engine.score(items(0))
    engine.load(params)
    check(params, items(0), engine.score(items(0)))


@pytest.mark.exhaustive
@slow_with_xla
def test_nothing_is_compiled_after_the_warm_up(params, attention, compilations):
    engine = make(attention=attention, chunk=16)
    engine.load(params)
    engine.warm_up(shared=3 * engine.layout.aligned(40), scoring=True)
    workloads = [items(n, preamble=p, count=c) for n, (p, c) in enumerate([(0, 1), (0, 9), (30, 12), (20, 3), (34, 40)])]
    other = jax.tree.map(lambda x: x + 0, params)

    def again():
        for weights in (params, other):
            engine.load(weights)
            for pairs in workloads:
                engine.score(pairs)

    assert compilations(again) == 0


@pytest.mark.exhaustive
def test_small_chunks_and_bfloat16(params):
    engine = make(attention=Attention("products"), chunk=1, slots=3)
    engine.load(params)
    check(params, items(10, preamble=20), engine.score(items(10, preamble=20)))
    narrow = make(CONFIG.replace(dtype="bfloat16"))
    narrow.load(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    pairs = items(11)
    for one, (context, continuation) in zip(narrow.score(pairs), pairs, strict=True):
        assert one.logprob == pytest.approx(plain(params, context, continuation)[0], rel=0.1, abs=0.5)
