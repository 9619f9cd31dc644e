"""Fine-tuning: the base, the experts, and models trained on all data."""

from cycleqd_jax.training.supervised import TrainMetrics, TrainOptions, finetune

__all__ = ["TrainMetrics", "TrainOptions", "finetune"]
