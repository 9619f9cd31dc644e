"""What sentences say about other errors."""

from __future__ import annotations

import pytest

from cycleqd_jax.types import first_line, with_place


@pytest.mark.parametrize(
    ("error", "limit", "line"),
    [
        (OSError(28, "No space left on device"), None, "[Errno 28] No space left on device"),
        (RuntimeError("\n  out of memory: 8 GiB \nAllocation types:\n"), None, "out of memory: 8 GiB"),
        (ValueError(), None, "ValueError"),
        (ValueError("abcdef"), 6, "abcdef"),
        (ValueError("abcdefg"), 6, "abcde…"),
    ],
)
def test_the_first_line(error, limit, line):
    assert first_line(error, limit) == line


@pytest.mark.parametrize(
    ("message", "placed"),
    [
        ("expected 1; got 2; correct it", "expected 1; got 2 in task 'a'; correct it"),
        ("expected 1, got 2", "expected 1, got 2 in task 'a'"),
    ],
)
def test_the_place_comes_before_the_advice(message, placed):
    assert with_place(ValueError(message), "task 'a'") == placed
