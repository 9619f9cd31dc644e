"""The metrics against pysodmetrics and against values that follow from the definitions."""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cycleqd_jax.tasks.segmentation import METRICS, dice, e_measure, iou, s_measure, weighted_f
from cycleqd_jax.tasks.segmentation.images import read_mask

from .segmentation_data import vision_folder

TOLERANCE = 1e-12
# Of blobs(0), blobs(1) and blobs(2), computed with pysodmetrics 1.6.2 (its E-measure times (N − 1) / N).
PUBLISHED = {
    "s_measure": (0.582619627413, 0.562549238987, 0.615687276241),
    "e_measure": (0.807407468095, 0.880426603219, 0.844446708971),
    "weighted_f": (0.517094501163, 0.381220042681, 0.558533780853),
}


def blobs(seed: int, height: int = 40, width: int = 56) -> tuple[np.ndarray, np.ndarray]:
    """A mask and the truth: ellipses that overlap in part."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    found = []
    centre = generator.uniform(0.3, 0.7, 2) * (height, width)
    for _ in range(2):
        y, x = centre + generator.uniform(-5, 5, 2)
        found.append(((rows - y) / generator.uniform(6, 14)) ** 2 + ((columns - x) / generator.uniform(6, 14)) ** 2 < 1)
    return found[0], found[1]


@pytest.fixture(scope="module")
def published():
    """The published module. It imports OpenCV and scikit-image for a metric that is not used here."""
    spec = importlib.util.find_spec("py_sod_metrics")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package pysodmetrics is not installed")
    folder = Path(spec.submodule_search_locations[0])
    with pytest.MonkeyPatch.context() as patch:
        package = types.ModuleType("py_sod_metrics")
        package.__path__ = [str(folder)]
        stubs = {"py_sod_metrics": package, "cv2": types.ModuleType("cv2"), "skimage": types.ModuleType("skimage")}
        for name, module in stubs.items():
            patch.setitem(sys.modules, name, module)
        stubs["skimage"].measure = stubs["skimage"].morphology = None
        patch.delitem(sys.modules, "py_sod_metrics.sod_metrics", raising=False)
        yield importlib.import_module("py_sod_metrics.sod_metrics")
        sys.modules.pop("py_sod_metrics.sod_metrics", None)
        sys.modules.pop("py_sod_metrics.utils", None)


def published_values(module, mask: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The published metrics of a pair of masks; its E-measure of the binary map as a mean over all pixels."""
    meters = {"s_measure": module.Smeasure(), "e_measure": module.Emeasure(), "weighted_f": module.WeightedFmeasure()}
    prediction, target = (values.astype(np.uint8) * 255 for values in (mask, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of rectangles without pixels
        for meter in meters.values():
            meter.step(prediction, target)
    binary = meters["e_measure"].cal_em_with_threshold(mask.astype(np.float64), truth, threshold=0.5)
    return {
        "s_measure": float(meters["s_measure"].get_results()["sm"]),
        "e_measure": float(binary) * (mask.size - 1) / mask.size,
        "weighted_f": float(meters["weighted_f"].get_results()["wfm"]),
    }


def divides_by_zero(truth: np.ndarray) -> bool:
    """Whether the published S-measure has no value: a rectangle around the centroid, or a deviation, is that of no pixels."""
    row, column = (int(centre) + 1 for centre in np.argwhere(truth).mean(axis=0).round())
    return row == truth.shape[0] or column == truth.shape[1] or 1 in (truth.sum(), (~truth).sum())


def assert_published(module, mask: np.ndarray, truth: np.ndarray) -> None:
    expected = published_values(module, mask, truth)
    got = {name: METRICS[name](mask, truth) for name in expected}
    for name, value in expected.items():
        if name == "s_measure" and np.isnan(value):
            assert divides_by_zero(truth)
        else:
            assert got[name] == pytest.approx(value, abs=TOLERANCE), (name, got[name], value)


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_the_published_code(published, seed):
    mask, truth = blobs(seed)
    assert_published(published, mask, truth)
    assert_published(published, ~mask, truth)
    assert_published(published, mask, ~truth)
    assert_published(published, np.zeros_like(mask), truth)
    assert_published(published, mask, np.zeros_like(truth))
    assert_published(published, mask, np.ones_like(truth))


@pytest.mark.exhaustive
@settings(max_examples=300, deadline=None)
@given(data=st.data(), shape=st.tuples(st.integers(2, 9), st.integers(2, 9)))
def test_equal_to_the_published_code_for_any_masks(published, data, shape):
    mask, truth = (data.draw(arrays.arrays(bool, shape)) for _ in range(2))
    assert_published(published, mask, truth)


def test_the_adaptive_e_measure_is_that_of_the_binary_map(published):
    mask, truth = blobs(3)
    meter = published.Emeasure()
    meter.step(mask.astype(np.uint8) * 255, truth.astype(np.uint8) * 255)
    result = meter.get_results()["em"]
    scale = (mask.size - 1) / mask.size
    assert e_measure(mask, truth) == pytest.approx(result["adp"] * scale, abs=TOLERANCE)
    assert e_measure(mask, truth) == pytest.approx(result["curve"][100] * scale, abs=TOLERANCE)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_values_that_the_published_code_gave(seed):
    for name, values in PUBLISHED.items():
        assert METRICS[name](*blobs(seed)) == pytest.approx(values[seed], abs=1e-9), name


@pytest.mark.exhaustive
@pytest.mark.parametrize("field", ["polyp", "skin", "leaf", "camouflage"])
def test_equal_to_the_published_code_on_real_masks(published, field):
    """Every true mask with itself moved and with that of the next image where the sizes agree."""
    truths = [read_mask(path) for path in sorted((vision_folder(field) / "masks").iterdir())[:12]]
    for truth, other in zip(truths, truths[1:] + truths[:1], strict=True):
        assert_published(published, np.roll(truth, (7, -11), (0, 1)), truth)
        if other.shape == truth.shape:
            assert_published(published, other, truth)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_bounds(name, seed):
    mask, truth = blobs(seed)
    metric = METRICS[name]
    assert metric(truth, truth) == pytest.approx(1.0, abs=1e-9)
    assert 0 <= metric(~truth, truth) <= metric(mask, truth) < 1
    assert type(metric(mask, truth)) is float


@settings(max_examples=30, deadline=None)
@given(data=st.data(), shape=st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_all_metrics_of_any_masks_are_from_0_to_1(data, shape):
    mask, truth = (data.draw(arrays.arrays(bool, shape)) for _ in range(2))
    for name, metric in METRICS.items():
        assert 0 <= metric(mask, truth) <= 1, name
        flipped = metric(mask[:, ::-1].copy(), truth[:, ::-1].copy())
        if name in ("iou", "dice", "e_measure"):  # the others round a centroid, or choose among nearest pixels
            assert flipped == pytest.approx(metric(mask, truth), abs=1e-9), name


def test_overlap_by_hand():
    mask, truth = np.zeros((2, 5), bool), np.zeros((2, 5), bool)
    mask[0, :4], truth[0, 1:] = True, True
    assert iou(mask, truth) == 3 / 5
    assert dice(mask, truth) == 6 / 8
    assert dice(mask, truth) == pytest.approx(2 * iou(mask, truth) / (1 + iou(mask, truth)))


def test_empty_masks():
    empty, full = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert [metric(empty, empty) for metric in (iou, dice, s_measure, e_measure, weighted_f)] == [1, 1, 1, 1, 0]
    assert [metric(full, empty) for metric in (iou, dice, s_measure, e_measure, weighted_f)] == [0, 0, 0, 0, 0]
    assert [metric(full, full) for metric in (iou, dice, s_measure, e_measure, weighted_f)] == pytest.approx([1] * 5)


def test_an_object_in_the_last_column_has_an_s_measure():
    """The published code divides by zero pixels here."""
    truth = np.zeros((6, 6), bool)
    truth[2:4, 5] = True
    assert s_measure(truth, truth) == pytest.approx(1.0)
    assert s_measure(~truth, truth) < 0.5


def test_errors_far_from_the_object_weigh_more():
    truth = np.zeros((40, 40), bool)
    truth[15:25, 5:15] = True
    near, far = truth.copy(), truth.copy()
    near[15:25, 15:18], far[15:25, 36:39] = True, True
    assert iou(near, truth) == iou(far, truth)
    assert weighted_f(far, truth) < weighted_f(near, truth) < 1
