"""Segmentation tasks: folders of images with masks, prompts by box, and the metrics of their fields."""

from cycleqd_jax.tasks.segmentation.images import read_image, read_mask
from cycleqd_jax.tasks.segmentation.metrics import METRICS, dice, e_measure, iou, s_measure, weighted_f
from cycleqd_jax.tasks.segmentation.pictures import overlay
from cycleqd_jax.tasks.segmentation.prompts import image_box, item_generator, mask_box, widened_box
from cycleqd_jax.tasks.segmentation.task import SegmentationFolder

__all__ = [
    "METRICS",
    "SegmentationFolder",
    "dice",
    "e_measure",
    "image_box",
    "iou",
    "item_generator",
    "mask_box",
    "overlay",
    "read_image",
    "read_mask",
    "s_measure",
    "weighted_f",
    "widened_box",
]
