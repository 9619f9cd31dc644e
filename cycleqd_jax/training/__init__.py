"""Fine-tuning of the base, the experts and models of all data, and merging coefficients by gradient descent.

Language models learn from conversations, Segment Anything from images with masks.
"""

from cycleqd_jax.training.batches import Example, check_examples, mixture
from cycleqd_jax.training.coefficients import fit_coefficients
from cycleqd_jax.training.interrupted import TrainingCheckpoints
from cycleqd_jax.training.losses import structure_loss
from cycleqd_jax.training.segmentation import MaskMetrics, MaskOptions, finetune_mask_adapter, finetune_masks
from cycleqd_jax.training.supervised import TrainMetrics, TrainOptions, finetune

__all__ = [
    "Example",
    "MaskMetrics",
    "MaskOptions",
    "TrainMetrics",
    "TrainOptions",
    "TrainingCheckpoints",
    "check_examples",
    "finetune",
    "finetune_mask_adapter",
    "finetune_masks",
    "fit_coefficients",
    "mixture",
    "structure_loss",
]
