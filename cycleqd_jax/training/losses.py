"""The loss of predicted masks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["structure_loss"]

EDGE_WINDOW, EDGE_WEIGHT = 31, 5.0
"""Of the structure loss: pixels of a side of the window, and the weight of the edge."""


def _window_mean(x: Float[Array, "batch rows columns"]) -> Float[Array, "batch rows columns"]:
    """The mean over a window around every place; places outside are zero and count."""
    pad = EDGE_WINDOW // 2

    def along(x: Array, axis: int) -> Array:
        window = tuple(EDGE_WINDOW if i == axis else 1 for i in range(3))
        padding = tuple((pad, pad) if i == axis else (0, 0) for i in range(3))
        return jax.lax.reduce_window(x, np.float32(0), jax.lax.add, window, (1, 1, 1), padding)

    return along(along(x, 1), 2) / EDGE_WINDOW**2


def structure_loss(
    logits: Float[Array, "batch rows columns"],
    masks: Float[Array, "batch rows columns"],
    valid: Float[Array, "batch rows columns"],
) -> Float[Array, ""]:
    """The structure loss of F³Net, the mean over the images of a batch.

    With the weight w = 1 + 5 |mean of the mask around a pixel − mask| of every pixel it is

        Σ w BCE / Σ w  +  1 − (Σ w p m + 1) / (Σ w (p + m) − Σ w p m + 1),  p = sigmoid(logits).

    The published code averages the first term without weights by mistake (``reduce="none"``); this is the paper's formula.

    Args:
        logits: the predicted masks.
        masks: the share of the object at every place, from 0 to 1.
        valid: 0 for padding, which does not count, otherwise 1.
    """
    weight = (1 + EDGE_WEIGHT * jnp.abs(_window_mean(masks) - masks)) * valid
    total = functools.partial(jnp.sum, axis=(1, 2))
    entropy = jax.nn.softplus(logits) - logits * masks
    p = jax.nn.sigmoid(logits)
    both, either = total(weight * p * masks), total(weight * (p + masks))
    return jnp.mean(total(weight * entropy) / total(weight) + 1 - (both + 1) / (either - both + 1))
