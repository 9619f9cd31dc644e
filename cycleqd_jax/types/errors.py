"""Errors that all packages share."""

from __future__ import annotations

__all__ = ["FailuresError", "InputError", "NonFiniteError", "first_line", "with_place"]


class FailuresError(RuntimeError):
    """Too many individuals in a row could not be evaluated, or an expert could not.

    The message is one sentence of the form "expected X, got Y in Z; do W". The command line prints it and exits with code 3:
    the same command continues.
    """


class InputError(ValueError):
    """An input of the user (a config, a file, a model or data) is not usable.

    The message is one sentence of the form "expected X, got Y in Z; do W". The command line prints it and exits with code 2.
    """


class NonFiniteError(ArithmeticError):
    """The logits of a model are NaN or infinite, so its replies are meaningless.

    Attributes:
        individual: index of the individual in a population; 0 for a single model.
    """

    def __init__(self, message: str, individual: int = 0) -> None:
        super().__init__(message)
        self.individual = individual


def first_line(error: BaseException, limit: int | None = None) -> str:
    """The first line of an error's message, for a sentence about it; the error's type where there is no message.

    Args:
        error: the error.
        limit: the most characters; a longer line ends in ``…``. None keeps the whole line.
    """
    text = (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def with_place(error: BaseException, place: str) -> str:
    """The message of an error with the place where it was found, before the advice.

    Args:
        error: the error, whose message has the form "expected X, got Y; do W".
        place: the place, without "in".

    >>> from cycleqd_jax.types import InputError, with_place
    >>> with_place(InputError("expected a number, got x; correct it"), "task 'a'")
    "expected a number, got x in task 'a'; correct it"
    """
    found, semicolon, advice = str(error).rpartition("; ")
    return f"{found} in {place}; {advice}" if semicolon else f"{advice} in {place}"
