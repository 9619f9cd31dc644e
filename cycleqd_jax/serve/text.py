"""The text of a reply while its tokens arrive, and the stop strings that end it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cycleqd_jax.engine import Detokenizer

__all__ = ["ReplyText"]


class ReplyText:
    """Turns tokens into text that may be shown at once.

    Text that may be the beginning of a stop string is held back until the next tokens decide it. So is an incomplete character.

    Args:
        decode: the text of token ids.
        stop: strings that end the reply, and are not part of it.
        stop_ids: tokens that end the reply, and have no text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str], stop_ids: Sequence[int]) -> None:
        self._detokenizer = Detokenizer(decode)
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
            found = [at for at in (self._held.find(text) for text in self._stop) if at >= 0]
            if found:
                new += self._held[: min(found)]
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
        found = [at for at in (self._held.find(text) for text in self._stop) if at >= 0]
        return self._held[: min(found, default=len(self._held))]

    def _beginning(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        longest = 0
        for text in self._stop:
            for length in range(min(len(text) - 1, len(self._held)), longest, -1):
                if self._held.endswith(text[:length]):
                    longest = length
                    break
        return longest
