"""Replies that clients asked for: what they asked, and what has been generated so far."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Hashable
from typing import NamedTuple

__all__ = ["Job", "News", "QueueFull", "Scored", "ServerClosed", "Ticket"]


class QueueFull(Exception):
    """Too many requests are waiting."""


class ServerClosed(Exception):
    """The server takes no more requests, or stopped before the reply was complete."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One reply that a client asked for.

    Attributes:
        model: the key of the model's weights.
        prompt: token ids.
        max_new_tokens: the most tokens of the reply; 0 only with an echo.
        temperature: 0 is greedy.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: the seed of the draws, a 32-bit number.
        stop: strings that end the reply and are not part of it.
        logprobs: how many alternatives of each token to return with its log-probability; None returns neither.
        continues: whether the reply is read as the continuation of the prompt, and may begin with a space.
        echo: the text of the prompt, which then precedes the reply; None leaves the prompt out.
    """

    model: Hashable
    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    continues: bool = False
    echo: str | None = None


class Scored(NamedTuple):
    """The log-probabilities of the tokens of a reply, after those of its prompt if that is echoed.

    Attributes:
        ids: the tokens, the stop token included.
        logprobs: the log-probability of each token given those before it, at temperature 1; None for a prompt's first token.
        top: for each token the likeliest ones at its place with their log-probabilities, the likeliest first.
        given: how many of the tokens are the prompt's.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]
    given: int


class News(NamedTuple):
    """The part of a reply that is new since the last :meth:`Ticket.take`.

    Attributes:
        text: the new text; it follows that of earlier calls.
        tokens: the number of tokens of the reply so far, the stop token included.
        finish: ``"stop"`` or ``"length"`` once the reply is complete, otherwise None.
        error: why there will be no more of the reply, or None.
        scored: the log-probabilities of a complete reply, if the request asked for them.
    """

    text: str
    tokens: int
    finish: str | None
    error: Exception | None
    scored: Scored | None = None

    @property
    def done(self) -> bool:
        """Whether nothing will follow."""
        return self.finish is not None or self.error is not None


class Ticket:
    """A reply that is waiting, being generated or complete.

    The engine's thread adds text; one other thread takes it. New text is joined to what was not taken yet, so that a reader
    that is slow, or does not read at all, does not block others and needs the memory of one reply at most.

    Attributes:
        job: what was asked.
    """

    def __init__(self, job: Job, on_change: Callable[[], None]) -> None:
        """Args:
        job: what was asked.
        on_change: called in the engine's thread when there is something new; it must not block.
        """  # noqa: D205
        self.job = job
        self._on_change = on_change
        self._changed = threading.Condition()
        self._text: list[str] = []
        self._tokens = 0
        self._finish: str | None = None
        self._error: Exception | None = None
        self._scored: Scored | None = None

    @property
    def done(self) -> bool:
        """Whether the reply is complete or has failed."""
        return self._finish is not None or self._error is not None

    @property
    def failed(self) -> bool:
        """Whether the reply ended with an error."""
        return self._error is not None

    def add(self, text: str, tokens: int, finish: str | None = None, scored: Scored | None = None) -> None:
        """Adds new text; ``tokens`` is the number so far. What finishes the reply may bring log-probabilities."""
        with self._changed:
            if self.done:
                return
            if text:
                self._text.append(text)
            self._tokens, self._finish, self._scored = tokens, finish, scored
            self._changed.notify_all()
        self._on_change()

    def fail(self, error: Exception) -> None:
        """Ends the reply with an error, unless it is complete."""
        with self._changed:
            if self.done:
                return
            self._error = error
            self._changed.notify_all()
        self._on_change()

    def take(self) -> News:
        """The part of the reply that is new since the last call."""
        with self._changed:
            text, self._text = "".join(self._text), []
            return News(text, self._tokens, self._finish, self._error, self._scored)

    def wait(self, timeout: float | None = None) -> News:
        """Waits until the reply is complete, and takes all that is new.

        Raises:
            TimeoutError: it is not complete after ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"expected a complete reply within {timeout} s, got a part of it; wait longer")
        return self.take()
