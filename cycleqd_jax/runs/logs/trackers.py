"""Experiment trackers, which are opt-in: Weights & Biases and MLflow, through their own clients."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from cycleqd_jax.config import RunConfig, to_dict
from cycleqd_jax.files import make_folder, write_text
from cycleqd_jax.types import InputError, first_line

__all__ = ["MLflow", "WeightsAndBiases", "package_of", "require"]

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}

_BATCH = 1000
"""The most metrics of one request to MLflow, a limit of its servers."""

RETRY_S = 60.0
"""Seconds after a failed request to MLflow until the next one: the client's own attempts may take minutes."""


def package_of(logger: str) -> str:
    """The package that a logger of the config needs."""
    return _PACKAGES[logger]


def require(logger: str) -> Any:
    """Imports the package of a logger.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(package_of(logger))
    except ImportError as error:
        raise InputError(
            f"expected the package {package_of(logger)} for loggers: [{logger}], got none; run pip install "
            f"'cycleqd_jax[{logger}]'"
        ) from error


class _Memory:
    """What a tracker's folder in the run folder holds: the id of the tracked run, and the individuals that it has.

    The id is kept in ``id.txt``, and the individuals in ``logged.txt``, one a line. An individual that the journal does not
    have any more is evaluated again, and logged again: its failure was taken back.

    Raises:
        InputError: a file is damaged.
    """

    def __init__(self, folder: Path, known: Collection[int]) -> None:
        make_folder(folder)
        self.folder = folder
        self._file = folder / "logged.txt"
        try:
            text = self._file.read_text("utf-8") if self._file.exists() else ""
            whole = text[: text.rfind("\n") + 1]  # a crash may leave a part of a line
            found = [int(line) for line in whole.split()]
        except ValueError as error:
            raise self._damaged(f"an individual in each line of {self._file}", str(error)) from error
        try:
            is_empty = self.id == ""
        except ValueError as error:
            raise self._damaged(f"the id of the tracked run in {folder / 'id.txt'}", str(error)) from error
        if is_empty:
            raise self._damaged(f"the id of the tracked run in {folder / 'id.txt'}", "an empty file")
        self.steps = {*found} & {*known}
        kept = "".join(f"{step}\n" for step in found if step in self.steps)
        if kept != text:
            write_text(self._file, kept)

    def _damaged(self, expected: str, got: str) -> InputError:
        return InputError(f"expected {expected}, got {got}; remove {self.folder} to track the search in a new run")

    @property
    def id(self) -> str | None:
        """The id of the tracked run; None before it was made."""
        file = self.folder / "id.txt"
        return file.read_text("utf-8").strip() if file.exists() else None

    @id.setter
    def id(self, value: str) -> None:
        write_text(self.folder / "id.txt", f"{value}\n")

    def add(self, steps: list[int]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(f"{step}\n" for step in steps)
        self.steps |= {*steps}


class WeightsAndBiases:
    """A run of Weights & Biases, with ``individual`` as the axis of all metrics.

    It is offline unless the variable ``WANDB_MODE`` says otherwise; ``wandb sync`` sends it later. A search that is resumed
    continues the run of the same id, with the individuals that it lacks.
    """

    def __init__(self, config: RunConfig, known: Collection[int]) -> None:
        """Opens the run; its files are in the folder ``wandb`` of the run folder.

        Args:
            config: the config of the run.
            known: the individuals in the journal.

        Raises:
            InputError: the client is not installed, or does not start; or a file of the folder is damaged.
            OSError: the disk refuses.
        """
        wandb = require("wandb")
        self._memory = _Memory(config.folder / "wandb", known)
        if self._memory.id is None:
            self._memory.id = uuid.uuid4().hex[:16]
        mode = os.environ.get("WANDB_MODE", "offline")
        with _refused("Weights & Biases to start", f"the mode {mode}", "WANDB_MODE and the account", "wandb"):
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "cycleqd"),
                name=config.name,
                id=self._memory.id,
                resume="allow",
                dir=str(self._memory.folder),
                mode=mode,
                config=to_dict(config),
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
            )
            self._run.define_metric("individual")
            self._run.define_metric("*", step_metric="individual")
        self._new: list[int] = []

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs the figures of an individual that the run lacks."""
        if step not in self._memory.steps:
            self._run.log({"individual": step, **figures})
            self._new.append(step)

    def flush(self) -> None:
        """Remembers the individuals that were logged; the client writes and sends them in a process of its own.

        Raises:
            OSError: the disk refuses.
        """
        self._memory.add(self._new)
        self._new = []

    def close(self) -> None:
        """Waits for the client."""
        self._run.finish()


class MLflow:
    """A run of MLflow, with the ids of individuals as steps.

    Without ``MLFLOW_TRACKING_URI`` its files are in the folder ``mlflow`` of the run folder. A search that is resumed continues
    the run of the same id, with the individuals that it lacks. While a server does not answer, the figures are kept in memory.
    """

    def __init__(self, config: RunConfig, known: Collection[int], log: Callable[[str], None]) -> None:
        """Opens the run, in the experiment ``MLFLOW_EXPERIMENT_NAME`` or ``cycleqd``.

        Args:
            config: the config of the run.
            known: the individuals in the journal.
            log: called with a warning where the server does not answer.

        Raises:
            InputError: the client is not installed, or the server refuses; or a file of the folder is damaged.
            OSError: the disk refuses.
        """
        require("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        self._memory = _Memory(config.folder / "mlflow", known)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # the client has no other store without a server
            uri = (self._memory.folder / "store").absolute().as_uri()
        self._new: list[int] = []
        self._metrics: list[Any] = []
        self._uri, self._log = uri, log
        self._waits_until = 0.0
        with self._refused():
            self._client: Any = importlib.import_module("mlflow").MlflowClient(tracking_uri=uri)
            if self._memory.id is None:
                name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cycleqd")
                found = self._client.get_experiment_by_name(name)
                experiment = self._client.create_experiment(name) if found is None else found.experiment_id
                self._memory.id = self._client.create_run(experiment, run_name=config.name).info.run_id
                for key, value in _params(config).items():
                    self._client.log_param(self._memory.id, key, value)
            else:
                self._client.update_run(self._memory.id, status="RUNNING")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Keeps the figures of an individual that the run lacks, until :meth:`flush`."""
        if step not in self._memory.steps:
            now = int(time.time() * 1000)
            self._metrics += [self._entities.Metric(name, float(value), now, step) for name, value in figures.items()]
            self._new.append(step)

    def flush(self) -> None:
        """Sends the figures. Where the server does not answer, they are kept, and sent later.

        Raises:
            OSError: the disk refuses.
        """
        if time.monotonic() >= self._waits_until:
            self._send(f"the figures are kept, and sent when it answers; the next attempt follows in {RETRY_S:.0f} s")

    def _send(self, otherwise: str) -> None:
        """Sends the figures; where the server does not answer, logs a warning that says what happens otherwise."""
        try:
            self._send_all()
        except InputError as error:
            self._waits_until = time.monotonic() + RETRY_S
            self._log(f"warning: {str(error).rpartition(';')[0]}; {otherwise}")

    def _send_all(self) -> None:
        with self._refused():
            while self._metrics:
                self._client.log_batch(self._memory.id, metrics=self._metrics[:_BATCH])
                self._metrics = self._metrics[_BATCH:]
        self._memory.add(self._new)
        self._new = []

    def close(self) -> None:
        """Sends the figures that were kept, and ends the run; what the server refuses now, the next start sends."""
        if self._new:
            self._send(f"the figures of {len(self._new)} individuals were not sent; the next start of the search sends them")
        with contextlib.suppress(InputError), self._refused():
            self._client.set_terminated(self._memory.id)

    def _refused(self) -> contextlib.AbstractContextManager[None]:
        return _refused("MLflow to answer", self._uri, "MLFLOW_TRACKING_URI", "mlflow")


@contextlib.contextmanager
def _refused(expected: str, place: str, what: str, logger: str) -> Iterator[None]:
    """Turns an error of a client into one sentence."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # the clients and their stores do not document what they raise
        raise InputError(
            f"expected {expected}, got {_reason(error)} from {place}; correct {what}, or leave {logger} out of loggers, and "
            "run the same command to continue"
        ) from error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__} ({first_line(error, 120)})"


def _params(config: RunConfig) -> dict[str, Any]:
    search = config.search
    return {
        "seed": config.seed,
        "tasks": ", ".join(config.task_names),
        "method": search.method,
        "generations": search.generations,
        "batch_size": search.batch_size,
        "folder": str(config.folder),
    }
