"""What CycleQD is measured against, and what makes its experts."""

from cycleqd_jax.training.finetune import TrainMetrics, TrainOptions, finetune

__all__ = ["TrainMetrics", "TrainOptions", "finetune"]
