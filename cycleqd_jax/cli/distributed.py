"""A stage of a run whose models are divided between several processes."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cycleqd_jax.cli.signals import STOPPED, Stopped
from cycleqd_jax.cli.supervise import tell_code
from cycleqd_jax.config import RunConfig, load_config
from cycleqd_jax.disk_errors import disk_error
from cycleqd_jax.files import make_folder
from cycleqd_jax.processes import HEARTBEAT_S, End, PeerError, Processes, check_shared, join, leave
from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import FailuresError, InputError

if TYPE_CHECKING:
    from cycleqd_jax.runs.devices.mirror import Mirror

__all__ = ["finish", "run_distributed"]

_GRACE_S = 5.0
"""Seconds after the end of another process in which the main thread may end by itself."""

_LOSS_S = HEARTBEAT_S + 5
"""Seconds after which JAX has noticed the end of another process."""


def run_distributed(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Runs a stage in this process together with the others.

    Args:
        args: the arguments of the command line.
        command: the arguments as they were given, for the model card.

    Returns:
        The exit code. All processes have that of the first that ends with another than 0.

    Raises:
        InputError: the processes, their config or their files can't be used or differ; or one process does what was asked.
    """
    if getattr(args, "model", None) is not None or Path(args.config).is_dir():
        raise InputError(f"expected a config with --distributed, got a model or a run in `{' '.join(command)}`; leave it out")
    processes = join(args.coordinator, args.processes, args.process, wait=args.wait)
    # Imports of the rest compute with JAX, which settles its devices.
    from cycleqd_jax.cli.stages import run_config
    from cycleqd_jax.runs.devices.mirror import Mirror
    from cycleqd_jax.runs.workers.follow import agree_on_run, check_distributed

    mirror, code = Mirror(processes), 1
    with _Watch(processes):
        try:
            config = load_config(args.config, args.overrides)
            check_distributed(config)
            agree_on_run(config, {"stage": args.command, "best_elite": getattr(args, "best_elite", False)}, processes)
            _check_folders(config, processes)
            if mirror.leads:
                run_config(args, config, command, mirror)
                code = 0
            else:
                code = _follow(config, mirror)
        except BaseException as error:
            found = _end_of(error, processes)
            code = found.code
            if found.process == processes.index:
                raise
            print(f"cycleqd: {found}", file=sys.stderr)
        finally:
            if mirror.leads:
                with contextlib.suppress(Exception):  # the others have ended, or end with this process
                    mirror.end(code)
    return code


def finish(code: int) -> int:
    """Ends this process's part in the run, after all output was written; returns the exit code."""
    tell_code(code)
    leave()
    return code


class _Watch:
    """A thread that ends this process after another one has reported its end.

    The main thread may wait for that process in a program of all devices, which nothing interrupts. In process 0 the thread
    also passes on the SIGTERM that another process has received.
    """

    def __init__(self, processes: Processes, seconds: float = 0.5) -> None:
        self._processes = processes
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        from jax.errors import JaxRuntimeError

        stopped = self._processes.index != 0
        while not self._over.wait(self._seconds):
            with contextlib.suppress(JaxRuntimeError):  # process 0 has ended, and JAX ends this one
                end = self._processes.end()
                if end is not None:
                    if end.process != self._processes.index and not self._over.wait(_GRACE_S):
                        _end_now(end)
                    return
                if not stopped and self._processes.asked_to_stop():
                    stopped = True
                    os.kill(os.getpid(), signal.SIGTERM)


def _end_now(end: End) -> None:
    """Ends this process with the exit code of another, whatever its main thread does."""
    print(f"cycleqd: {end}", file=sys.stderr, flush=True)
    finish(end.code)
    os._exit(end.code)


def _end_of(error: BaseException, processes: Processes) -> End:
    """Reports to the others why this process ends; returns the end that was reported first."""
    from jax.errors import JaxRuntimeError

    if isinstance(error, PeerError):
        return error.end
    code, here = _code_of(error), processes.index
    message = f"{type(error).__name__}: {error}" if code == 1 else "" if isinstance(error, KeyboardInterrupt) else str(error)
    try:
        if isinstance(error, JaxRuntimeError) and code == 1:
            # Another process has probably ended. It reports its end within this time, or JAX ends this process.
            until = time.monotonic() + _LOSS_S
            while processes.end() is None and time.monotonic() < until:
                time.sleep(0.1)
        first = processes.tell_end(code, message)
        return End(here, code, message) if first.code == code != 1 else first
    except JaxRuntimeError:  # process 0 has ended, and JAX ends this process soon
        time.sleep(_LOSS_S)
        return End(here, code, message)


def _check_folders(config: RunConfig, processes: Processes) -> None:
    """Checks that all processes have the cache, and the folder that has the run folder.

    A requeued job may have its process 0 on another machine, which continues the run.
    """
    folders = {"cache": Path(config.cache).absolute()}
    run = config.folder.absolute()
    folders["output"] = run if run.exists() else run.parent
    if processes.index == 0:
        for folder in folders.values():
            make_folder(folder)
    check_shared(processes, folders)


def _follow(config: RunConfig, mirror: Mirror) -> int:
    """Follows process 0; returns its exit code."""
    from cycleqd_jax.runs.workers.follow import follow

    with _passing_sigterm_on(mirror.processes):
        code = follow(config, mirror)
    if code != 0:
        print(f"cycleqd: {End(0, code, '')}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _passing_sigterm_on(processes: Processes) -> Iterator[None]:
    """Passes SIGTERM on to process 0, so that the run keeps what is finished; it ends this process then."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        processes.ask_to_stop()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _code_of(error: BaseException) -> int:
    """The exit code after an exception; see :func:`cycleqd_jax.cli.main.main`."""
    codes = {Stopped: STOPPED, KeyboardInterrupt: 130, InputError: 2, InfraError: 3, FailuresError: 3}
    known = next((code for kind, code in codes.items() if isinstance(error, kind)), 1)
    return 3 if known == 1 and disk_error(error) is not None else known
