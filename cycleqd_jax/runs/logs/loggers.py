"""Opt-in logs of a search for other programs, made from its journal."""

from __future__ import annotations

import contextlib
import importlib
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from cycleqd_jax.config import RunConfig
from cycleqd_jax.runs.logs.trackers import MLflow, WeightsAndBiases, require
from cycleqd_jax.search import Journal
from cycleqd_jax.types import Progress

__all__ = ["Logged", "Logger", "TensorBoard", "check_loggers", "log_search"]


@runtime_checkable
class Logger(Protocol):
    """Gets the figures of every individual once."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs the figures of the individual with this id."""
        ...

    def flush(self) -> None:
        """Called after one individual, or several."""
        ...

    def close(self) -> None:
        """Called at the end of the search."""
        ...


class _Message(Protocol):
    """A message of protocol buffers."""

    def SerializeToString(self) -> bytes: ...


class TensorBoard:
    """Scalars for TensorBoard, with the ids of individuals as steps.

    The folder is written anew by every start of the search, from the whole journal, so that a resumed run has every individual
    once. The records are written by the caller's thread: the ``SummaryWriter`` of tensorboardX has a thread of its own, which a
    full disk ends, and its queue then blocks without end.
    """

    def __init__(self, folder: Path) -> None:
        """Removes what an earlier start has written.

        Args:
            folder: the folder of the event files.

        Raises:
            InputError: tensorboardX is not installed.
            OSError: the disk refuses.
        """
        require("tensorboard")
        from tensorboardX.record_writer import RecordWriter

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, now = folder, time.time()
        self._writer = RecordWriter(str(folder / f"events.out.tfevents.{int(now)}.{platform.node()}"))
        self._event: Callable[..., _Message] = importlib.import_module("tensorboardX.proto.event_pb2").Event
        self._writer.write(self._event(wall_time=now, file_version="brain.Event:2").SerializeToString())

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes the figures of one individual; they are on disk when :meth:`flush` returns.

        Raises:
            OSError: the disk refuses.
        """
        from tensorboardX.summary import scalar

        now = time.time()
        with self._named():
            for name, value in figures.items():
                self._writer.write(self._event(wall_time=now, step=step, summary=scalar(name, value)).SerializeToString())

    def flush(self) -> None:
        """Writes what is in memory to the disk.

        Raises:
            OSError: the disk refuses.
        """
        with self._named():
            self._writer.flush()

    def close(self) -> None:
        """Closes the file. What the disk has refused was an error of :meth:`flush`, and is none here."""
        with contextlib.suppress(OSError):
            self._writer.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Names the folder in errors of the disk."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(self._folder)) from error


class Logged:
    """A ``types.Progress`` that logs every individual once when it is reported, and passes the call on."""

    def __init__(self, progress: Progress, journal: Journal, loggers: Sequence[Logger]) -> None:
        """Logs the individuals that the journal has.

        Args:
            progress: called after the loggers.
            journal: the journal of the search.
            loggers: get the figures of every individual.
        """
        self._progress, self._journal, self._loggers = progress, journal, loggers
        self._seen: set[int] = set()
        self._best, self._quarantined = 0.0, 0
        for identity in journal.ids():
            self._log(identity)
        self._flush()

    def __call__(self, stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Logs individual ``done`` − 1; see :class:`~cycleqd_jax.types.Progress`."""
        if done - 1 not in self._seen and self._journal.get(done - 1) is not None:
            self._log(done - 1)
            self._flush()
        self._progress(stage, done, total, figures)

    def _log(self, identity: int) -> None:
        self._seen.add(identity)
        individual = self._journal[identity]
        figures: dict[str, float] = {"generation": individual.generation}
        self._quarantined += individual.error is not None
        if individual.scores is not None:
            average = statistics.fmean(individual.scores.values())
            self._best = max(self._best, average)
            figures |= {f"scores/{task}": score for task, score in individual.scores.items()}
            figures |= {"scores/average": average, "scores/best": self._best}
        figures |= {"quarantined": self._quarantined}
        figures |= {f"seconds/{stage}": seconds for stage, seconds in individual.seconds.items()}
        for logger in self._loggers:
            logger.log(identity, figures)

    def _flush(self) -> None:
        for logger in self._loggers:
            logger.flush()


def check_loggers(config: RunConfig) -> None:
    """Checks that what the loggers of a config need is installed.

    Raises:
        InputError: it is not.
    """
    for name in config.loggers:
        require(name)


@contextlib.contextmanager
def log_search(config: RunConfig, journal: Journal, progress: Progress, log: Callable[[str], None]) -> Iterator[Progress]:
    """The progress of a search with the loggers of its config, which end with the block.

    Args:
        config: the config of the run.
        journal: the journal of the search.
        progress: called by the search.
        log: called with warnings.

    Yields:
        What the search calls instead.
    """
    with contextlib.ExitStack() as stack:
        loggers: list[Logger] = []
        for name in config.loggers:
            loggers.append(_open(name, config, journal, log))
            stack.callback(loggers[-1].close)
        yield Logged(progress, journal, loggers) if loggers else progress


def _open(name: str, config: RunConfig, journal: Journal, log: Callable[[str], None]) -> Logger:
    if name == "tensorboard":
        return TensorBoard(config.folder / name)
    known = journal.ids()
    return WeightsAndBiases(config, known) if name == "wandb" else MLflow(config, known, log)
