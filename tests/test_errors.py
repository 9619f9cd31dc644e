"""What sentences say about other errors."""

from __future__ import annotations

import pytest

from cycleqd_jax.types import first_line


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
