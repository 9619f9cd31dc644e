"""Metrics of binary masks: IoU, Dice, and the S-measure, E-measure and weighted F-measure of camouflaged object detection.

Each compares one predicted mask with the truth, from 0 to 1. The score of a task is the mean over its images. Fields differ in
their metric: polyps, skin lesions and leaves report mean IoU and mean Dice, camouflage the other three (SINet, CVPR 2020).

The package ``pysodmetrics`` has these metrics, but needs OpenCV, scikit-image and scikit-learn, and an older numpy. So they are
implemented here, and tested against it. The masks here are binary, so no threshold is involved. Published scores of soft maps,
such as an E-measure averaged over thresholds, are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["METRICS", "dice", "e_measure", "iou", "s_measure", "weighted_f"]

_EPS = float(np.spacing(1))


def iou(mask: Bool[np.ndarray, "height width"], truth: Bool[np.ndarray, "height width"]) -> float:
    """Intersection over union, |M ∩ T| / |M ∪ T|; 1 if both masks are empty.

    >>> import numpy as np
    >>> from cycleqd_jax.tasks.segmentation.metrics import dice, iou
    >>> mask, truth = np.array([[True, True, False]]), np.array([[False, True, True]])
    >>> round(iou(mask, truth), 3), dice(mask, truth)
    (0.333, 0.5)
    """
    union = np.count_nonzero(mask | truth)
    return float(np.count_nonzero(mask & truth) / union) if union else 1.0


def dice(mask: Bool[np.ndarray, "height width"], truth: Bool[np.ndarray, "height width"]) -> float:
    """Dice coefficient, 2 |M ∩ T| / (|M| + |T|); 1 if both masks are empty."""
    total = np.count_nonzero(mask) + np.count_nonzero(truth)
    return float(2 * np.count_nonzero(mask & truth) / total) if total else 1.0


def s_measure(mask: Bool[np.ndarray, "height width"], truth: Bool[np.ndarray, "height width"], alpha: float = 0.5) -> float:
    """Structure measure (Fan et al., ICCV 2017): α · object similarity + (1 − α) · region similarity.

    The regions are the four rectangles around the centroid of the truth. As in ``pysodmetrics``, the centroid is rounded half
    to even; rectangles without pixels count nothing here, and make its result NaN.

    Args:
        mask: the prediction.
        truth: the true mask.
        alpha: weight of the object similarity.
    """
    share = float(truth.mean())
    predicted = mask.astype(np.float64)
    if share == 0:
        return 1 - float(predicted.mean())
    if share == 1:
        return float(predicted.mean())
    objects = share * _likeness(predicted[truth]) + (1 - share) * _likeness(1 - predicted[~truth])
    row, column = (int(centre) + 1 for centre in np.argwhere(truth).mean(axis=0).round())
    regions = 0.0
    for rows in (slice(None, row), slice(row, None)):
        for columns in (slice(None, column), slice(column, None)):
            part = predicted[rows, columns]
            if part.size:
                regions += part.size / truth.size * _structure(part, truth[rows, columns].astype(np.float64))
    return min(1.0, max(0.0, alpha * objects + (1 - alpha) * regions))


def e_measure(mask: Bool[np.ndarray, "height width"], truth: Bool[np.ndarray, "height width"]) -> float:
    """Enhanced-alignment measure of a binary map (Fan et al., IJCAI 2018).

    It is the mean over all pixels of (1 + ξ)² / 4, where ξ = 2 m t / (m² + t²), and m and t are the values of the masks minus
    their means. The authors' code, and ``pysodmetrics``, divide by the number of pixels minus 1, so that a perfect mask scores
    above 1; the paper's mean is taken here. For masks with a pixel this is what they call the adaptive E-measure.
    """
    if not truth.any():
        return 1 - float(mask.mean())
    if truth.all():
        return float(mask.mean())
    total = 0.0
    for predicted in (True, False):
        for true in (True, False):
            count = np.count_nonzero((mask == predicted) & (truth == true))
            m, t = predicted - float(mask.mean()), true - float(truth.mean())
            total += count * (1 + 2 * m * t / (m * m + t * t + _EPS)) ** 2 / 4
    return float(total / truth.size)


def weighted_f(
    mask: Bool[np.ndarray, "height width"], truth: Bool[np.ndarray, "height width"], beta_squared: float = 1.0
) -> float:
    """Weighted F-measure (Margolin et al., CVPR 2014).

    Errors inside the object are smoothed with a Gaussian (σ = 5, 7 × 7 pixels). Errors outside weigh 2 − 0.5^(d/5), where d is
    the distance to the object in pixels. The result is 0 if the truth is empty.

    Args:
        mask: the prediction.
        truth: the true mask.
        beta_squared: the weight β² of recall against precision.
    """
    from scipy import ndimage

    if not truth.any():
        return 0.0
    distance, nearest = np.empty(truth.shape), np.empty((truth.ndim, *truth.shape), np.int32)
    ndimage.distance_transform_edt(~truth, return_indices=True, distances=distance, indices=nearest)
    error = (mask != truth).astype(np.float64)
    spread = np.where(truth, error, error[tuple(nearest)])
    smooth = ndimage.gaussian_filter(spread, sigma=5, radius=3, mode="constant")
    inside = np.minimum(error, smooth)[truth]
    outside = (error * (2 - 0.5 ** (distance / 5)))[~truth]
    hits = inside.size - inside.sum()
    recall = 1 - inside.mean()
    precision = hits / (hits + outside.sum() + _EPS)
    return float((1 + beta_squared) * recall * precision / (recall + beta_squared * precision + _EPS))


METRICS: dict[str, Callable[[Bool[np.ndarray, "height width"], Bool[np.ndarray, "height width"]], float]] = {
    "iou": iou,
    "dice": dice,
    "s_measure": s_measure,
    "e_measure": e_measure,
    "weighted_f": weighted_f,
}
"""The metrics by the name that the option ``score`` has: functions of a predicted mask and the true mask."""


def _likeness(values: Float[np.ndarray, " pixels"]) -> float:
    """How close the values of an object are to 1 and to each other."""
    mean = float(values.mean())
    deviation = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return 2 * mean / (mean * mean + 1 + deviation + _EPS)


def _structure(mask: Float[np.ndarray, "height width"], truth: Float[np.ndarray, "height width"]) -> float:
    """Structural similarity (SSIM) of a region."""
    x, y = float(mask.mean()), float(truth.mean())
    count = mask.size - 1 + _EPS
    variance = float(((mask - x) ** 2).sum() + ((truth - y) ** 2).sum()) / count
    above = 4 * x * y * float(((mask - x) * (truth - y)).sum()) / count
    below = (x * x + y * y) * variance
    if above != 0:
        return above / (below + _EPS)
    return 1.0 if below == 0 else 0.0
