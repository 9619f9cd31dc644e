"""A generated problem, and the pool (train, test or demonstrations) that it belongs to."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, Literal

from cycleqd_jax.types import Message

__all__ = ["Pool", "Problem", "Record", "conversation", "fill", "pool_of"]

Record = dict[str, Any]

Pool = Literal["train", "test", "lessons"]
"""``"lessons"`` are the problems of demonstrations and of the pretraining corpus. The names are part of random seeds."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem with its gold conversation.

    Attributes:
        program: the gold program, or its behaviour. It decides about the pool of the problem.
        record: the record in the format of the benchmark, without its number.
        conversation: the messages of the solved problem.
    """

    program: str
    record: Record
    conversation: list[Message]


# The pool depends on the gold program alone, so pools are disjoint for all seeds.
_BUCKETS: dict[int, Pool] = {0: "train", 1: "test"}
_NUM_BUCKETS = 8


def pool_of(program: str) -> Pool:
    """The pool of the problems with a gold program."""
    return _BUCKETS.get(zlib.crc32(program.encode()) % _NUM_BUCKETS, "lessons")


def conversation(*contents: str) -> list[Message]:
    """A conversation of the given messages, alternating between user and assistant."""
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(contents)]


def fill(text: str, values: dict[str, str]) -> str:
    """Replaces ``{name}`` by the value of that name; other braces stay."""
    for key, value in values.items():
        text = text.replace("{" + key + "}", value)
    return text
