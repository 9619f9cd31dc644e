"""Supervised training of all weights: pretraining of a tiny base, one expert per task, and one model on all data.

AdamW with a linear warm-up and a cosine decay, as for the paper's experts (β = 0.9, 0.95; the rate rises over the first 10 % of
the steps and falls to 0.2 of its peak). Several steps run per dispatch. Weights and moments are float32 for models of any
dtype, and the weights are cast once at the end.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from cycleqd_jax.config.fields import Range, range_of
from cycleqd_jax.config.training import TrainConfig
from cycleqd_jax.models import llama
from cycleqd_jax.training.batches import Example, check_examples, dispatches
from cycleqd_jax.training.interrupted import Loop, TrainingCheckpoints
from cycleqd_jax.types import InputError, Params, Progress, no_progress

__all__ = ["TrainMetrics", "TrainOptions", "finetune", "learning_rates", "loss", "optimizer"]


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Options of a training. Those of :class:`~cycleqd_jax.config.TrainConfig` have the same ranges.

    Attributes:
        steps: number of updates.
        batch_size: conversations, or images, per update.
        learning_rate: the peak.
        final_ratio: the last learning rate, as a fraction of the peak.
        warmup: the fraction of the steps over which the rate rises linearly from 0.
        betas: decay rates of AdamW's two moments.
        weight_decay: decoupled; not applied to the gains of norms.
        clip: the largest global norm of a gradient.
        steps_per_dispatch: updates per host sync; their batches of conversations are padded to the same length.
        group_by_length: batch conversations of similar length and sync after every step, to reduce padding.
    """

    steps: int
    batch_size: int
    learning_rate: float
    final_ratio: float = 0.2
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    steps_per_dispatch: int = 16
    group_by_length: bool = False

    def __post_init__(self) -> None:
        limits = {item.name: range_of(item) for item in dataclasses.fields(TrainConfig)}
        for name, accepted in (limits | {"steps_per_dispatch": Range(minimum=1)}).items():
            value = getattr(self, name)
            if accepted is not None and not (math.isfinite(value) and accepted.accepts(value)):
                raise InputError(f"expected {name} of a training to be {accepted}, got {value}; correct the config")


@dataclasses.dataclass(frozen=True)
class TrainMetrics:
    """Metrics of a training.

    Attributes:
        losses: the loss of every step, in nats per learned token, Float ``[steps]``.
        tokens: the number of tokens, without padding.
        attended: pairs of a token and a token that it attends to, itself included.
        seconds: wall time, including compilation, of all processes that have taken part.
    """

    losses: np.ndarray
    tokens: int
    attended: int
    seconds: float


def learning_rates(options: TrainOptions) -> Float[np.ndarray, " steps"]:
    """The learning rate of every step."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=options.learning_rate,
        warmup_steps=int(options.warmup * options.steps),
        decay_steps=options.steps,
        end_value=options.final_ratio * options.learning_rate,
    )
    # Step n uses the rate of the schedule's step n + 1, so that the first rate is not 0.
    # One call for all steps would give other last bits, and other trained models.
    return np.asarray([schedule(step + 1) for step in range(options.steps)], np.float32)


def loss(
    params: Params, config: llama.LlamaConfig, tokens: Int[Array, "batch time"], mask: Float[Array, "batch time"]
) -> Float[Array, ""]:
    """The mean cross-entropy of the tokens with ``mask`` 1, each predicted from the tokens before it, in nats."""
    logits = llama.forward(params, config, tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    weights = mask[:, 1:]
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def _decayed(params: Params) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), params)


def optimizer(
    betas: tuple[float, float], weight_decay: float, clip: float, decayed: Callable[[Params], Any] = _decayed
) -> optax.GradientTransformation:
    """AdamW at a learning rate of 1; the loop multiplies by the rate of the step, so that all schedules share one program.

    Args:
        betas: see :class:`TrainOptions`.
        weight_decay: see :class:`TrainOptions`.
        clip: see :class:`TrainOptions`.
        decayed: says of every leaf whether its weights decay; by default all but norms.
    """
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(1.0, *betas, weight_decay=weight_decay, mask=decayed))


@functools.partial(jax.jit, static_argnames=("config", "optimizer_options"), donate_argnames=("params", "state"))
def _train(
    params: Params,
    state: Any,
    tokens: Int[Array, "step batch time"],
    mask: Float[Array, "step batch time"],
    rates: Float[Array, " step"],
    count: Int[Array, ""],
    config: llama.LlamaConfig,
    optimizer_options: tuple[tuple[float, float], float, float],
) -> tuple[Params, Any, Float[Array, " step"]]:
    """Runs the first ``count`` of the given updates, so that a shorter last dispatch uses the same compiled program."""
    adamw = optimizer(*optimizer_options)

    def update(step: Array, carry: Any) -> Any:
        params, state, losses = carry
        value, gradients = jax.value_and_grad(loss)(params, config, tokens[step], mask[step])
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies Python floats by integer counters
            updates, state = adamw.update(gradients, state, params)
        params = jax.tree.map(lambda p, u: p + rates[step] * u, params, updates)
        return params, state, losses.at[step].set(value)

    return jax.lax.fori_loop(0, count, update, (params, state, jnp.zeros_like(rates)))


def finetune(
    params: Params,
    config: llama.LlamaConfig,
    examples: Sequence[Example],
    options: TrainOptions,
    seed: int = 0,
    progress: Progress = no_progress,
    stage: str = "finetune",
    key: str = "learning_rate",
    checkpoints: TrainingCheckpoints | None = None,
) -> tuple[Params, TrainMetrics]:
    """Trains all weights on conversations.

    The same arguments give the same bits on the same machine.

    Args:
        params: the initial weights; they are not changed.
        config: the model.
        examples: tokenised conversations; every pass over them has a new random order.
        options: the options of the training.
        seed: the seed of the order of the examples.
        progress: called with the loss and the learning rate after every dispatch.
        stage: the name of this training in progress and errors.
        key: the name of the learning rate in errors, such as ``finetune.learning_rate``.
        checkpoints: where the state of the training is kept while it runs, and from which it continues; None keeps nothing.

    Returns:
        The new weights, in the dtype of the initial ones, and the metrics.

    Raises:
        InputError: examples are invalid, or the loss is not finite (for example with too high a learning rate).
    """
    check_examples(examples, config)
    start = time.monotonic()
    dtypes = jax.tree.map(lambda p: p.dtype, params)
    params = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
    # Master weights are float32; products have the dtype in which the model will run.
    compute = config.compute_dtype or config.dtype
    if jax.default_backend() == "cpu":
        compute = "float32"  # on CPU 16-bit activations are several times slower
    # No computation uses the ids of special tokens. Without them, the base and its experts share one compiled program.
    config = config.replace(dtype="float32", compute_dtype=compute, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    optimizer_options = (options.betas, options.weight_decay, options.clip)
    loop = Loop(params, optimizer(*optimizer_options).init(params), options.steps, checkpoints, start)
    del params  # the loop's are used up by every step
    rates = learning_rates(options)
    batches = dispatches(
        examples,
        options.steps,
        options.batch_size,
        steps_per_dispatch=options.steps_per_dispatch,
        group_by_length=options.group_by_length,
        seed=seed,
    )
    first, seen, attended = 0, 0, 0
    with loop.interruptible():
        for batch in batches:
            first, begin = first + batch.count, first
            seen += batch.seen
            attended += batch.attended
            if loop.has(begin, first):
                continue
            rate = np.zeros(len(batch.tokens), np.float32)
            rate[: batch.count] = rates[begin:first]
            update = _train(
                loop.weights,
                loop.moments,
                batch.tokens,
                batch.mask,
                rate,
                np.int32(batch.count),
                config=config,
                optimizer_options=optimizer_options,
            )
            loop.step(update, batch.count)
            loop.sync()
            loop.check_finite(stage, key, options.learning_rate)
            progress(stage, first, options.steps, {"loss": loop.losses[-1], "learning_rate": float(rates[first - 1])})
            loop.offer()
    params = jax.tree.map(lambda p, dtype: p.astype(dtype), loop.weights, dtypes)
    return params, TrainMetrics(np.asarray(loop.losses, np.float32), seen, attended, loop.seconds)
