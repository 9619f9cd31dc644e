"""The keys of racing: the evaluation of children in stages."""

from __future__ import annotations

import dataclasses

from cycleqd_jax.config.fields import field

__all__ = ["RacingConfig"]


@dataclasses.dataclass(frozen=True)
class RacingConfig:
    """The evaluation of children in stages.

    Attributes:
        first: share of each task's train problems in the first stage. Every further stage doubles the number.
        least: the fewest problems of a task in the first stage.
        confidence: a child stops if the probability that it will enter an archive is below 1 − ``confidence``. Smaller values
            stop more children.
    """

    first: float = field(0.25, above=0, maximum=1)
    least: int = field(4, minimum=1)
    confidence: float = field(0.95, above=0, below=1)
