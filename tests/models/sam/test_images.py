"""Preprocessing and the upsampling of masks against transformers' SamImageProcessor and PyTorch."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cycleqd_jax.models.sam import images
from cycleqd_jax.types import InputError

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def processor():
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    return SamImageProcessorPil()


@pytest.mark.parametrize("size", [(40, 63), (300, 200), (1024, 1024), (1500, 70)])
def test_preprocessing_equals_transformers(processor, size, rng):
    pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    want = processor(Image.fromarray(pixels), return_tensors="np")
    got = images.preprocess(pixels)
    np.testing.assert_allclose(got.pixels.transpose(2, 0, 1), want["pixel_values"][0], atol=1e-4)
    assert got.original == tuple(want["original_sizes"][0])
    assert got.resized == tuple(want["reshaped_input_sizes"][0])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_images_in_any_mode_become_rgb(mode, rng):
    image = Image.fromarray(rng.integers(0, 256, (8, 12, 3)).astype(np.uint8)).convert(mode)
    got = images.preprocess(image, 32)
    np.testing.assert_array_equal(got.pixels, images.preprocess(image.convert("RGB"), 32).pixels)
    assert not got.pixels[got.resized[0] :].any()


def test_the_written_config_is_what_transformers_understands(processor, tmp_path):
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images.PROCESSOR))
    read = SamImageProcessorPil.from_pretrained(tmp_path)
    for name in ("size", "pad_size", "image_mean", "image_std", "rescale_factor", "resample", "do_resize", "do_pad"):
        assert getattr(read, name) == getattr(processor, name), name


@pytest.mark.parametrize("size", [(40, 63), (300, 200), (256, 256), (1500, 700)])
def test_masks_equal_those_of_transformers(processor, size, rng):
    logits = rng.normal(size=(1, 2, 3, 256, 256)).astype(np.float32)
    resized = images.resized_size(size)
    full = torch.nn.functional.interpolate(torch.tensor(logits[0]), (1024, 1024), mode="bilinear", align_corners=False)
    full = full[..., : resized[0], : resized[1]]
    want = torch.nn.functional.interpolate(full, size, mode="bilinear", align_corners=False).numpy()
    got = np.asarray(images.mask_logits(logits[0], size))
    np.testing.assert_allclose(got, want, atol=1e-4)
    theirs = processor.post_process_masks(torch.tensor(logits), [size], [resized])[0].numpy()
    ours = images.masks_of([logits[0]], [size])[0]
    assert (ours != theirs)[np.abs(want) > 1e-4].sum() == 0


def test_new_sizes_compile_nothing(rng, compilations):
    logits = rng.normal(size=(3, 16, 16)).astype(np.float32)
    for size in ((37, 41), (53, 29)):
        assert compilations(lambda size=size: images.masks_of([logits, logits[0]], [size, size], 32)) == 0
        rows, columns = (
            images._upsampling(16, kept, end, 32) for kept, end in zip(images.resized_size(size, 32), size, strict=True)
        )
        want = np.einsum("hr,irc,wc->ihw", *(np.asarray(x, np.float64) for x in (rows, logits, columns)))
        np.testing.assert_allclose(images.mask_logits(logits, size, 32), want, atol=1e-5)


def test_coordinates_follow_the_image():
    corners = np.array([[[10, 20], [30, 40]]], np.float32)
    np.testing.assert_allclose(images.to_model(corners, (480, 640)), corners * 1.6, rtol=1e-6)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(image):
    with pytest.raises(InputError, match="expected an image of uint8 \\[height, width, 3\\], got"):
        images.preprocess(image)


def test_an_image_that_vanishes_is_refused():
    with pytest.raises(InputError, match="got 3000 × 1 pixels"):
        images.preprocess(np.zeros((1, 3000, 3), np.uint8))
