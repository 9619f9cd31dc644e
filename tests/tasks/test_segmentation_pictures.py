"""Masks and boxes over images."""

from __future__ import annotations

import numpy as np

from cycleqd_jax.tasks.segmentation import image_box, overlay

from .segmentation_data import HEIGHT, WIDTH, disc, pixels


def test_a_picture_without_mask_and_box_is_the_image():
    np.testing.assert_array_equal(np.asarray(overlay(pixels(0))), pixels(0))


def test_the_mask_is_tinted_and_the_rest_is_kept():
    image = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    picture = np.asarray(overlay(image, disc(), color=(200, 0, 100)))
    assert (picture[~disc()] == 100).all()
    assert (picture[disc()] == [145, 55, 100]).all()
    assert (image == 100).all()


def test_the_box_is_a_frame():
    picture = np.asarray(overlay(np.zeros((HEIGHT, WIDTH, 3), np.uint8), box=np.array([3, 2, 10, 6], np.float32)))
    drawn = picture.any(axis=-1)
    assert drawn[2, 3:11].all()
    assert drawn[2:7, 10].all()
    assert drawn.sum() == 2 * 8 + 2 * 3
    whole = np.asarray(overlay(np.zeros((HEIGHT, WIDTH, 3), np.uint8), box=image_box(HEIGHT, WIDTH))).any(axis=-1)
    assert whole.sum() == 2 * WIDTH + 2 * (HEIGHT - 2)


def test_large_images_are_scaled_down():
    image = np.zeros((300, 900, 3), np.uint8)
    assert overlay(image, longest_side=90).size == (90, 30)
    assert overlay(image[:1], longest_side=90).size == (90, 1)
    assert overlay(image, box=np.array([0, 0, 900, 300], np.float32), longest_side=90).getpixel((89, 29)) == (255, 200, 0)
