"""The words of this room: limits, results, errors."""

from __future__ import annotations

import dataclasses

__all__ = ["Completed", "InfraError", "Isolation", "Killed", "Limits"]


class InfraError(RuntimeError):
    """The sandbox is broken. Says nothing about the program that was to run, so it is never a score."""


class Killed(RuntimeError):
    """What ran in the box broke its limits or killed its own server: the program's fault, a wrong answer."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one box may use.

    Attributes:
        wall_s: seconds on the clock, for a program, a command or a request.
        cpu_s: seconds of computing per process, rounded up to whole ones.
        memory_mb: address space of each process, and memory of all processes of the box together.
        processes: most processes and threads at once; a fork beyond fails with EAGAIN.
        disk_mb: size of the throwaway file system (which is memory), and of the largest file.
        output_bytes: most that is kept of an output; 64 times as much kills the program.
    """

    wall_s: float = 5.0
    cpu_s: float = 5.0
    memory_mb: int = 512
    processes: int = 64
    disk_mb: int = 64
    output_bytes: int = 65536

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"expected Limits.{field.name} > 0, got {value!r}; give a positive number")


@dataclasses.dataclass(frozen=True)
class Completed:
    """The end of a program or command. Measured from outside: nothing that ran can set these but by running.

    Attributes:
        output: stdout and stderr as they came, as UTF-8 with replacement characters, cut at ``Limits.output_bytes``.
        exit_code: as a shell's, or minus the signal that ended it; None where it was stopped for taking too long.
        timed_out: it took longer than its wall clock or CPU time.
        truncated: it printed more than ``output`` holds.
        seconds: wall-clock time.
    """

    output: str
    exit_code: int | None
    timed_out: bool
    truncated: bool
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, with exit code 0."""
        return self.exit_code == 0 and not self.timed_out


@dataclasses.dataclass(frozen=True)
class Isolation:
    """A way to keep programs away from the host.

    Attributes:
        name: ``"bwrap"``, ``"userns"`` or ``"none"``.
        description: one sentence: what holds, and what does not.
    """

    name: str
    description: str
