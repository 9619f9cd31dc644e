"""Merging coefficients by gradient descent: Adam on the supervised loss of the merged model, from the uniform merge on.

The weights θ(c) = θ_base + Σ_k c_k τ_k are affine in the coefficients. So a step expresses θ(c), takes the gradient of the loss
with respect to the weights, and multiplies it with the task vectors. Only the coefficients have optimizer states.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from cycleqd_jax.config.fields import range_of
from cycleqd_jax.config.training import GradientConfig
from cycleqd_jax.genome import CoefficientGenome, CoefficientSpace
from cycleqd_jax.models import llama
from cycleqd_jax.training.batches import Example, check_examples, dispatches
from cycleqd_jax.training.interrupted import Loop, TrainingCheckpoints
from cycleqd_jax.training.supervised import TrainMetrics, loss
from cycleqd_jax.types import InputError, Progress, no_progress

__all__ = ["fit_coefficients"]

_OPTIMIZER = optax.adam(1.0)  # the loop multiplies by the learning rate, so that all rates share one program


@functools.partial(jax.jit, static_argnames=("config", "widen"))
def _fit(
    space: CoefficientSpace,
    coefficients: Float[Array, "group expert"],
    state: Any,
    tokens: Int[Array, "step batch time"],
    mask: Float[Array, "step batch time"],
    count: Int[Array, ""],
    rate: Float[Array, ""],
    config: llama.LlamaConfig,
    widen: bool,
) -> tuple[Float[Array, "group expert"], Any, Float[Array, " step"]]:
    """Runs the first ``count`` of the given updates; ``widen`` casts expressed weights to float32."""

    def update(step: Array, carry: Any) -> Any:
        coefficients, state, losses = carry
        params = space.express(CoefficientGenome(coefficients))
        if widen:
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        value, weights = jax.value_and_grad(loss)(params, config, tokens[step], mask[step])
        gradient = space.coefficient_gradient(weights).coefficients
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies Python floats by integer counters
            change, state = _OPTIMIZER.update(gradient, state)
        return optax.apply_updates(coefficients, jax.tree.map(lambda x: rate * x, change)), state, losses.at[step].set(value)

    losses = jnp.zeros(tokens.shape[0], jnp.float32)
    return jax.lax.fori_loop(0, count, update, (coefficients, state, losses))


def fit_coefficients(
    space: CoefficientSpace,
    config: llama.LlamaConfig,
    examples: Sequence[Example],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    progress: Progress = no_progress,
    stage: str = "gradient",
    checkpoints: TrainingCheckpoints | None = None,
) -> tuple[Float[np.ndarray, "group expert"], TrainMetrics]:
    """Finds merging coefficients of experts by gradient descent, starting at the uniform merge c = 1 / K.

    The loss is the mean cross-entropy of the learned tokens of a batch, in nats, as in :func:`~cycleqd_jax.training.finetune`.
    The optimizer is Adam (β = 0.9, 0.999) with a constant learning rate. Beside base and experts, the device holds one model
    and the gradient of its weights. The same arguments give the same bits on the same machine.

    Args:
        space: base and experts (full weights or adapters), and the number of groups of layers.
        config: the model.
        examples: tokenised conversations; every pass over them has a new random order. For equal shares of several tasks see
            :func:`~cycleqd_jax.training.mixture`.
        steps: number of updates.
        batch_size: conversations per update.
        learning_rate: learning rate.
        seed: the seed of the order of the examples.
        progress: called with the loss after every dispatch.
        stage: the name of this training in progress and errors.
        checkpoints: where the state of the training is kept while it runs, and from which it continues; None keeps nothing.

    Returns:
        The coefficients, a row for each group of layers and a column for each expert, and the metrics: the loss of every step
        before its update.

    Raises:
        InputError: an option is out of range, examples are invalid, or a loss or a coefficient is not finite.
    """
    limits = {item.name: range_of(item) for item in dataclasses.fields(GradientConfig)}
    for name, value in (("steps", steps), ("batch_size", batch_size), ("learning_rate", learning_rate)):
        accepted = limits[name]
        if accepted is not None and not (math.isfinite(value) and accepted.accepts(value)):
            raise InputError(f"expected {name} of a gradient descent to be {accepted}, got {value}; correct it")
    check_examples(examples, config)
    start = time.monotonic()
    widen = jax.default_backend() == "cpu"  # 16-bit products are several times slower there
    compute = "float32" if widen else config.compute_dtype or config.dtype
    # No computation uses the ids of special tokens.
    config = config.replace(
        dtype="float32" if widen else config.dtype,
        compute_dtype=compute,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    shape = space.groups, space.num_experts
    coefficients: Array = jnp.full(shape, 1 / space.num_experts, jnp.float32)
    loop = Loop(coefficients, _OPTIMIZER.init(coefficients), steps, checkpoints)
    rate = np.float32(learning_rate)
    done, seen, attended = 0, 0, 0
    with loop.interruptible():
        for batch in dispatches(examples, steps, batch_size, seed=seed):
            done += batch.count
            seen += batch.seen
            attended += batch.attended
            if done <= loop.begun:  # a checkpoint has these steps
                continue
            count = np.int32(batch.count)
            update = _fit(space, loop.weights, loop.moments, batch.tokens, batch.mask, count, rate, config=config, widen=widen)
            loop.step(update, batch.count)
            loop.sync()
            losses = loop.losses
            bad = [step for step, value in enumerate(losses) if not np.isfinite(value)]
            if bad or not np.isfinite(loop.weights).all():
                got = f"a loss of {losses[bad[0]]} at step {bad[0] + 1}" if bad else f"another coefficient by step {done}"
                raise InputError(
                    f"expected finite losses and coefficients in {stage}, got {got} of {steps}; lower {stage}.learning_rate "
                    f"(now {learning_rate}), or check the weights of the experts"
                )
            progress(stage, done, steps, {"loss": losses[-1]})
            loop.offer()
    metrics = TrainMetrics(np.asarray(loop.losses, np.float32), seen, attended, loop.earlier + time.monotonic() - start)
    return np.asarray(loop.weights), metrics
