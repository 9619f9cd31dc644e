"""The text of a reply while its tokens arrive, against the text of all tokens at once."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st

from cycleqd_jax.serve.text import ReplyText

STOP_ID = 0
texts = st.text(st.sampled_from("ab é€"), max_size=12)


def decode(ids):
    """One byte a token; the bytes of an incomplete character are U+FFFD."""
    return bytes(ids).decode("utf-8", "replace")


def shown(ids, stop, sizes):
    """What a client sees, and how many tokens are the reply."""
    text, taken, parts, kept = ReplyText(decode, stop, [STOP_ID]), 0, [], None
    while taken < len(ids) and kept is None:
        taken = min(taken + next(sizes), len(ids))
        new, kept = text.take(ids[:taken])
        parts.append(new)
    return "".join(parts) + text.end(), kept


def first_stop(ids, stop):
    """The plain way: the text before the first stop string, and the fewest tokens whose text has one."""
    for count in range(len(ids) + 1):
        text = decode(ids[:count])
        found = [text.find(s) for s in stop if s in text]
        if found:
            return text[: min(found)], count
    return decode(ids), None


@hypothesis.given(texts, st.lists(texts.filter(bool), max_size=3), st.lists(st.integers(1, 5), min_size=1))
def test_text_equals_that_of_all_tokens(text, stop, sizes):
    ids = list(text.encode())
    endless = (sizes[i % len(sizes)] for i in range(1000))
    assert shown(ids, stop, endless) == first_stop(ids, stop)


def test_a_stop_token_has_no_text():
    assert shown([*b"ab", STOP_ID], [], iter([3])) == ("ab", None)


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_decided():
    text = ReplyText(decode, ["END"], [STOP_ID])
    assert text.take(list(b"xE")) == ("x", None)
    assert text.take(list(b"xEN")) == ("", None)
    assert text.take(list(b"xENx")) == ("ENx", None)
    assert text.take(list(b"xENxEND")) == ("", 7)
    assert text.end() == ""
