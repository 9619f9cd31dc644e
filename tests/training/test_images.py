"""Training images: order, flips, boxes and targets."""

import numpy as np
import pytest

from cycleqd_jax.models import sam
from cycleqd_jax.tasks.segmentation import image_box, mask_box
from cycleqd_jax.training.images import check_items, draw_items, flipped, model_box, target
from cycleqd_jax.types import InputError

from ..shapes import CONFIGS, ellipses

CONFIG = CONFIGS["tiny_vit"]


def test_every_item_is_drawn_once_in_each_pass():
    items = ellipses(5)
    draws = [draw for step in draw_items(check_items(items), 5, 3, "both", 0.0, seed=1) for draw in step]
    assert len(draws) == 15
    for start in (0, 5, 10):
        assert sorted(draw.item for draw in draws[start : start + 5]) == list(range(5))
    assert {draw.flip for draw in draws} == {0, 1, 2, 3}
    assert draws == [draw for step in draw_items(check_items(items), 5, 3, "both", 0.0, seed=1) for draw in step]
    assert draws != [draw for step in draw_items(check_items(items), 5, 3, "both", 0.0, seed=2) for draw in step]
    assert {draw.flip for step in draw_items(check_items(items), 20, 3, "none", 0.0, 0) for draw in step} == {0}


def test_flipped_boxes_fit_flipped_masks():
    items = ellipses(4)
    for step in draw_items(check_items(items), 30, 2, "both", 0.0, seed=0):
        for draw in step:
            rows, columns = np.nonzero(flipped(items[draw.item].mask, draw.flip))
            assert draw.box == (columns.min(), rows.min(), columns.max(), rows.max())


def test_boxes_move_by_a_part_of_their_size():
    items = ellipses(4)
    draws = [draw for step in draw_items(check_items(items), 100, 2, "none", 0.2, seed=0) for draw in step]
    moves = []
    for draw in draws:
        left, top, right, bottom = items[draw.item].box
        moves.append((np.array(draw.box) - items[draw.item].box) / np.array([right - left, bottom - top] * 2))
        assert 0 <= draw.box[0] < draw.box[2] <= 31
        assert 0 <= draw.box[1] < draw.box[3] <= 23
    assert 0.15 < np.abs(moves).max() <= 0.2 + 1e-6
    assert np.abs(np.mean(moves)) < 0.02


@pytest.mark.parametrize("jitter_fraction", [0.0, 0.2])
def test_boxes_at_the_edges_are_flipped_in_the_image(jitter_fraction):
    """Coordinates are those of the pixels' centres, so the last ones are width − 1 and height − 1."""
    (item,) = ellipses(1)
    object.__setattr__(item, "mask", np.ones((24, 32), bool))
    object.__setattr__(item, "box", image_box(24, 32))
    draws = [draw for step in draw_items(check_items([item]), 20, 2, "both", jitter_fraction, seed=0) for draw in step]
    assert all(0 <= draw.box[0] < draw.box[2] <= 31 and 0 <= draw.box[1] < draw.box[3] <= 23 for draw in draws)
    if not jitter_fraction:
        assert {draw.box for draw in draws} == {(0, 0, 31, 23)}


def test_an_object_of_one_column_is_accepted():
    (item,) = ellipses(1)
    mask = np.zeros((24, 32), bool)
    mask[3:20, 7] = True
    object.__setattr__(item, "mask", mask)
    object.__setattr__(item, "box", mask_box(mask))
    for ((draw,),) in (draw_items(check_items([item]), 1, 1, "horizontal", 0.1, seed) for seed in range(4)):
        assert draw.box[0] == draw.box[2] == (24 if draw.flip else 7)


@pytest.mark.parametrize("size", [(1500, 2000), (1499, 2000)])
def test_no_object_is_too_small_for_a_target(size):
    """A pixel anywhere, in the middle or in the last row and column, is a part of some place that counts."""
    for place in ((700, 900), (size[0] - 1, size[1] - 1)):
        mask = np.zeros(size, bool)
        mask[place] = True
        got = target(mask, sam.SamConfig())
        assert 0 < (got.mask * got.valid).max() < 0.1
    lines = np.zeros(size, bool)
    lines[:, 1000] = True
    got = target(lines, sam.SamConfig())
    assert ((got.mask * got.valid).sum(axis=1) > 0).sum() == got.valid[:, 0].sum()
    whole = target(np.ones(size, bool), sam.SamConfig())
    np.testing.assert_allclose(whole.mask, whole.valid, atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 32), (32, 24), (64, 64)])
def test_targets_are_those_of_the_resized_image(shape):
    (item,) = ellipses(1, shape=shape)
    got = target(item.mask, CONFIG)
    side = 16
    assert got.mask.shape == got.valid.shape == (side, side)
    height, width = (side * n // max(shape) for n in shape)
    assert got.valid.sum() == height * width
    assert got.valid[:height, :width].all()
    assert got.mask.sum() / got.valid.sum() == pytest.approx(item.mask.mean(), rel=0.2)
    mirrored = target(flipped(item.mask, 1), CONFIG)
    np.testing.assert_array_equal(mirrored.mask[:height, :width], got.mask[:height, width - 1 :: -1])
    np.testing.assert_allclose(model_box(item.box.tolist(), shape, CONFIG)[0], item.box * (32 / max(shape)), rtol=1e-6)


def test_a_target_of_a_model_of_1024_pixels():
    mask = np.zeros((256, 256), bool)
    mask[100:150, 20:90] = True
    got = target(mask, sam.SamConfig())
    np.testing.assert_array_equal(got.mask, mask)
    assert got.valid.all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mask", np.ones((20, 32), bool), "a mask of 32 × 24 pixels, the size of the image, got 32 × 20 in training image"),
        ("mask", np.zeros((24, 32), bool), "a mask of an object, got no pixel of one in training image 'image 0'"),
        ("box", np.array([6, 1, 5, 9], np.float32), r"got \[6.0, 1.0, 5.0, 9.0\] in training image 'image 0'"),
        ("box", np.array([np.nan, 1, 5, 9], np.float32), r"got \[nan, "),
    ],
)
def test_items_that_teach_nothing_are_refused(field, value, message):
    (item,) = ellipses(1)
    object.__setattr__(item, field, value)
    with pytest.raises(InputError, match=message):
        check_items([item])


def test_there_must_be_an_item():
    with pytest.raises(InputError, match="at least one training image, got none"):
        check_items([])
