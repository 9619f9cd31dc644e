"""Limits, results and errors."""

from __future__ import annotations

import dataclasses

__all__ = ["Completed", "InfraError", "Isolation", "Killed", "Limits"]


class InfraError(RuntimeError):
    """The sandbox, or a server that a task needs, does not work. It must never become a score.

    The only causes are faults outside of boxes, and each is checked from outside: an isolation that does not work here, a fork
    server that has ended or does not answer, a supervisor that cannot make a new box (no memory, no disk), an engine or a
    database server that does not answer to its administrator. Nothing that a program in a box prints, raises, ends or fills
    is such a fault.
    """


class Killed(RuntimeError):
    """A program exceeded its limits or ended its own box. This is the fault of the program and counts as a wrong answer."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """The resources of one box.

    Attributes:
        wall_s: wall-clock seconds of a program, a command or a request.
        cpu_s: CPU seconds per process, rounded up to whole seconds.
        memory_mb: address space of each process, and memory of all processes of the box together.
        processes: most processes and threads at once; a further fork fails with EAGAIN.
        disk_mb: size of the throwaway file system, which is in memory, and of the largest file.
        output_bytes: most bytes of output to keep; 64 times as many kill the program.
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
                raise ValueError(f"expected Limits.{field.name} to be positive, got {value!r}; give a positive number")


@dataclasses.dataclass(frozen=True)
class Completed:
    """The result of a program or command, measured from outside the box.

    Attributes:
        output: stdout and stderr interleaved, as UTF-8 with replacement characters, cut at ``Limits.output_bytes``.
        exit_code: the exit code, or minus the number of the signal that ended the program; None after a timeout.
        timed_out: whether it took longer than its wall-clock or CPU time.
        truncated: whether it printed more than ``output`` holds.
        seconds: wall-clock time.
    """

    output: str
    exit_code: int | None
    timed_out: bool
    truncated: bool
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it ended with exit code 0, without a timeout."""
        return self.exit_code == 0 and not self.timed_out


@dataclasses.dataclass(frozen=True)
class Isolation:
    """A way to isolate programs from the host.

    Attributes:
        name: ``"bwrap"``, ``"userns"`` or ``"none"``.
        description: one sentence on what it protects from, and what not.
    """

    name: str
    description: str
