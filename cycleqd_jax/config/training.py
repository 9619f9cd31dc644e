"""The keys of everything that is trained: whole models, and merging coefficients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from cycleqd_jax.config.fields import field

__all__ = ["GradientConfig", "MaskConfig", "PrepareConfig", "TrainConfig"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training with AdamW and a cosine schedule.

    Attributes:
        steps: number of optimizer steps.
        batch_size: number of examples per step (paper: 64).
        learning_rate: peak learning rate (paper: 2e-5).
        final_ratio: last learning rate as a share of the peak (paper: 4e-6 / 2e-5 = 0.2).
        warmup: share of the steps over which the learning rate rises (paper: 0.1).
        weight_decay: decoupled weight decay.
        clip: largest global norm of a gradient.
        group_by_length: whether a batch takes conversations of similar length, which saves work on padding.
    """

    steps: int = field(300, minimum=1)
    batch_size: int = field(64, minimum=1)
    learning_rate: float = field(1e-3, above=0)
    final_ratio: float = field(0.2, minimum=0, maximum=1)
    warmup: float = field(0.1, minimum=0, below=1)
    weight_decay: float = field(0.01, minimum=0)
    clip: float = field(1.0, above=0)
    group_by_length: bool = False


@dataclasses.dataclass(frozen=True)
class PrepareConfig(TrainConfig):
    """Joint fine-tuning of the base before the experts branch off.

    Attributes:
        shares: share of each task in the training conversations, by task name; only ratios matter. A task that is left out has
            none. Null gives all tasks the same share.
    """

    shares: dict[str, float] | None = field(None, minimum=0)

    def share_of(self, tasks: Sequence[str]) -> dict[str, float]:
        """The share of every task that has one; they sum to 1.

        Args:
            tasks: names of all tasks; the result has their order.
        """
        given = dict.fromkeys(tasks, 1.0) if self.shares is None else {task: self.shares.get(task, 0.0) for task in tasks}
        exact = {task: Fraction(str(share)) for task, share in given.items()}  # equal ratios give equal floats
        total = sum(exact.values())
        return {task: float(share / total) for task, share in exact.items() if share > 0}


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """Fine-tuning and evaluation of models that segment images.

    Attributes:
        trained: weights that fine-tuning changes: ``decoder`` (those of the mask decoder; the image encoder runs once for each
            image) or ``all``.
        rank: rank of low-rank updates (LoRA) of the projections of attention, which are trained instead of the weights and
            then multiplied out. Null trains the weights.
        flips: flips of training images: ``none``, ``horizontal`` or ``both`` ways.
        jitter_fraction: every edge of a box moves by up to this fraction of the box's width or height in training.
        iou_weight: weight of the squared error of the predicted intersection over union in the loss.
        batch_size: number of images segmented together in evaluations.
        cache_gib: disk space for embeddings by frozen image encoders, in GiB. Training and evaluation read them from the cache
            of the run. 0 neither reads nor keeps any.
    """

    trained: Literal["decoder", "all"] = "decoder"
    rank: int | None = field(None, minimum=1)
    flips: Literal["none", "horizontal", "both"] = "horizontal"
    jitter_fraction: float = field(0.0, minimum=0, below=0.5)
    iou_weight: float = field(0.0, minimum=0)
    batch_size: int = field(4, minimum=1)
    cache_gib: float = field(8.0, minimum=0, maximum=1_000_000)


@dataclasses.dataclass(frozen=True)
class GradientConfig:
    """Merging coefficients by gradient descent with Adam, from the uniform merge on.

    Attributes:
        steps: number of optimizer steps.
        batch_size: number of conversations per step. All tasks have the same share of them.
        learning_rate: learning rate. In the first steps every coefficient changes by about this much per step.
        groups: number of groups of neighbouring layers with coefficients of their own.
    """

    steps: int = field(100, minimum=1)
    batch_size: int = field(32, minimum=1)
    learning_rate: float = field(0.02, above=0)
    groups: int = field(1, minimum=1)
