"""Fine-tuning of the base, the experts and models of all data, and merging coefficients by gradient descent."""

from cycleqd_jax.training.batches import Example, check_examples, mixture
from cycleqd_jax.training.coefficients import fit_coefficients
from cycleqd_jax.training.supervised import TrainMetrics, TrainOptions, finetune

__all__ = ["Example", "TrainMetrics", "TrainOptions", "check_examples", "finetune", "fit_coefficients", "mixture"]
