from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cycleqd_jax.engine.prefix import common_length, shared_prefixes

PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple), max_size=7)


def saved(prefix, prompts):
    """Tokens that need not be computed; the last of a prompt always is."""
    users = sum(len(p) > len(prefix) and p[: len(prefix)] == prefix for p in prompts)
    return len(prefix) * (users - 1)


def most(prefix, prompts, saving):
    """What can be saved by ``prefix``, or by longer ones that begin with it: by trying all."""
    mine = saved(prefix, prompts)
    longer = {p[: len(prefix) + 1] for p in prompts if len(p) > len(prefix) and p[: len(prefix)] == prefix}
    return max(mine if mine >= saving else 0, sum(most(p, prompts, saving) for p in longer))


@given(prompts=PROMPTS, saving=st.integers(0, 8))
def test_they_save_the_most(prompts, saving):
    prefixes = shared_prefixes(prompts, saving=saving)
    assert prefixes == sorted(set(prefixes))
    assert all(common_length(a, b) < len(a) for a in prefixes for b in prefixes if a != b)
    assert all(prefix and saved(prefix, prompts) >= max(saving, 1) for prefix in prefixes)
    assert sum(saved(prefix, prompts) for prefix in prefixes) == most((), prompts, saving)


def test_by_hand():
    few = [(1, 2, 3, 4, n) for n in range(3)] + [(1, 2, 9, 9, 9, n) for n in range(2)] + [(7,)]
    assert shared_prefixes(few, saving=5) == [(1, 2, 3, 4), (1, 2, 9, 9, 9)]  # 8 + 5, apart
    assert shared_prefixes(few, saving=6) == [(1, 2)]  # 8, as (1, 2, 3, 4) alone, and shorter
    assert shared_prefixes(few, saving=9) == []
    assert shared_prefixes([(1, 2, n) for n in range(9)], saving=16) == [(1, 2)]
    assert shared_prefixes([(1, 2, 3)] * 2, saving=1) == [(1, 2)]


def test_prompts_each_longer_than_the_one_before():
    prompts = [tuple(range(n)) for n in range(1, 3001)]
    (prefix,) = shared_prefixes(prompts, saving=10)
    assert len(prefix) in (1499, 1500)  # n · (2999 − n) is the most
