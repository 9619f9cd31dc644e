"""The output of a program, kept up to a limit."""

from __future__ import annotations

import os

__all__ = ["FLOOD", "QUIET", "Gone", "Output"]

FLOOD = 64  # a program that prints this many times the output limit is killed
QUIET = "PS1= PS2= PROMPT_COMMAND=; set +H +o history; unset HISTFILE"  # a shell without prompts and history


class Gone(Exception):
    """The host process has closed the box."""


class Output:
    """The bytes from a pipe, up to a limit; the rest is counted and dropped."""

    def __init__(self, fd: int, limit: int) -> None:
        os.set_blocking(fd, False)
        self.fd, self.limit = fd, limit
        self.data, self.total, self.ended = bytearray(), 0, False

    def read(self) -> bool:
        """Reads what is available. Returns false if the output is so large that the program must be killed."""
        try:
            chunk = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return True
        self.ended = not chunk
        self.total += len(chunk)
        if len(self.data) < self.limit:
            self.data += chunk[: self.limit - len(self.data)]
        return self.total <= FLOOD * self.limit

    def drain(self) -> None:
        """Reads what is still in the pipe, without waiting for more."""
        before = -1
        while not self.ended and self.total != before and self.total <= FLOOD * self.limit:
            before = self.total
            self.read()

    def result(self, exit_code: int | None, timed_out: bool, seconds: float) -> dict:
        """The fields of a ``Completed``."""
        return {
            "output": self.data.decode("utf-8", "replace"),
            "exit_code": exit_code,
            "timed_out": timed_out,
            "truncated": self.total > self.limit,
            "seconds": seconds,
        }
