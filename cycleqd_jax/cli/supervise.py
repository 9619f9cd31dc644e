"""The process that starts a process of a distributed run, and says why it ended.

JAX's distributed service aborts a process whose peer has ended, from a thread that Python does not see. This process turns that
into a sentence and an exit code.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from cycleqd_jax.cli.signals import STOPPED

__all__ = ["is_supervised", "supervise", "tell_code"]

_VARIABLE = "CYCLEQD_SUPERVISOR"

_ABORTED = b"JAX distributed service detected fatal errors"
"""What JAX writes before it aborts a process."""

_JOINING = b"CoordinationService/RegisterTask"
"""What it writes too where not all processes have come in time."""

_SERVICE = re.compile(rb"[EW]\d{4} [\d:.]+ +\d+ coordination_service(_agent)?\.cc:")
"""How lines of the service begin that come before it aborts a process."""

_CODE = b"cycleqd_jax exit code "


def is_supervised() -> bool:
    """Whether this process was started by :func:`supervise`. It ends then when that process ends."""
    if os.environ.get(_VARIABLE) != str(os.getppid()):
        return False
    if sys.platform == "linux":
        from cycleqd_jax.sandbox.inside.linux import die_with_parent

        die_with_parent(signal.SIGKILL)
    return os.environ.get(_VARIABLE) == str(os.getppid())


def supervise(command: Sequence[str], *, wait: int, where: str) -> int:
    """Runs the command in another process, and returns its exit code.

    SIGTERM is passed on. Ctrl-C reaches both processes of a terminal, and this one leaves it to the other.

    Args:
        command: the arguments of ``cycleqd``.
        wait: the seconds that the other processes of the run have to start.
        where: the address of process 0, for a message.

    Returns:
        75 where another process of the run has ended, 2 where not all processes have started.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "cycleqd_jax.cli", *command],
        stderr=subprocess.PIPE,
        env={**os.environ, _VARIABLE: str(os.getpid())},
    )

    def terminate(number: int, frame: FrameType | None) -> None:
        child.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, terminate), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        reported, aborted, joining = _pass_on(child)
        code = child.wait()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    if reported is not None:
        return reported
    if aborted and joining:
        print(
            f"cycleqd: expected all processes of the run within {wait} s at {where}, got no connection; start all of them, "
            "correct --coordinator and --processes, or raise --wait",
            file=sys.stderr,
        )
        return 2
    if aborted:
        print(
            "cycleqd: another process of this run has ended, so this one has ended too; run the same commands to continue.",
            file=sys.stderr,
        )
        return STOPPED
    return code if code >= 0 else 128 - code


def tell_code(code: int) -> None:
    """Tells the process that started this one its exit code: JAX may abort this process while the others end."""
    sys.stderr.flush()
    sys.stderr.buffer.write(_CODE + str(code).encode() + b"\n")
    sys.stderr.flush()


def _pass_on(child: subprocess.Popen[bytes]) -> tuple[int | None, bool, bool]:
    """Copies the child's errors to those of this process, without what JAX prints about a process that it aborts.

    Returns:
        The exit code that the child has reported, whether JAX has aborted it, and whether it was joining then.
    """
    reported, aborted, joining = None, False, False
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith(_CODE):
            reported = int(line.removeprefix(_CODE))
        aborted = aborted or _ABORTED in line
        joining = joining or (aborted and _JOINING in line)
        if reported is None and not aborted and not _SERVICE.match(line):
            sys.stderr.buffer.write(line)
            sys.stderr.flush()
    return reported, aborted, joining
