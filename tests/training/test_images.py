"""Training images: order, flips, boxes and targets."""

import numpy as np
import pytest

from cycleqd_jax.models import sam
from cycleqd_jax.training.images import check_items, draw_items, flipped, model_box, target
from cycleqd_jax.types import InputError

from ..shapes import CONFIGS, ellipses

CONFIG = CONFIGS["tiny_vit"]


def test_every_item_is_drawn_once_in_each_pass():
    items = ellipses(5)
    draws = [draw for step in draw_items(items, 5, 3, "both", 0.0, seed=1) for draw in step]
    assert len(draws) == 15
    for start in (0, 5, 10):
        assert sorted(draw.item for draw in draws[start : start + 5]) == list(range(5))
    assert {draw.flip for draw in draws} == {0, 1, 2, 3}
    assert draws == [draw for step in draw_items(items, 5, 3, "both", 0.0, seed=1) for draw in step]
    assert draws != [draw for step in draw_items(items, 5, 3, "both", 0.0, seed=2) for draw in step]
    assert {draw.flip for step in draw_items(items, 20, 3, "none", 0.0, 0) for draw in step} == {0}


def test_flipped_boxes_fit_flipped_masks():
    items = ellipses(4)
    for step in draw_items(items, 30, 2, "both", 0.0, seed=0):
        for draw in step:
            rows, columns = np.nonzero(flipped(items[draw.item].mask, draw.flip))
            assert draw.box == (columns.min() - 1, rows.min() - 1, columns.max() + 1, rows.max() + 1)


def test_boxes_move_by_a_part_of_their_size():
    items = ellipses(4)
    draws = [draw for step in draw_items(items, 100, 2, "none", 0.2, seed=0) for draw in step]
    moves = []
    for draw in draws:
        left, top, right, bottom = items[draw.item].box
        moves.append((np.array(draw.box) - items[draw.item].box) / np.array([right - left, bottom - top] * 2))
        assert 0 <= draw.box[0] < draw.box[2] <= 32
        assert 0 <= draw.box[1] < draw.box[3] <= 24
    assert 0.15 < np.abs(moves).max() <= 0.2 + 1e-6
    assert np.abs(np.mean(moves)) < 0.02


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
        ("mask", np.ones((20, 32), bool), "expected a mask of 24 × 32 pixels with an object, got 20 × 32"),
        ("mask", np.zeros((24, 32), bool), "got 24 × 32, 0 of them object, in training image 'image 0'"),
        ("box", np.array([5, 1, 5, 9], np.float32), r"got \[5.0, 1.0, 5.0, 9.0\] in training image 'image 0'"),
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
