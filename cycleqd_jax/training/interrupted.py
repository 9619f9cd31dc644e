"""What is kept of a training that ends before its last step, so that it can go on from there."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.types import InputError

__all__ = ["Loop", "TrainingCheckpoints"]


@runtime_checkable
class TrainingCheckpoints(Protocol):
    """Where checkpoints of one training are kept."""

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest checkpoint: its number of steps, and numpy arrays in a pytree like the given one; None if there is none.

        ``like`` has shapes and dtypes only.
        """
        ...

    def offer(self, step: int, state: Callable[[], Any]) -> None:
        """Is called after every dispatch; calls ``state`` and keeps what it returns where a checkpoint is due."""
        ...

    def interrupted(self, step: int, state: Callable[[], Any]) -> None:
        """Is called when the training is interrupted; the process ends after it."""
        ...


class Loop:
    """The weights, moments and losses of a training, from the step at which it begins.

    Attributes:
        weights: the weights that are trained.
        moments: the state of the optimizer.
        losses: the loss of every step that the host has read.
        restored_steps: the number of steps that a checkpoint had.
    """

    def __init__(self, weights: Any, moments: Any, steps: int, checkpoints: TrainingCheckpoints | None, start: float) -> None:
        """Restores what a checkpoint has.

        Args:
            weights: the initial weights.
            moments: the initial state of the optimizer.
            steps: number of steps of the training.
            checkpoints: where checkpoints are kept; None keeps none.
            start: the time (``time.monotonic``) at which this process began the training.
        """
        self.losses: list[float] = []
        self._earlier_seconds = 0.0
        self._start = start
        self._steps = steps
        self._checkpoints = checkpoints
        # Replaced by one assignment, so that an interrupt never finds the weights of one step beside the losses of another.
        self._current: tuple[Any, Any, list[jax.Array], int] = (weights, moments, [], 0)
        if checkpoints is not None:
            like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._tree())
            if (found := checkpoints.restore(like)) is not None:
                done, tree = found
                self.losses = tree["losses"][:done].tolist()
                self._earlier_seconds = float(tree["seconds"])
                del weights, moments
                self._current = (None, None, [], done)  # the initial ones make room
                # Arrays without a device of their own, like the initial ones: experts may lie on several.
                self._current = (*jax.tree.map(jnp.array, (tree["weights"], tree["moments"])), [], done)
        self.restored_steps = len(self.losses)

    @property
    def weights(self) -> Any:
        """The weights after the last dispatched step."""
        return self._current[0]

    @property
    def moments(self) -> Any:
        """The state of the optimizer after the last dispatched step."""
        return self._current[1]

    @property
    def seconds(self) -> float:
        """Wall time of the training so far, in all processes."""
        return self._earlier_seconds + time.monotonic() - self._start

    def has(self, begin: int, end: int) -> bool:
        """Whether a checkpoint had the steps of a dispatch.

        Args:
            begin: number of steps before the dispatch.
            end: number of steps after it.

        Raises:
            InputError: it had some of them, so it is of dispatches of another size.
        """
        if begin < self.restored_steps < end:
            raise InputError(
                f"expected a checkpoint at the end of a dispatch, got one of step {self.restored_steps}, between {begin} and "
                f"{end}; train with the same steps_per_dispatch, or remove it"
            )
        return end <= self.restored_steps

    def step(self, update: tuple[Any, Any, jax.Array], count: int = 1) -> None:
        """Takes over what a dispatch has computed; does not wait for it.

        Args:
            update: the new weights, the new state of the optimizer, and the losses of the steps, Float ``[at least count]``.
            count: number of steps of the dispatch.
        """
        _, _, waiting, done = self._current
        self._current = (update[0], update[1], [*waiting, jnp.atleast_1d(update[2])[:count]], done + count)

    def sync(self) -> int:
        """Waits for the losses of all steps, and returns the number of these."""
        weights, moments, waiting, done = self._current
        new = [float(loss) for losses in waiting for loss in np.asarray(losses)]
        # A loss that has been read stays in the list of losses that wait until it is in the list of all losses.
        self.losses = self.losses[: done - len(new)] + new
        self._current = (weights, moments, [], done)
        return done

    def check_finite(self, stage: str, key: str, rate: float) -> None:
        """Checks the losses that have been read.

        Args:
            stage: the name of the training.
            key: the name of the learning rate.
            rate: the learning rate.

        Raises:
            InputError: a loss is not finite.
        """
        bad = next((step for step, value in enumerate(self.losses) if not math.isfinite(value)), None)
        if bad is not None:
            raise InputError(
                f"expected a finite loss in {stage}, got {self.losses[bad]} at step {bad + 1} of {self._steps}; lower {key} "
                f"(now {rate}) or check the initial weights for NaN and Inf"
            )

    def offer(self) -> None:
        """Writes a checkpoint, where one is due."""
        if self._checkpoints is not None:
            self._checkpoints.offer(len(self.losses), self._tree)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Keeps the state of the last dispatch where the block is interrupted.

        There is nothing to keep where a dispatch has just used up its weights; the last checkpoint counts then.
        """
        try:
            yield
        except KeyboardInterrupt:
            with contextlib.suppress(Exception):  # nothing may take the place of the interrupt
                self._keep()
            raise

    def _keep(self) -> None:
        leaves = [leaf for leaf in jax.tree.leaves(self._current[:2]) if isinstance(leaf, jax.Array)]
        if self._checkpoints is None or self._current[3] <= self.restored_steps or any(x.is_deleted() for x in leaves):
            return
        done = self.sync()
        if np.isfinite(self.losses).all():
            self._checkpoints.interrupted(done, self._tree)

    def _tree(self) -> dict[str, Any]:
        losses = np.zeros(self._steps, np.float32)
        losses[: len(self.losses)] = self.losses
        seconds = np.asarray(self.seconds, np.float32)
        return {"weights": self._current[0], "moments": self._current[1], "losses": losses, "seconds": seconds}
