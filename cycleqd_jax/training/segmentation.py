"""Fine-tuning of Segment Anything from box prompts: all weights, the mask decoder alone, or low-rank updates.

The loss is the structure loss of the field (Wei, Wang & Huang, *F³Net*, AAAI 2020, used in PraNet, MICCAI 2020): a binary
cross-entropy and an intersection over union whose pixels weigh more near the edge of the object. Optimizer and learning rates
are those of :mod:`cycleqd_jax.training.supervised`.

Images are flipped, and boxes moved, by a seed. A flip comes before the image is resized and padded, and image, mask and box are
flipped together. With a frozen image encoder, the embedding of every flip that the training draws is computed beforehand: an
embedding can't be flipped itself, because the encoder's positions and kernels are not symmetric.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cycleqd_jax.models import sam
from cycleqd_jax.models.sam.embeddings import EmbeddingFolder
from cycleqd_jax.models.sam.images import preprocess
from cycleqd_jax.operators.adapter import dense_update
from cycleqd_jax.operators.svd import is_matrix
from cycleqd_jax.training.embeddings import FrozenEncoder
from cycleqd_jax.training.images import FLIPS, Draw, check_items, draw_items, flipped, model_box, target
from cycleqd_jax.training.interrupted import Loop, TrainingCheckpoints
from cycleqd_jax.training.losses import structure_loss
from cycleqd_jax.training.supervised import TrainOptions, learning_rates, optimizer
from cycleqd_jax.types import (
    Adapter,
    AnyArray,
    InputError,
    LowRank,
    Params,
    Progress,
    SegmentationItem,
    leaf_path,
    no_progress,
    tree_paths,
)

__all__ = ["MaskMetrics", "MaskOptions", "finetune_mask_adapter", "finetune_masks"]

_FROZEN = re.compile(r"prompt/(frequencies|mask/.*|no_point)|.*/norm/(mean|var)")
"""Leaves that no training changes: constants, statistics of batch norms, and what boxes do not use."""

_USED = (
    (re.compile(r"decoder/hyper/.*"), np.s_[:1]),
    (re.compile(r"decoder/iou/proj_out/.*"), np.s_[..., :1]),
    (re.compile(r"prompt/points"), np.s_[2:]),
)
"""The parts that the loss uses of some leaves: of the first mask token, and of the corners of boxes. The rest never changes."""

_LORA = re.compile(r"(?:vision|decoder)/(?:.*/)?(?:\w*attn|token_to_image|image_to_token)/\w+/kernel")
"""The projections of attention."""


@dataclasses.dataclass(frozen=True)
class MaskOptions:
    """Options of a training on masks.

    Attributes:
        trained: ``"decoder"`` trains the mask decoder alone, ``"all"`` all weights. Constants, the running statistics of batch
            norms and what boxes do not use stay as they are. The head that predicts the intersection over union stays too,
            unless ``iou_weight`` is positive.
        flips: how images are flipped: ``"none"``, ``"horizontal"`` or ``"both"`` ways.
        jitter_fraction: every edge of a box moves by up to this fraction of the box's width or height.
        iou_weight: the weight of the squared error of the predicted intersection over union.
    """

    trained: str = "decoder"
    flips: str = "horizontal"
    jitter_fraction: float = 0.0
    iou_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, accepted in {"trained": ("decoder", "all"), "flips": tuple(FLIPS)}.items():
            if getattr(self, name) not in accepted:
                raise InputError(f"expected {name} to be one of {', '.join(accepted)}, got {getattr(self, name)!r}; correct it")
        if not 0 <= self.jitter_fraction < 0.5:
            raise InputError(f"expected jitter_fraction to be from 0 to below 0.5, got {self.jitter_fraction}; correct it")
        if not 0 <= self.iou_weight < math.inf:
            raise InputError(f"expected iou_weight to be at least 0, got {self.iou_weight}; correct it")


@dataclasses.dataclass(frozen=True)
class MaskMetrics:
    """Metrics of a training on masks.

    Attributes:
        losses: the loss of every step, Float ``[steps]``.
        images: the number of images, repetitions included.
        embedded: the number of images that a frozen encoder embedded, repetitions and those read from a folder included; of the
            last process alone where a training was continued.
        embed_seconds: the part of ``seconds`` before the first step, in which embeddings are computed that are kept.
        seconds: wall time, including compilation, of all processes that have taken part.
    """

    losses: np.ndarray
    images: int
    embedded: int
    embed_seconds: float
    seconds: float


class _Batch(NamedTuple):
    """A step's images: normalised pixels, or embeddings where the encoder is frozen, with boxes and targets."""

    images: Float[AnyArray, "batch height width channel"]
    boxes: Float[AnyArray, "batch 1 4"]
    masks: Float[AnyArray, "batch rows columns"]
    valid: Float[AnyArray, "batch rows columns"]


_Trained = Mapping[str, LowRank | Array]
"""What a training changes, by path: a leaf, or a low-rank update of it."""


def _iou(logits: Array, batch: _Batch) -> Float[Array, " batch"]:
    """The intersection over union of the predicted masks with the targets."""
    predicted, masks = (logits > 0).astype(jnp.float32) * batch.valid, batch.masks * batch.valid
    both = jnp.sum(predicted * masks, (1, 2))
    return both / jnp.maximum(jnp.sum(predicted + masks, (1, 2)) - both, 1.0)


def _merged(base: Params, trained: _Trained) -> Params:
    """The weights with what is trained in place of, or added to, those of the base."""

    def leaf(path: Any, weights: Array) -> Array:
        change = trained.get(leaf_path(path))
        if change is None:
            return weights
        return weights + dense_update(change) if isinstance(change, LowRank) else change

    return jax.tree_util.tree_map_with_path(leaf, base)


def _loss(trained: _Trained, base: Params, batch: _Batch, config: sam.SamConfig, iou_weight: float) -> Float[Array, ""]:
    params = _merged(base, trained)
    images = jnp.asarray(batch.images)
    embeddings = sam.encode_images(params, config, images) if "vision" in params else images
    masks, quality = sam.predict_masks(params, config, embeddings, sam.Prompts(boxes=batch.boxes))
    logits = masks[:, 0, 0]
    value = structure_loss(logits, jnp.asarray(batch.masks), jnp.asarray(batch.valid))
    if iou_weight:
        value += iou_weight * jnp.mean(jnp.square(quality[:, 0, 0] - _iou(logits, batch)))
    return value


def _decayed(trained: Any) -> Any:
    """Matrices decay; norms, biases and vectors do not."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: is_matrix(leaf_path(path), leaf), trained)


@functools.partial(jax.jit, static_argnames=("config", "optimizer_options", "iou_weight"), donate_argnames=("trained", "state"))
def _step(
    trained: _Trained,
    state: Any,
    base: Params,
    batch: _Batch,
    rate: Float[Array, ""],
    config: sam.SamConfig,
    optimizer_options: tuple[tuple[float, float], float, float],
    iou_weight: float,
) -> tuple[_Trained, Any, Float[Array, ""]]:
    value, gradients = jax.value_and_grad(_loss)(trained, base, batch, config, iou_weight)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies Python floats by integer counters
        updates, state = optimizer(*optimizer_options, _decayed).update(gradients, state, trained)
    moved = jax.tree.map(lambda p, u: p + rate * u, trained, updates)
    return {path: _unless_unused(path, trained[path], leaf) for path, leaf in moved.items()}, state, value


def _unless_unused(path: str, old: Any, new: Any) -> Any:
    """The new values of what the loss uses, and the old ones of the rest, which weight decay alone would change."""
    for pattern, used in _USED:
        if pattern.fullmatch(path):
            return old.at[used].set(new[used])
    return new


def finetune_masks(
    params: Params,
    config: sam.SamConfig,
    items: Sequence[SegmentationItem],
    options: TrainOptions,
    masks: MaskOptions = MaskOptions(),
    seed: int = 0,
    progress: Progress = no_progress,
    stage: str = "finetune",
    key: str = "learning_rate",
    cache_bytes: int = 4 << 30,
    checkpoints: TrainingCheckpoints | None = None,
    folder: EmbeddingFolder | None = None,
) -> tuple[Params, MaskMetrics]:
    """Trains all weights, or those of the mask decoder, on images with masks; a box is the prompt.

    The same arguments give the same bits on the same machine. Weights and moments are float32 for models of any dtype, and the
    weights are cast once at the end.

    Args:
        params: the initial weights; they are not changed.
        config: the model.
        items: images with masks; every pass over them has a new random order.
        options: the optimizer's options; ``batch_size`` is a number of images. ``group_by_length`` has no effect.
        masks: what is trained, and how images and boxes vary.
        seed: the seed of order, flips and boxes.
        progress: called with the loss and the learning rate every ``steps_per_dispatch`` steps.
        stage: the name of this training in progress and errors.
        key: the name of the learning rate in errors.
        cache_bytes: host memory for the embeddings of a frozen encoder; those of further images are computed in every step
            that draws them.
        checkpoints: where the state of the training is kept while it runs, and from which it continues; None keeps nothing.
        folder: where the embeddings by a frozen encoder are kept for other trainings and for evaluations; None keeps none.

    Returns:
        The new weights and the metrics. Leaves that are not trained are those of ``params``, not copies.

    Raises:
        InputError: items are invalid, or the loss is not finite (for example with too high a learning rate).
    """

    def chosen(path: str) -> bool:
        if _FROZEN.fullmatch(path) or (path.startswith("decoder/iou/") and not masks.iou_weight):
            return False
        return masks.trained == "all" or path.startswith("decoder/")

    start = {path: jnp.array(leaf, jnp.float32, copy=True) for path, leaf in tree_paths(params) if chosen(path)}
    trained, metrics = _train(
        start, params, config, items, options, masks, seed, progress, stage, key, cache_bytes, checkpoints, folder
    )

    def leaf(path: Any, weights: AnyArray) -> AnyArray:
        change = trained.get(leaf_path(path))
        return weights if change is None else jnp.asarray(change).astype(weights.dtype)

    return jax.tree_util.tree_map_with_path(leaf, params), metrics


def finetune_mask_adapter(
    params: Params,
    config: sam.SamConfig,
    items: Sequence[SegmentationItem],
    options: TrainOptions,
    masks: MaskOptions = MaskOptions(trained="all"),
    rank: int = 4,
    seed: int = 0,
    progress: Progress = no_progress,
    stage: str = "finetune",
    key: str = "learning_rate",
    cache_bytes: int = 4 << 30,
    checkpoints: TrainingCheckpoints | None = None,
    folder: EmbeddingFolder | None = None,
) -> tuple[Adapter, MaskMetrics]:
    """Trains low-rank updates (LoRA, with a scale of 1) of all projections of attention; see :func:`finetune_masks`.

    Args:
        params: the weights of the base.
        config: the model.
        items: see :func:`finetune_masks`.
        options: see :func:`finetune_masks`.
        masks: ``trained`` says whether updates are for image encoder and mask decoder, or for the decoder alone.
        rank: the rank of every update.
        seed: the seed of order, flips, boxes and first values.
        progress: see :func:`finetune_masks`.
        stage: see :func:`finetune_masks`.
        key: see :func:`finetune_masks`.
        cache_bytes: see :func:`finetune_masks`.
        checkpoints: see :func:`finetune_masks`.
        folder: see :func:`finetune_masks`.

    Returns:
        The adapter, in float32, and the metrics.

    Raises:
        InputError: see :func:`finetune_masks`; also for a rank below one.
    """
    if rank < 1:
        raise InputError(f"expected rank to be a positive integer, got {rank} in {stage}; correct it")
    start: dict[str, LowRank] = {}
    for path, leaf in tree_paths(params):
        if _LORA.fullmatch(path) and (masks.trained == "all" or path.startswith("decoder/")):
            *stack, rows, columns = leaf.shape
            noise = np.random.default_rng((seed, zlib.crc32(path.encode()))).normal(size=(*stack, rows, rank))
            start[path] = LowRank(jnp.asarray(noise / np.sqrt(rows), jnp.float32), jnp.zeros((*stack, rank, columns)))
    trained, metrics = _train(
        start, params, config, items, options, masks, seed, progress, stage, key, cache_bytes, checkpoints, folder
    )
    return Adapter(dict(trained)), metrics


def _train(
    trained: _Trained,
    params: Params,
    config: sam.SamConfig,
    items: Sequence[SegmentationItem],
    options: TrainOptions,
    masks: MaskOptions,
    seed: int,
    progress: Progress,
    stage: str,
    key: str,
    cache_bytes: int,
    checkpoints: TrainingCheckpoints | None,
    folder: EmbeddingFolder | None,
) -> tuple[_Trained, MaskMetrics]:
    """Runs all steps; the first argument is used up."""
    start = time.monotonic()
    extents = check_items(items)
    config = config.replace(dtype="float32")
    base = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    draws = draw_items(extents, options.steps, options.batch_size, masks.flips, masks.jitter_fraction, seed)
    frozen: FrozenEncoder | None = None
    if not any(path.startswith("vision/") for path in trained):
        frozen = FrozenEncoder(base.pop("vision"), config, options.batch_size, cache_bytes, folder)
        frozen.keep(items, draws)
    embed_seconds = time.monotonic() - start
    optimizer_options = (options.betas, options.weight_decay, options.clip)
    loop = Loop(trained, optimizer(*optimizer_options, _decayed).init(trained), options.steps, checkpoints, start)
    rates = learning_rates(options)
    with loop.interruptible():
        for step, drawn in enumerate(draws[loop.restored_steps :], loop.restored_steps):
            batch = _batch(drawn, items, frozen, config)
            update = _step(
                loop.weights,
                loop.moments,
                base,
                batch,
                jnp.asarray(rates[step]),
                config=config,
                optimizer_options=optimizer_options,
                iou_weight=masks.iou_weight,
            )
            loop.step(update)
            done = step + 1
            if done % options.steps_per_dispatch == 0 or done == options.steps:
                loop.sync()
                loop.check_finite(stage, key, options.learning_rate)
                progress(stage, done, options.steps, {"loss": loop.losses[-1], "learning_rate": float(rates[step])})
                loop.offer()
    return loop.weights, MaskMetrics(
        losses=np.asarray(loop.losses, np.float32),
        images=options.steps * options.batch_size,
        embedded=0 if frozen is None else frozen.embedded,
        embed_seconds=embed_seconds,
        seconds=loop.seconds,
    )


def _batch(
    drawn: Sequence[Draw], items: Sequence[SegmentationItem], frozen: FrozenEncoder | None, config: sam.SamConfig
) -> _Batch:
    """The arrays of one step; each drawn item is read once."""
    read = [items[draw.item] for draw in drawn]
    targets = [target(flipped(item.mask, draw.flip), config) for draw, item in zip(drawn, read, strict=True)]
    images = [flipped(item.image, draw.flip) for draw, item in zip(drawn, read, strict=True)]
    boxes = [model_box(draw.box, item.mask.shape, config) for draw, item in zip(drawn, read, strict=True)]
    return _Batch(
        _pixels(images, config) if frozen is None else frozen(drawn, images),
        np.stack(boxes),
        np.stack([one.mask for one in targets]),
        np.stack([one.valid for one in targets]),
    )


def _pixels(images: Sequence[np.ndarray], config: sam.SamConfig) -> np.ndarray:
    return np.stack([preprocess(image, config.vision.image_size).pixels for image in images])
