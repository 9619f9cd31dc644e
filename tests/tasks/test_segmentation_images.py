"""Which image and mask files are read, converted and refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from cycleqd_jax.models.sam.images import resized_size
from cycleqd_jax.tasks.segmentation.images import is_image_file, read_image, read_mask
from cycleqd_jax.types import InputError

from .segmentation_data import disc, pixels, save_image, save_mask, vision_folder


def refused(read, path, words: str) -> None:
    """The file is refused with a message in the house form that names it."""
    with pytest.raises(InputError, match=words) as error:
        read(path)
    message = str(error.value)
    assert str(path) in message
    assert re.fullmatch(r"expected .+, got .+ (in|at) .+; .+[^.]", message), message


def readable_or_refused(read, path) -> bool:
    try:
        read(path)
    except InputError as error:
        return str(path) in str(error)
    return True


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_rgb_images_are_read_as_they_are(tmp_path, suffix):
    path = save_image(tmp_path / f"a{suffix}", pixels(0), **({"lossless": True} if suffix == ".webp" else {}))
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels(0))


def test_jpeg_images_are_decoded_as_pillow_does(tmp_path):
    path = save_image(tmp_path / "a.JPG", pixels(0), format="JPEG")
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path), np.asarray(image))


def test_grey_values_palettes_and_opaque_alpha_are_converted_without_loss(tmp_path):
    grey = pixels(0)[..., 0]
    threefold = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read_image(save_image(tmp_path / "grey.png", grey)), threefold)
    opaque = np.dstack([pixels(1), np.full(grey.shape, 255, np.uint8)])
    np.testing.assert_array_equal(read_image(save_image(tmp_path / "rgba.png", opaque)), pixels(1))
    palette = Image.fromarray(pixels(2)).quantize(16)
    path = save_image(tmp_path / "palette.png", palette)
    np.testing.assert_array_equal(read_image(path), np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(disc())
    np.testing.assert_array_equal(read_image(save_image(tmp_path / "bits.png", bits))[..., 1] == 255, disc())


def test_pictures_whose_pixels_are_not_certain_are_refused(tmp_path):
    alpha = np.full((12, 16), 255, np.uint8)
    alpha[3, 4] = 7
    refused(read_image, save_image(tmp_path / "rgba.png", np.dstack([pixels(0), alpha])), "opaque pixels, got an alpha of 7")
    refused(read_image, save_image(tmp_path / "la.png", np.dstack([alpha, alpha])), "opaque pixels, got an alpha of 7")
    key = save_image(tmp_path / "key.png", Image.fromarray(np.zeros((3, 3), np.uint8)), transparency=0)
    refused(read_image, key, "alpha of 0")
    cmyk = Image.fromarray(pixels(0)).convert("CMYK")
    refused(read_image, save_image(tmp_path / "cmyk.jpg", cmyk), "8 bits of grey, RGB or RGBA, got mode CMYK")
    deep = Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000)
    refused(read_image, save_image(tmp_path / "deep.png", deep), "got mode I;16")


def test_an_exif_orientation_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    refused(read_image, save_image(tmp_path / "turned.jpg", pixels(0), exif=exif), "EXIF orientation 6")
    exif[0x0112] = 1
    assert read_image(save_image(tmp_path / "upright.jpg", pixels(0), exif=exif)).shape == (12, 16, 3)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_does_not_exist_is_1(tmp_path, orientation):
    """So do viewers."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_image(save_image(tmp_path / "a.png", pixels(0), exif=exif)), pixels(0))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = orientation
    np.testing.assert_array_equal(read_image(save_image(tmp_path / "a.tif", pixels(0), tiffinfo=tags)), pixels(0))


@pytest.mark.parametrize("size", [(1, 2049), (2049, 1), (3, 6145)])
def test_images_whose_shorter_side_vanishes_in_the_model_are_refused(tmp_path, size):
    path = save_image(tmp_path / "a.png", np.zeros((*size, 3), np.uint8))
    assert 0 in resized_size(size)
    refused(read_image, path, f"at most 2048 times as long .*, got {size[1]} × {size[0]} pixels in")


@pytest.mark.parametrize("size", [(1, 2048), (2048, 1), (7, 14336)])
def test_images_whose_shorter_side_keeps_a_pixel_are_read(tmp_path, size):
    assert read_image(save_image(tmp_path / "a.png", np.zeros((*size, 3), np.uint8))).shape == (*size, 3)
    assert 1 in resized_size(size)


def test_a_file_with_several_frames_is_refused(tmp_path):
    frames = [Image.fromarray(pixels(n)) for n in range(2)]
    path = save_image(tmp_path / "two.tif", frames[0], save_all=True, append_images=frames[1:])
    refused(read_image, path, "one image, got 2 frames")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_truncated_files_are_refused(tmp_path, suffix, read):
    path = save_image(tmp_path / f"a{suffix}", pixels(0))
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2):
        path.write_bytes(whole[:size])
        refused(read, path, "a whole image file, got an error")


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "a.jpg"
    text.write_text("not an image")
    refused(read_image, text, "a whole image file")
    postscript = tmp_path / "b.png"  # Pillow would run Ghostscript
    postscript.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\n")
    refused(read_image, postscript, "a whole image file")
    refused(read_mask, tmp_path / "none.png", "got no file")


@pytest.mark.exhaustive
def test_damaged_files_are_read_or_refused(tmp_path):
    """Any byte of any format may be wrong: the file is read, or refused with its name."""
    generator = np.random.default_rng(0)
    for suffix in (".jpg", ".png", ".bmp", ".tif", ".gif", ".webp"):
        path = save_image(tmp_path / f"a{suffix}", pixels(0))
        whole = path.read_bytes()
        for _ in range(100):
            damaged = bytearray(whole)
            for place in generator.integers(0, len(whole), generator.integers(1, 4)):
                damaged[place] = generator.integers(0, 256)
            path.write_bytes(bytes(damaged))
            for read in (read_image, read_mask):
                assert readable_or_refused(read, path)


def test_masks_of_two_values(tmp_path):
    truth = disc()
    bits = save_image(tmp_path / "bits.png", Image.fromarray(truth))
    with Image.open(bits) as image:
        assert image.mode == "1"
    files = [bits, *(save_mask(tmp_path / f"a{suffix}", truth) for suffix in (".png", ".bmp", ".tif"))]
    threefold = np.repeat(truth[..., None].astype(np.uint8) * 255, 3, axis=-1)
    files.append(save_image(tmp_path / "rgb.png", threefold))
    files.append(save_image(tmp_path / "rgba.png", np.dstack([threefold, np.full(truth.shape, 255, np.uint8)])))
    for file in files:
        mask = read_mask(file)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, truth)


def palette_image(indices: np.ndarray, *colors: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), "L")
    image.putpalette([value for color in colors for value in color])
    return image


def test_palettes_count_by_color_if_black_and_white_else_by_index(tmp_path):
    truth = disc()
    black, white, red = (0, 0, 0), (255, 255, 255), (128, 0, 0)
    for name, image in (
        ("usual", palette_image(truth, black, white)),
        ("swapped", palette_image(~truth, white, black)),
        ("labels", palette_image(truth, black, red)),
    ):
        np.testing.assert_array_equal(read_mask(save_image(tmp_path / f"{name}.png", image)), truth)
    labels = truth.astype(np.uint8)
    labels[0, 0] = 2
    path = save_image(tmp_path / "three.png", palette_image(labels, black, red, (0, 128, 0)))
    refused(read_mask, path, "palette indices 0 and 1, got 0, 1, 2 in")


def test_masks_of_other_values_are_refused(tmp_path):
    grey = np.zeros((12, 16), np.uint8)
    grey[2] = 255
    grey[0, :8] = np.arange(1, 9)
    path = save_image(tmp_path / "grey.png", grey)
    refused(read_mask, path, "mask values 0 and 255, got 0, 1, 2, 3, 4 and 5 more in")
    assert read_mask(path, threshold=128).sum() == 16
    assert read_mask(path, threshold=5).sum() == 20
    ones = save_image(tmp_path / "ones.png", disc().astype(np.uint8))
    refused(read_mask, ones, "mask values 0 and 255, got 0, 1 in")
    np.testing.assert_array_equal(read_mask(ones, threshold=1), disc())
    color = np.zeros((12, 16, 3), np.uint8)
    color[2, 2, 0] = 255
    refused(read_mask, save_image(tmp_path / "color.png", color), "black and white, got colors")


@pytest.mark.parametrize("values", [0, 255])
def test_empty_masks_are_refused(tmp_path, values):
    path = save_image(tmp_path / "a.png", np.full((4, 5), values, np.uint8))
    if values == 0:
        refused(read_mask, path, "a mask of an object, got no pixel of one")
    else:
        assert read_mask(path).all()


def test_jpeg_masks_are_compared_with_128(tmp_path):
    truth = np.zeros((64, 64), bool)
    truth[13:45, 9:50] = True
    path = save_mask(tmp_path / "a.jpg", truth, quality=75)
    with Image.open(path) as image:
        assert len(np.unique(np.asarray(image))) > 2
    np.testing.assert_array_equal(read_mask(path), truth)
    refused(read_mask, save_image(tmp_path / "photo.jpg", pixels(0)), "black and white, got colors .* save it as a PNG")


def test_the_advice_for_masks_with_other_values_is_png_or_a_threshold(tmp_path):
    """Values such as 1 and 254 come from JPEG, even if the file is a PNG now."""
    save_mask(tmp_path / "a.jpg", disc(), quality=30)
    with Image.open(tmp_path / "a.jpg") as image:
        path = save_image(tmp_path / "a.png", np.asarray(image))
    refused(read_mask, path, "mask values 0 and 255, got .*; save it as a PNG with these values, or set option threshold.*128")
    np.testing.assert_array_equal(read_mask(path, threshold=128), disc())
    path = save_image(tmp_path / "b.jpg", np.full((64, 64), 90, np.uint8))
    refused(read_mask, path, "got 100% grey pixels .*JPEG.*; save it as a PNG .*, or set option threshold.*128")


def test_an_empty_mask_is_named_with_the_threshold_that_was_used(tmp_path):
    labels = np.zeros((64, 64), np.uint8)
    labels[13:45, 9:50] = 20
    path = save_image(tmp_path / "a.jpg", labels)
    refused(read_mask, path, r"got no pixel of one \(a value of at least 128\) .*; remove .*, or set option threshold")
    refused(lambda path: read_mask(path, threshold=40), path, r"got no pixel of one \(a value of at least 40\) .*threshold")
    assert read_mask(path, threshold=10).any()


@pytest.mark.parametrize(("ground", "label"), [(50, 200), (200, 255), (0, 100)])
def test_jpeg_masks_of_label_values_are_refused(tmp_path, ground, label):
    values = np.full((64, 64), ground, np.uint8)
    values[13:45, 9:50] = label
    refused(read_mask, save_image(tmp_path / "a.jpg", values), "black and white, got [0-9]+% grey pixels")


@pytest.mark.parametrize("ground", [0, 255])
def test_jpeg_masks_of_colors_are_refused(tmp_path, ground):
    colors = np.full((64, 64, 3), ground, np.uint8)
    colors[13:45, 9:50] = (0, 0, 255)
    refused(read_mask, save_image(tmp_path / "blue.jpg", colors), "black and white, got colors")


@pytest.mark.exhaustive
@pytest.mark.parametrize("field", ["polyp", "skin", "leaf", "camouflage"])
def test_real_masks_survive_jpeg(tmp_path, field):
    for path in sorted((vision_folder(field) / "masks").iterdir())[:25]:
        truth = read_mask(path)
        read = read_mask(save_mask(tmp_path / "a.jpg", truth, quality=75))
        assert (read == truth).mean() > 0.9999
    for path in sorted((vision_folder(field) / "images").iterdir())[:25]:
        refused(read_mask, path, "grey pixels|colors")


def test_names_of_image_files(tmp_path):
    names = ["a.jpg", "b.JPEG", "c.png", "d.tif", ".e.png", "Thumbs.db", "f.txt", "g"]
    assert [name for name in names if is_image_file(tmp_path / name)] == ["a.jpg", "b.JPEG", "c.png", "d.tif"]


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_tiff_that_its_tag_turns_is_refused(tmp_path, orientation):
    """Pillow turns it while it is loaded. A half turn leaves the size as it is, so the size of the mask would not show it."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = orientation
    refused(read_image, save_image(tmp_path / "a.tif", pixels(0), tiffinfo=tags), f"EXIF orientation {orientation}")
    tags[0x0112] = 1
    np.testing.assert_array_equal(read_image(save_image(tmp_path / "b.tif", pixels(0), tiffinfo=tags)), pixels(0))


def test_the_orientation_of_a_png_may_come_after_its_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    content = save_image(tmp_path / "a.png", pixels(0), exif=exif).read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4])
    last = content.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(content[:start] + content[end:last] + content[start:end] + content[last:])
    refused(read_image, tmp_path / "a.png", "EXIF orientation 3")
