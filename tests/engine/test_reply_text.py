"""The text of a reply while its tokens arrive, against the text of all tokens at once."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from cycleqd_jax.engine.detokenizer import ReplyText, reply_text, stops_at

from .test_stream import sentencepiece_like

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


def byte_ids(*parts):
    """Token ids of a vocabulary as in Llama 2: a text is a token, and a number a byte."""
    vocabulary = sentencepiece_like().get_vocab()
    return [vocabulary[f"<0x{part:02X}>" if isinstance(part, int) else part] for part in parts]


def counts_of(ids, stop, steps):
    """How many tokens are the reply, where ``steps`` tokens come at once."""
    stop_when = stops_at(sentencepiece_like().decode, stop)
    found = (stop_when(ids[:n]) for n in [*range(steps, len(ids), steps), len(ids)])
    return next((kept for kept in found if kept is not None), None)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("after", [(0xF0, 0x9F, 0x99, 0x82, "a", "a"), (0xFF, "a", "a", "a")])
def test_a_stop_string_before_bytes_that_are_no_text_yet(steps, after):
    """The decoder shows a run of bytes that is not UTF-8 as U+FFFD, the line break in it too."""
    ids = byte_ids("c", 0x0A, *after)
    assert counts_of(ids, ["\n"], steps) == 2
    assert reply_text(sentencepiece_like().decode, ids[:2], ["\n"]) == "c"


@hypothesis.given(
    st.lists(st.sampled_from(["a", "▁", 0x0A, 0xF0, 0x9F, 0x99, 0x82, 0xFF, "é"]), max_size=12),
    st.sampled_from([(), ("\n",), ("a\n", "aé")]),
    st.integers(1, 5),
)
def test_a_reply_depends_on_its_tokens_alone(parts, stop, steps):
    decode, ids = sentencepiece_like().decode, byte_ids(*parts)
    arriving, kept, shown_text = ReplyText(decode, stop), None, ""
    for n in [*range(steps, len(ids), steps), len(ids)]:
        new, kept = arriving.take(ids[:n])
        shown_text += new
        if kept is not None:
            break
    assert kept == counts_of(ids, stop, 1)
    assert shown_text + arriving.end() == reply_text(decode, ids[:kept], stop)


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_continuation_after_bytes(cut):
    """The context may begin or end within a character, or within a run of bytes that the decoder takes as one."""
    ids = byte_ids("c", *"ሰላምነ".encode(), "a")
    reply = ReplyText(sentencepiece_like().decode, before=ids[:cut])
    shown_text = reply.take(ids[cut:])[0] + reply.end()
    whole = "cሰላምነa"
    begun = (cut - 1) // 3  # whole characters of three bytes before the cut
    assert shown_text == whole[1 + begun :]


def test_a_continuation_keeps_its_first_space():
    ids = byte_ids("▁", "c", "a")
    reply = ReplyText(sentencepiece_like().decode, before=byte_ids("▁", "b"))
    assert reply.take(ids)[0] + reply.end() == " ca"
    assert ReplyText(sentencepiece_like().decode).take(ids)[0] == "ca"
