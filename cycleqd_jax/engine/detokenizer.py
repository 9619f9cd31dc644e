"""The text of tokens: of those that are still arriving, and of whole replies with stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cycleqd_jax.engine.requests import StopWhen

__all__ = ["REPLACEMENT", "Decode", "Detokenizer", "ReplyText", "reply_text", "stops_at", "until"]

Decode = Callable[[Sequence[int]], str]
"""The text of token ids."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""A decoder's text for bytes that are not a (complete) character."""

_CONTEXT = 8


def until(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of some strings."""
    return text[: min((at for at in (text.find(one) for one in stop) if at >= 0), default=len(text))]


def stops_at(decode: Decode, stop: Sequence[str]) -> StopWhen:
    """The ``stop_when`` of one request: ends it with the token that completes the first stop string.

    Every token is looked at in turn, so it makes no difference how many arrive at once.
    """
    text = ReplyText(decode, stop)
    return lambda ids: text.take(ids)[1]


def reply_text(decode: Decode, ids: Sequence[int], stop: Sequence[str] = (), stop_ids: Sequence[int] = ()) -> str:
    """The text of a whole reply: what :class:`ReplyText` makes of its tokens.

    Args:
        decode: the text of token ids.
        ids: the tokens of the reply.
        stop: strings that end the reply, and are not part of it.
        stop_ids: tokens that end the reply, and have no text.
    """
    text = decode(ids[:-1] if ids and ids[-1] in stop_ids else ids)
    if REPLACEMENT not in text:
        return until(text, stop)
    # Bytes that are no text: a decoder may then show those beside them differently, depending on how many tokens it gets.
    found = ReplyText(decode, stop, stop_ids)
    return found.take(ids)[0] + found.end()


class Detokenizer:
    """The text of a growing list of tokens, in pieces that never end within a character and are never changed.

    Text that ends with U+FFFD is held back: that is how a decoder shows the first bytes of a character whose other bytes
    are in the next tokens. Only the tokens of the last piece and the ones after it are decoded. The last piece is included
    because some decoders drop a space at the beginning of a text.

    Args:
        decode: the text of token ids, such as :meth:`cycleqd_jax.models.tokenizer.ChatTokenizer.decode`.
        before: tokens before the first one, whose text is not included; some decoders drop a space at the beginning of a text.
            A character that they leave incomplete is included.
    """

    def __init__(self, decode: Decode, before: Sequence[int] = ()) -> None:
        self._decode = decode
        start = max(0, len(before) - _CONTEXT)
        while start and decode(before[start:]).startswith(REPLACEMENT):  # not within the bytes of a character
            start = max(0, 2 * start - len(before))
        end = len(before)
        while end > start and decode(before[start:end]).endswith(REPLACEMENT):
            end -= 1
        self._last = list(before[start:end])  # tokens of the last piece
        self._held = list(before[end:])  # tokens after it: here those of a character that the first tokens complete

    def add(self, ids: Sequence[int]) -> str:
        """The new text after these tokens; it may be empty."""
        new = ""
        for i in ids:  # one at a time: text before an incomplete character at the end of the list is not held back
            self._held.append(i)
            text = self._held_text()
            if text and not text.endswith(REPLACEMENT):
                new += text
                self._last, self._held = self._held, []
        return new

    def end(self) -> str:
        """The text that is held back, when no more tokens will come."""
        return self._held_text()

    def _held_text(self) -> str:
        return self._decode(self._last + self._held)[len(self._decode(self._last)) :]


class ReplyText:
    """Turns tokens into text that may be shown at once.

    Text that may be the beginning of a stop string is held back until the next tokens decide it. So is an incomplete character.

    Args:
        decode: the text of token ids.
        stop: strings that end the reply, and are not part of it.
        stop_ids: tokens that end the reply, and have no text.
        before: see :class:`Detokenizer`.
    """

    def __init__(
        self, decode: Decode, stop: Sequence[str] = (), stop_ids: Sequence[int] = (), before: Sequence[int] = ()
    ) -> None:
        self._detokenizer = Detokenizer(decode, before)
        self._stop = tuple(stop)
        self._stop_ids = frozenset(stop_ids)
        self._held = ""
        self._count = 0  # tokens taken
        self._ended = False

    def take(self, ids: Sequence[int]) -> tuple[str, int | None]:
        """Takes all tokens of the reply so far.

        Args:
            ids: the tokens of the last call, and new ones.

        Returns:
            The new text; and how many of the tokens are the reply where a stop string is complete, otherwise None.
        """
        new = ""
        for i in ids[self._count :]:
            self._count += 1
            if i in self._stop_ids:
                break
            self._held += self._detokenizer.add([i])
            before = until(self._held, self._stop)
            if before != self._held:
                new += before
                self._held, self._ended = "", True
                return new, self._count
            keep = self._beginning()
            new += self._held[: len(self._held) - keep]
            self._held = self._held[len(self._held) - keep :]
        return new, None

    def end(self) -> str:
        """The text that was held back, when no more tokens will come."""
        if self._ended:
            return ""
        self._held += self._detokenizer.end()
        return until(self._held, self._stop)

    def _beginning(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        longest = 0
        for text in self._stop:
            for length in range(min(len(text) - 1, len(self._held)), longest, -1):
                if self._held.endswith(text[:length]):
                    longest = length
                    break
        return longest
