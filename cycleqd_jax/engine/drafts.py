"""Drafts: token sequences that a reply may repeat, verified several tokens at a time (https://arxiv.org/abs/2211.17192).

A row's *sources* are its drafts, then the prompt and the reply so far. The tokens that may come next are read from a place in
the sources. While the reply repeats them, the place moves along. After a difference the last tokens of the reply are searched
in the sources, as in prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from cycleqd_jax.types import AnyArray, Array, Bool, Int

__all__ = ["CONTEXT", "NOTHING", "Sources", "continuation", "find", "joined", "text_columns", "texts", "usable"]

CONTEXT = 3  # the most last tokens of a reply that are searched
NOTHING = -1  # stands between sources and after them; no token


class Sources(NamedTuple):
    """Where the tokens that may come next are read.

    Attributes:
        text: the sources of each row.
        at: the place of the next token in them, as far as it is known.
        last: the last tokens of the row's prompt and reply.
    """

    text: Int[AnyArray, "row column"]
    at: Int[AnyArray, " row"]
    last: Int[AnyArray, "row context"]


def usable(drafts: Sequence[Sequence[object]], limit: int, vocab_size: int) -> list[tuple[int, ...]]:
    """The drafts that a reply may repeat: not empty, not longer than its limit, of tokens in the vocabulary; each once."""
    found: dict[tuple[int, ...], None] = {}
    for draft in drafts:
        tokens = tuple(int(token) for token in draft if isinstance(token, (int, np.integer)))
        if 0 < len(tokens) == len(draft) <= limit and min(tokens) >= 0 and max(tokens) < vocab_size:
            found[tokens] = None
    return list(found)


def joined(drafts: Sequence[Sequence[int]], prompt: Sequence[int], room: int) -> tuple[int, ...]:
    """The drafts one after another, as many as have room; each follows the last tokens of the prompt, so that they are found.

    Args:
        drafts: the likeliest first.
        prompt: token ids.
        room: the most tokens.
    """
    beginning = (NOTHING, *prompt[1 - CONTEXT :])
    source: tuple[int, ...] = ()
    for draft in drafts:
        if len(source) + len(beginning) + len(draft) <= room:
            source += (*beginning, *draft)
    return source


def text_columns(room: int, window: int) -> int:
    """The columns of :attr:`Sources.text`; see :func:`texts`."""
    return 2 * room + window


def texts(
    sources: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], room: int, window: int
) -> Int[np.ndarray, "row _"]:
    """The arrays :attr:`Sources.text` of several rows.

    Args:
        sources: the drafts of each row (:func:`joined`), at most ``room`` tokens.
        replies: prompt and reply of each row, at most ``room`` tokens.
        room: columns for each of both.
        window: tokens of a window; the text ends with as many places without a token.
    """
    found = np.full((len(sources), text_columns(room, window)), NOTHING, np.int32)
    for row, source, reply in zip(found, sources, replies, strict=True):
        row[: len(source)] = source
        row[room : room + len(reply)] = reply
    return found


def find(sources: Sources, lost: Bool[Array, " row"]) -> Int[Array, " row"]:
    """The place of the next token in the sources.

    The present place stays where the token before it is the last of the reply. Otherwise it is where the most of the last
    tokens were found, and of equal places the nearest. If only the last token was found, the present place stays, as if that
    token had been replaced by another one, unless the row is lost.

    Args:
        sources: the rows.
        lost: rows whose last window had no right token.
    """
    text, at, last = (jnp.asarray(x) for x in sources)
    columns = text.shape[1]
    places = jnp.arange(columns)[None]
    equal, length = jnp.ones(text.shape, bool), jnp.zeros(text.shape, jnp.int32)
    for n in range(1, last.shape[1] + 1):
        before = jnp.pad(text, ((0, 0), (n, 0)), constant_values=NOTHING)[:, :columns]
        equal &= before == last[:, -n, None]
        length += equal.astype(jnp.int32)
    length = jnp.where(text == NOTHING, 0, length)

    def there(x: Array) -> Array:
        return jnp.take_along_axis(x, at[:, None], axis=1)[:, 0]

    follows = there(length) > 0
    best = (length * columns - jnp.abs(places - at[:, None])).argmax(1).astype(jnp.int32)
    most = jnp.take_along_axis(length, best[:, None], axis=1)[:, 0]
    jumps = (most > 1) | ((most > 0) & (lost | (there(text) == NOTHING)))
    return jnp.where(~follows & jumps, best, at)


def continuation(text: Int[Array, "row column"], at: Int[Array, " row"], count: int) -> Int[Array, "row count"]:
    """The next ``count`` tokens from a place on; :data:`NOTHING` past the end of a source."""
    places = jnp.minimum(at[:, None] + jnp.arange(count)[None], text.shape[1] - 1)
    return jnp.take_along_axis(text, places, axis=1)
