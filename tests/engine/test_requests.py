"""Requests, without an engine."""

from __future__ import annotations

import pytest

from cycleqd_jax.engine import Generation
from cycleqd_jax.engine.requests import Draw, Request, fit


def test_a_reply_ends_with_a_stop_token_or_at_its_limit():
    request = Request(0, (1, 2), 5, dropped=3)
    assert request.append([7], (9,)) is None
    assert request.append([8, 9], (9,)) == Generation((7, 8, 9), "stop", 3)
    request = Request(0, (1, 2), 3)
    assert request.append([7], (9,)) is None
    assert request.left == 2
    assert request.append([8, 8], (9,)) == Generation((7, 8, 8), "length")


@pytest.mark.parametrize(("kept", "new"), [(4, [3, 4]), (3, [3]), (2, []), (1, [])])
def test_stop_when_cuts_the_reply_and_its_last_tokens(kept, new):
    seen = []
    request = Request(0, (1,), 9, stop_when=lambda ids: kept if len(ids) > 2 else None, on_tokens=seen.append)
    assert request.append([1, 2], (9,)) is None
    assert request.append([3, 4], (9,)) == Generation((1, 2, 3, 4)[:kept], "stop")
    assert seen == [[1, 2], new]


def test_a_prompt_is_cut_only_where_overflow_truncates():
    prompt = tuple(range(20))
    assert fit(prompt, 9, 24, "refuse") == (prompt, 4, 0)
    assert fit(prompt, 9, 24, "truncate") == (prompt[5:], 9, 5)
    assert fit(prompt, 99, 24, "truncate") == (prompt[8:], 12, 8)  # half of max_len
    assert fit(prompt, 9, 20, "refuse") == (prompt, 0, 0)


def test_a_greedy_request_has_no_key():
    assert Draw.of(0.0, 1.0, 7) == Draw()
    assert Draw.of(1.0, 1.0, 7).key != Draw.of(1.0, 1.0, 8).key
