"""A stage of a run whose models are divided between several processes."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cycleqd_jax.cli.signals import STOPPED, Stopped
from cycleqd_jax.cli.supervise import tell_code
from cycleqd_jax.config import RunConfig, load_config
from cycleqd_jax.files import disk_error
from cycleqd_jax.processes import Processes, join, leave, wait_for_loss
from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import FailuresError, InputError

if TYPE_CHECKING:
    from cycleqd_jax.runs.mirror import Mirror

__all__ = ["finish", "run_distributed"]


def run_distributed(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Runs a stage in this process together with the others.

    Args:
        args: the arguments of the command line.
        command: the arguments as they were given, for the model card.

    Returns:
        The exit code, which is that of process 0.

    Raises:
        InputError: the processes, their config or their files can't be used or differ; or one process does what was asked.
    """
    if getattr(args, "model", None) is not None or Path(args.config).is_dir():
        raise InputError(f"expected a config with --distributed, got a model or a run in `{' '.join(command)}`; leave it out")
    processes = join(args.coordinator, args.processes, args.process, wait=args.wait)
    # Imports of the rest compute with JAX, which settles its devices.
    from jax.errors import JaxRuntimeError

    from cycleqd_jax.runs.follow import agree_on_run, check_distributed
    from cycleqd_jax.runs.mirror import Mirror

    mirror, code = Mirror(processes), 0
    try:
        config = load_config(args.config, args.overrides)
        check_distributed(config)
        agree_on_run(config, {"stage": args.command, "best_elite": getattr(args, "best_elite", False)}, processes)
        code = _lead(args, config, command, mirror) if mirror.leads else _follow(config, mirror)
    except BaseException as error:
        code = _code_of(error)
        if code != 1:
            if code in (2, 3):
                processes.fail(str(error))
            raise
        traceback.print_exc()
        processes.fail(f"{type(error).__name__}: {error}")
        wait_for_loss()  # the end of another process is the likely cause, and JAX ends this one then
    finally:
        if mirror.leads:
            # SIGTERM may have come while a message was sent. The others end with this process then.
            with contextlib.suppress(JaxRuntimeError):
                mirror.end(code)
    return code


def finish(code: int) -> int:
    """Ends this process's part in the run, after everything was said; returns the exit code."""
    tell_code(code)
    leave()
    return code


def _lead(args: argparse.Namespace, config: RunConfig, command: Sequence[str], mirror: Mirror) -> int:
    """Runs the stage; ends as after SIGTERM where another process has received it."""
    from cycleqd_jax.cli.stages import run_config

    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            for i in range(1, mirror.processes.count):
                if (message := mirror.processes.poll(f"failed/{i}", 1)) is not None:
                    # This process may wait for that one in a program of all devices, which nothing interrupts.
                    print(f"cycleqd: process {i} of this run has failed: {message.decode()}", file=sys.stderr, flush=True)
                    tell_code(1)
                    os._exit(1)
                if mirror.processes.poll(f"stop/{i}", 1) is not None:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    watcher = threading.Thread(target=watch, name="watch", daemon=True)
    watcher.start()
    try:
        run_config(args, config, command, mirror)
    finally:
        over.set()
        watcher.join()
    return 0


def _follow(config: RunConfig, mirror: Mirror) -> int:
    """Follows process 0; returns its exit code."""
    from cycleqd_jax.runs.follow import follow

    with _passing_sigterm_on(mirror.processes):
        code = follow(config, mirror)
    if code != 0:
        print(f"cycleqd: process 0 of this run has ended with exit code {code}.", file=sys.stderr)
    return code


@contextlib.contextmanager
def _passing_sigterm_on(processes: Processes) -> Iterator[None]:
    """Tells process 0 of the first SIGTERM, so that the run keeps what is finished; it ends this process then."""
    told = False

    def tell(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            processes.post(f"stop/{processes.index}", b"SIGTERM")

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _code_of(error: BaseException) -> int:
    """The exit code after an exception; see :func:`cycleqd_jax.cli.main.main`."""
    codes = {Stopped: STOPPED, KeyboardInterrupt: 130, InputError: 2, InfraError: 3, FailuresError: 3}
    known = next((code for kind, code in codes.items() if isinstance(error, kind)), 1)
    return 3 if known == 1 and disk_error(error) is not None else known
