"""A generated problem, and the pool (train, test or demonstrations) that it belongs to."""

from __future__ import annotations

import dataclasses
import random
import zlib
from collections.abc import Sequence
from typing import Any, Literal

from cycleqd_jax.types import Message

__all__ = ["FUNCTION_NAMES", "Phrase", "Pool", "Problem", "Record", "conversation", "draw_phrase", "fill", "pool_of"]

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


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A phrase of a description and its piece of the program.

    Attributes:
        text: the phrase; ``{n}`` is a digit, ``{c}`` a letter.
        code: the piece of the program.
        basic: whether the phrase is basic.
    """

    text: str
    code: str
    basic: bool = False


FUNCTION_NAMES = ("solve", "run", "calc", "find", "work", "make", "pick", "task")
"""Names of the functions that problems ask for."""


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


def draw_phrase(rng: random.Random, phrases: Sequence[Phrase], basic: bool, letters: str = "") -> Phrase:
    """A random phrase with random values.

    Args:
        rng: draws the phrase, then its digit, then its letter.
        phrases: the phrases to choose from.
        basic: whether the phrase must be basic.
        letters: the letters to choose from; without any, no letter is drawn.
    """
    phrase = rng.choice([one for one in phrases if one.basic or not basic])
    values = {"n": str(rng.randint(2, 9))}
    if letters:
        values["c"] = rng.choice(letters)
    return Phrase(fill(phrase.text, values), fill(phrase.code, values))
