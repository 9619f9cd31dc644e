"""The distance between two models, tensor by tensor in chunks of rows; neither is in memory as a whole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from cycleqd_jax.models.files.checkpoint import Checkpoint
from cycleqd_jax.models.files.names import NAMES
from cycleqd_jax.models.files.safetensors import read_finite, row_chunks
from cycleqd_jax.types import Adapter, InputError, LowRank

__all__ = ["Distance", "adapter_norms", "distances", "equal_weights", "norms"]


@dataclasses.dataclass(frozen=True)
class Distance:
    """Squared norms of one tensor, or their sums over several tensors.

    Attributes:
        tau: ‖θ − θ_base‖².
        base: ‖θ_base‖².
    """

    tau: float
    base: float

    @property
    def relative(self) -> float:
        """‖θ − θ_base‖ / ‖θ_base‖; infinite where the base is zero and the model is not."""
        if self.base == 0:
            return 0.0 if self.tau == 0 else math.inf
        return math.sqrt(self.tau / self.base)

    def __add__(self, other: Distance) -> Distance:
        return Distance(self.tau + other.tau, self.base + other.base)


def distances(model: Checkpoint, base: Checkpoint) -> dict[tuple[str, int | None], Distance]:
    """The norm of the task vector, for every tensor.

    Args:
        model: the fine-tuned model.
        base: the model that was fine-tuned.

    Returns:
        By our path of the weight and the layer (None for a weight without layers).

    Raises:
        InputError: tensors differ in name or shape, or have NaN or infinity.
    """
    shapes = [{name: c.tensors[name].shape for name in c.names} for c in (model, base)]
    for name in shapes[0].keys() | shapes[1].keys():
        here, there = shapes[0].get(name), shapes[1].get(name)
        if here != there:
            raise InputError(
                f"expected {'no tensor' if there is None else f'shape {list(there)}'} for {name}, as in {base.name}, got "
                f"{'none' if here is None else list(here)} in {model.name}; compare with the model's own base"
            )
    return {key: _distance(name, model, base) for key, name in _names(base)}


def equal_weights(model: Checkpoint, base: Checkpoint) -> bool:
    """Whether two models whose tensors have equal names and shapes have equal weights; it reads both.

    Args:
        model: a model.
        base: another one.
    """
    pairs = ((model.tensors[name], base.tensors[name]) for name in base.names)
    return all(
        np.array_equal(ours.read(start, stop), theirs.read(start, stop))
        for ours, theirs in pairs
        for start, stop in row_chunks(theirs)
    )


def norms(base: Checkpoint) -> dict[tuple[str, int | None], Distance]:
    """The norm of every tensor of a model; ``tau`` is zero.

    Args:
        base: the model.

    Returns:
        By our path of the weight and the layer (None for a weight without layers).

    Raises:
        InputError: tensors have NaN or infinity.
    """
    return {key: _distance(name, None, base) for key, name in _names(base)}


def _names(base: Checkpoint) -> Iterator[tuple[tuple[str, int | None], str]]:
    known = set(base.names)
    for path, (pattern, _) in NAMES.items():
        for layer in range(base.config.num_hidden_layers) if NAMES[path].stacked else (None,):
            if (name := pattern.format(layer)) in known:
                yield (path, layer), name


def _distance(name: str, model: Checkpoint | None, base: Checkpoint) -> Distance:
    tensors = [checkpoint.tensors[name] for checkpoint in (model, base) if checkpoint is not None]
    total = Distance(0.0, 0.0)
    for start, stop in row_chunks(tensors[-1]):
        parts = [read_finite(name, tensor, start, stop).astype(np.float32).ravel() for tensor in tensors]
        tau = parts[0] - parts[1] if model is not None else np.zeros(0, np.float32)
        total += Distance(float(np.dot(tau, tau)), float(np.dot(parts[-1], parts[-1])))
    return total


def adapter_norms(adapter: Adapter) -> dict[tuple[str, int | None], float]:
    """‖τ‖ of every tensor that an adapter changes, from its factors: ‖A B‖² = tr((AᵀA)(B Bᵀ)).

    Args:
        adapter: updates of ``layers/…`` have a leading layer axis.

    Returns:
        By our path of the weight and the layer (None for a weight without layers).
    """
    norms: dict[tuple[str, int | None], float] = {}
    for path, update in adapter.updates.items():
        for layer in range(_layers(update)) if path.startswith("layers/") else (None,):
            if isinstance(update, LowRank):
                a, b = (np.asarray(x if layer is None else x[layer], np.float64) for x in update)
                square = float(np.sum((a.T @ a) * (b @ b.T)))
            else:
                square = float(np.sum(np.square(np.asarray(update if layer is None else update[layer], np.float64))))
            norms[path, layer] = math.sqrt(max(square, 0.0))
    return norms


def _layers(update: Any) -> int:
    return (update.a if isinstance(update, LowRank) else update).shape[0]
