"""Episodes that one reply ends."""

from __future__ import annotations

import abc

from cycleqd_jax.types import Message, Score

__all__ = ["OneReplyEpisode"]


class OneReplyEpisode(abc.ABC):
    """A question, a reply, a verdict; an :class:`~cycleqd_jax.tasks.memo.Environment` that holds no resources between steps."""

    single_turn = True

    def __init__(self) -> None:
        self.repeatable = True

    @abc.abstractmethod
    def question(self) -> str:
        """The text of the question."""

    @abc.abstractmethod
    def step(self, reply: str) -> Score:
        """Judges the reply."""

    def opening(self) -> list[Message]:
        """The question."""
        return [{"role": "user", "content": self.question()}]

    def start(self) -> list[Message]:
        """The question; a sandbox starts only when there is a program."""
        return self.opening()

    def close(self) -> None:  # noqa: B027  a subclass has nothing to add
        """Does nothing."""
