"""Damage inside of image files that decoders pass over."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image, ImageFile

from cycleqd_jax.tasks.segmentation.damage import check_undamaged
from cycleqd_jax.tasks.segmentation.images import read_image
from cycleqd_jax.types import InputError

from .segmentation_data import save_mask, vision_folder

JPEGS = {
    "usual": {},
    "fine": {"quality": 100, "subsampling": 0},
    "coarse": {"quality": 20},
    "optimised": {"optimize": True},
    "grey": {"mode": "L"},
    "narrow": {"size": (7, 90)},
    "restarts by row": {"restart_marker_rows": 1},
    "restarts by block": {"restart_marker_blocks": 5},
    "restarts of grey": {"restart_marker_blocks": 9, "mode": "L"},
    "progressive": {"progressive": True},
    "progressive with restarts": {"progressive": True, "restart_marker_rows": 2},
    "progressive grey": {"progressive": True, "mode": "L"},
}
SEQUENTIAL = [name for name in JPEGS if "progressive" not in name]


def picture(height: int = 70, width: int = 90) -> Image.Image:
    """Smooth colours with some noise, as in photographs."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (5 + n)) + np.cos(columns / (7 - n)) for n in range(3)]
    noise = np.random.default_rng(0).normal(size=(height, width, 3))
    return Image.fromarray((128 + 50 * np.stack(waves, -1) + 6 * noise).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image | None = None, *, mode: str = "RGB", size: tuple[int, int] = (70, 90), **options) -> bytes:
    stream = io.BytesIO()
    (image or picture(*size)).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def data_start(content: bytes) -> int:
    """Where the entropy-coded data of the first scan begin."""
    marker = content.index(b"\xff\xda")
    return marker + 2 + int.from_bytes(content[marker + 2 : marker + 4])


def refused(path, content: bytes, words: str) -> None:
    """The file is decoded without an error, but refused by name."""
    path.write_bytes(content)
    read_image(path)
    with pytest.raises(InputError, match=f"^expected an undamaged image file, got {words} in {re.escape(str(path))}; replace"):
        check_undamaged(path)


@pytest.mark.parametrize("kind", JPEGS)
def test_whole_jpegs_pass(tmp_path, kind):
    content = jpeg(**JPEGS[kind])
    exif = Image.Exif()
    exif[0x010E] = "a description"
    for variant in (content, content + b"\0trailing", content[:-2] + b"\xff\xff\xff\xd9", jpeg(**JPEGS[kind], exif=exif)):
        (tmp_path / "a.jpg").write_bytes(variant)
        check_undamaged(tmp_path / "a.jpg")


@pytest.mark.parametrize("values", [0, 128, 255])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}])
def test_flat_jpegs_pass(tmp_path, values, options):
    """With tables of their own they are made of zeros."""
    (tmp_path / "a.jpg").write_bytes(jpeg(Image.new("RGB", (1000, 1000), (values,) * 3), **options))
    check_undamaged(tmp_path / "a.jpg")


def test_the_first_picture_of_an_mpo_counts(tmp_path):
    frames = [picture(), picture(50, 60)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    check_undamaged(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_is_shortened_and_has_its_end_marker_is_refused(tmp_path, kind):
    content = jpeg(**JPEGS[kind])
    start = data_start(content)
    places = [start + int((len(content) - start) * share) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    for place in [*places, len(content) - 10, len(content) - 4]:
        path = tmp_path / "a.jpg"
        path.write_bytes(content[:place] + b"\xff\xd9")
        with pytest.raises(
            InputError, match=r"got (image data that (end too early|lack scans)|.* restart markers) in .*a\.jpg;"
        ):
            check_undamaged(path)
        if kind in SEQUENTIAL:  # else the end may be within a table of a later scan
            read_image(path)


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_a_jpeg_that_lacks_bytes_in_the_middle_is_refused(tmp_path, kind):
    content = jpeg(**JPEGS[kind])
    start = data_start(content)
    middle, lost = (start + len(content)) // 2, (len(content) - start) // 5
    refused(tmp_path / "a.jpg", content[:middle] + content[middle + lost :], "(image data that .*|.* restart markers)")


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_a_jpeg_with_more_data_than_pixels_is_refused(tmp_path, kind):
    content = jpeg(**JPEGS[kind])
    for more in (b"\x55" * 10, bytes(10), b"\xff\x00" * 10):
        refused(tmp_path / "a.jpg", content[:-2] + more + b"\xff\xd9", "image data that go on after the last pixel")


def test_a_jpeg_with_bytes_too_many_in_a_restart_interval_is_refused(tmp_path):
    content = jpeg(restart_marker_rows=1)
    place = content.index(b"\xff\xd1")
    refused(tmp_path / "a.jpg", content[:place] + b"\x55" * 10 + content[place:], "image data that go on after .*")
    lost = content.index(b"\xff\xd2")
    refused(tmp_path / "a.jpg", content[:place] + content[lost:], "missing or misplaced restart markers")
    refused(tmp_path / "a.jpg", content[:place] + content[place + 2 :], "missing or misplaced restart markers")


@pytest.mark.parametrize("kind", ["usual", "fine", "grey", "restarts by row"])
def test_zeroed_data_are_refused(tmp_path, kind):
    """Zero bytes may be valid codes for as many pixels as were there before, so their number alone does not show them."""
    content = jpeg(picture(400, 300), **{"quality": 95} | JPEGS[kind])
    start = data_start(content) + 500
    spoilt = content[:start] + bytes(70) + content[start + 70 :]
    refused(tmp_path / "a.jpg", spoilt, "(zeros in place of image data|missing or misplaced restart markers)")


def test_a_progressive_jpeg_without_its_last_scan_is_refused(tmp_path):
    content = jpeg(progressive=True)
    refused(tmp_path / "a.jpg", content[: content.rindex(b"\xff\xda")] + b"\xff\xd9", "image data that lack scans")


def test_a_damaged_png_is_refused(tmp_path):
    mask = np.random.default_rng(0).random((60, 80)) < 0.5
    content = bytearray(save_mask(tmp_path / "a.png", mask).read_bytes())
    check_undamaged(tmp_path / "a.png")
    content[content.index(b"IEND") - 5] ^= 1  # the last byte of a checksum
    refused(tmp_path / "a.png", bytes(content), r"an error \(broken PNG file .*\)")


def test_other_formats_have_no_checksums(tmp_path):
    for suffix in ("bmp", "tif", "gif", "webp"):
        picture().save(tmp_path / f"a.{suffix}")
        check_undamaged(tmp_path / f"a.{suffix}")


def test_pillow_must_not_accept_truncated_files(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InputError, match=r"LOAD_TRUNCATED_IMAGES to be False, got True, .*a\.jpg; set it to False"):
        check_undamaged(tmp_path / "a.jpg")


def test_headers_that_do_not_fit_the_data(tmp_path):
    """They ask for a division by zero, or for billions of restart intervals."""
    content = jpeg(restart_marker_blocks=5)
    frame = content.index(b"\xff\xc0")
    path = tmp_path / "a.jpg"
    path.write_bytes(content[: frame + 11] + b"\0" + content[frame + 12 :])
    with pytest.raises(InputError, match=r"got malformed segments in .*a\.jpg;"):
        check_undamaged(path)
    for empty in (5, 7):  # the height, and the width
        path.write_bytes(content[: frame + empty] + b"\0\0" + content[frame + empty + 2 :])
        with pytest.raises(InputError, match=r"got (malformed segments|missing or misplaced restart markers) in .*a\.jpg;"):
            check_undamaged(path)
    one = jpeg()
    frame_of_one, scan = one.index(b"\xff\xc0"), one.index(b"\xff\xda")
    flat = one[: frame_of_one + 5] + b"\0\0" + one[frame_of_one + 7 : scan]
    path.write_bytes(flat + b"\xff\xdd\0\x04\x03\xe8" + one[scan:])  # an interval of 1,000 units, and a height of 0
    with pytest.raises(InputError, match=r"got malformed segments in .*a\.jpg;"):
        check_undamaged(path)
    path.write_bytes(content[: frame + 5] + b"\xff\0\xff\0" + content[frame + 9 :])
    with pytest.raises(InputError, match=r"got missing or misplaced restart markers in .*a\.jpg;"):
        check_undamaged(path)


def test_an_image_above_the_limit_of_pillow_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    check_undamaged(path)
    with pytest.raises(InputError, match=r"got an error \(.*decompression bomb.*\) in .*a\.jpg; replace or remove it"):
        read_image(path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("field", ["polyp", "skin", "leaf", "camouflage"])
def test_real_files_pass(field):
    for part in ("images", "masks"):
        for path in sorted((vision_folder(field) / part).iterdir())[:100]:
            check_undamaged(path)
