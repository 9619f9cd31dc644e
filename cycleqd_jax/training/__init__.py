"""Fine-tuning of the base, the experts and models of all data."""

from cycleqd_jax.training.batches import Example, mixture
from cycleqd_jax.training.supervised import TrainMetrics, TrainOptions, finetune

__all__ = ["Example", "TrainMetrics", "TrainOptions", "finetune", "mixture"]
