"""Checkpoints of a training of a run, which lie in its cache until the model is saved."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from cycleqd_jax.search import Checkpoints, DamagedCheckpointError
from cycleqd_jax.types import InputError

__all__ = ["CachedTraining"]


class CachedTraining:
    """Checkpoints of one training; see :class:`~cycleqd_jax.training.TrainingCheckpoints`."""

    def __init__(self, cache: Path, name: str, *, seed: int, minutes: float, log: Callable[[str], None]) -> None:
        """Writes nothing yet.

        Args:
            cache: the cache of the run.
            name: of the training; it ends with a digest of all that the training depends on.
            seed: the seed of the training.
            minutes: time between two checkpoints; the first one is written after this time.
            log: called with warnings.
        """
        self._folder = cache / "unfinished" / name
        self._key = jax.random.key(seed)
        self._seconds = 60 * minutes
        self._log = log
        self._written = time.monotonic()
        self._open: Checkpoints | None = None

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest checkpoint that can be used. Others are removed, with a warning."""
        if not self._folder.exists():
            return None
        found = self._checkpoints()
        while found.latest() is not None:
            try:
                return found.restore(like, self._key)
            except DamagedCheckpointError as error:
                self._log(f"warning: {error}; this training continues without it")
                found.remove(found.newest())
            except InputError as error:
                self._log(f"warning: {error}; this training begins again")
                self.remove()
                return None
        return None

    def offer(self, step: int, state: Callable[[], Any]) -> None:
        """Writes a checkpoint in another thread, if the time has come.

        Raises:
            OSError: the disk refuses.
        """
        if self._open is not None:
            self._open.check()
        if time.monotonic() - self._written >= self._seconds:
            self._checkpoints().save(step, state(), self._key)
            self._written = time.monotonic()

    def interrupted(self, step: int, state: Callable[[], Any]) -> None:
        """Writes a checkpoint, and waits for it; a disk that refuses is a warning."""
        try:
            found = self._checkpoints()
            found.save(step, state(), self._key)
            found.wait()
        except OSError as error:
            self._log(f"warning: no checkpoint of the training ({error}); it continues from an older one, or begins again")

    def __enter__(self) -> CachedTraining:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
            OSError: the disk refuses.
        """
        if self._open is not None:
            self._open, found = None, self._open
            found.close()

    def remove(self) -> None:
        """Removes all checkpoints of this training."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _checkpoints(self) -> Checkpoints:
        if self._open is None:
            self._open = Checkpoints(self._folder, keep=1)
        return self._open
