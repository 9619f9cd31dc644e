"""Training checkpoints, which are in the cache of a run until the model is saved."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np

from cycleqd_jax.files import locked, make_folder
from cycleqd_jax.search import Checkpoints, DamagedCheckpointError, checkpoint_steps, read_checkpoint
from cycleqd_jax.search.checkpoint import SCHEMA, leaf_shapes, remove_partial
from cycleqd_jax.types import InputError, first_line

__all__ = ["CachedTraining", "claimed", "remove_unfinished"]


@contextlib.contextmanager
def claimed(cache: Path, name: str) -> Iterator[None]:
    """Holds the lock of a training; another process that trains the same is waited for."""
    make_folder(cache / "locks")
    with locked(cache / "locks" / name, wait=True):
        yield


def remove_unfinished(cache: Path, name: str) -> None:
    """Removes the checkpoints of a training that is over."""
    shutil.rmtree(_folder(cache, name), ignore_errors=True)


def _folder(cache: Path, name: str) -> Path:
    return cache / "unfinished" / name


class CachedTraining:
    """Checkpoints of one training; see :class:`~cycleqd_jax.training.TrainingCheckpoints`.

    The caller holds the lock of the training (:func:`claimed`). A disk that refuses a checkpoint is a warning: the training
    goes on.
    """

    def __init__(self, cache: Path, name: str, *, seed: int, minutes: float, log: Callable[[str], None]) -> None:
        """Writes nothing yet.

        Args:
            cache: the cache of the run.
            name: the name of the training; it ends with a digest of all that the training depends on.
            seed: the seed of the training.
            minutes: time between two checkpoints; the first one is written after this time.
            log: called with warnings, and with the step from which the training continues.
        """
        self._folder = _folder(cache, name)
        self._key = jax.random.key(seed)
        self._seconds = 60 * minutes
        self._log = log
        self._written = time.monotonic()
        self._open: Checkpoints | None = None
        self._refused = False

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest checkpoint that can be used, as numpy arrays. Damaged ones are removed, with a warning.

        Args:
            like: a pytree with the same leaves, shapes and dtypes; of these nothing else is read.

        Returns:
            The number of steps, and a pytree like the given one; None if there is none.

        Raises:
            InputError: the disk can't be read, or a checkpoint is of a newer version.
        """
        for step in reversed(checkpoint_steps(self._folder)):
            place = self._folder / str(step)
            try:
                stored = read_checkpoint(self._folder, step)
            except DamagedCheckpointError as error:
                self._log(
                    f"warning: the checkpoint {place} of a training is damaged, and is removed ({first_line(error, 160)})"
                )
                shutil.rmtree(place, ignore_errors=True)
                continue
            if stored.schema > SCHEMA:
                raise InputError(
                    f"expected a checkpoint of schema {SCHEMA} or older, got schema {stored.schema} in {place}; use the "
                    "version of cycleqd_jax that wrote it, or remove it"
                )
            expected = leaf_shapes(flax.serialization.to_state_dict(like)), np.asarray(jax.random.key_data(self._key)).tolist()
            if (leaf_shapes(stored.state), stored.key_data.tolist()) != expected:
                self._log(f"warning: the checkpoint {place} is of another training, and is removed")
                shutil.rmtree(place, ignore_errors=True)
                continue
            self._log(f"a training continues after step {step} ({self._folder})")
            return step, flax.serialization.from_state_dict(like, dict(stored.state))
        return None

    def offer(self, step: int, state: Callable[[], Any]) -> None:
        """Writes a checkpoint in another thread, if the time has come."""
        if self._refused or time.monotonic() - self._written < self._seconds:
            return
        self._written = time.monotonic()
        try:
            self._checkpoints().save(step, state(), self._key)
        except OSError as error:
            self._refuse(error)

    def interrupted(self, step: int, state: Callable[[], Any]) -> None:
        """Writes a checkpoint, and waits for it; any error is a warning, so that none takes the place of the interrupt."""
        try:
            found = self._checkpoints()
            found.save(step, state(), self._key)
            found.wait()
        except Exception as error:  # orbax and tensorstore do not document what they raise
            self._refuse(error)

    def __enter__(self) -> CachedTraining:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def remove(self) -> None:
        """Removes all checkpoints of this training."""
        self._close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _close(self) -> None:
        if self._open is not None:
            self._open, found = None, self._open
            try:
                found.close()
            except OSError as error:
                self._refuse(error)

    def _checkpoints(self) -> Checkpoints:
        if self._open is None:
            self._open = Checkpoints(self._folder, keep=1)
        return self._open

    def _refuse(self, error: Exception) -> None:
        self._refused = True
        self._log(
            f"warning: a checkpoint of a training can't be written to {self._folder} ({first_line(error, 160)}); an "
            "interrupted training continues from an older one, or begins again"
        )
        remove_partial(self._folder)
