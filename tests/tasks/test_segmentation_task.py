"""Splits, sizes, prompts, scores and checks of a folder of images with masks."""

from __future__ import annotations

import inspect
import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cycleqd_jax.tasks.segmentation import (
    METRICS,
    SegmentationFolder,
    image_box,
    item_generator,
    mask_box,
    widened_box,
)
from cycleqd_jax.types import SPLITS, InputError, SegmentationItem, SegmentationTask, Split

from .segmentation_data import HEIGHT, WIDTH, disc, indexed, pixels, save_image, save_mask, save_pair, vision_folder


def make(folder: Path, **options) -> SegmentationFolder:
    return SegmentationFolder("cells", folder, **{"validation_size": 0} | options)


def unsplit(folder: Path, count: int = 10) -> Path:
    for n in range(count):
        save_pair(folder / f"images/{n:02}.png", folder / f"masks/{n:02}.png", n)
    return folder


def names(task: SegmentationFolder, split: Split) -> list[str]:
    return [pair.name.removeprefix("images/") for pair in task.pairs[split]]


def shorten(path: Path, mask: np.ndarray | None = None) -> None:
    """Puts a JPEG into the file that is decoded, although it ends too early."""
    save = save_image if mask is None else save_mask
    content = save(path, pixels(1) if mask is None else mask, format="JPEG").read_bytes()
    path.write_bytes(content[:-4] + b"\xff\xd9")


def refused(folder: Path, words: str, **options) -> None:
    with pytest.raises(InputError, match=words) as error:
        make(folder, **options)
    assert re.fullmatch(r"expected .+, got .+; .+[^.]", str(error.value)), str(error.value)


def test_it_is_a_segmentation_task(tmp_path):
    task: SegmentationTask = make(indexed(tmp_path, ["train", "test"]))
    (item,) = task.items("test")
    assert isinstance(item, SegmentationItem)
    assert (task.name, item.name) == ("cells", "images/01")
    np.testing.assert_array_equal(item.image, pixels(1))
    np.testing.assert_array_equal(item.mask, disc(1))
    assert item.box.tolist() == [4, 2, 10, 5]
    assert task.score(item.mask, item) == 1.0
    assert task.items("validation")[:] is not None
    assert len(task.items("validation")) == 0


def test_items_are_a_sequence(tmp_path):
    items = make(indexed(tmp_path, ["train"] * 5 + ["test"])).items("train")
    assert len(items) == 5
    assert [item.name for item in items] == [items[n].name for n in range(5)]
    assert items[-1].name == items[4].name
    assert [item.name for item in items[1:4:2]] == [items[1].name, items[3].name]
    with pytest.raises(IndexError):
        items[5]


def test_given_splits_are_kept_and_ordered_by_content(tmp_path):
    task = make(indexed(tmp_path, ["train", "test"] * 6))
    assert sorted(names(task, "train")) == ["00", "02", "04", "06", "08", "10"]
    assert sorted(names(task, "test")) == ["01", "03", "05", "07", "09", "11"]
    assert names(task, "train") != sorted(names(task, "train"))


def test_the_order_does_not_depend_on_names_or_rows(tmp_path):
    first = make(unsplit(tmp_path / "a"))
    for n in range(10):
        save_pair(tmp_path / f"b/images/{9 - n}.png", tmp_path / f"b/masks/{9 - n}.png", n)
    second = make(tmp_path / "b")
    for split in SPLITS:
        assert [int(name) for name in names(first, split)] == [9 - int(name) for name in names(second, split)]


def test_a_folder_without_splits_is_halved(tmp_path):
    task = make(unsplit(tmp_path, 11), validation_size=2)
    assert [len(task.pairs[split]) for split in SPLITS] == [3, 2, 6]
    assert len({name for split in SPLITS for name in names(task, split)}) == 11


def test_validation_follows_the_train_items(tmp_path):
    folder = indexed(tmp_path, ["train"] * 8 + ["test"] * 2)
    order = names(make(folder), "train")
    for train_size, validation_size, train, validation in (
        (None, 3, order[:5], order[5:]),
        (4, 3, order[:4], order[4:7]),
        (4, None, order[:4], order[4:]),
        (4, 0, order[:4], []),
        (None, 0, order, []),
    ):
        task = make(folder, train_size=train_size, validation_size=validation_size)
        assert (names(task, "train"), names(task, "validation")) == (train, validation)
    assert names(make(folder, test_size=1), "test") == names(make(folder), "test")[:1]


def test_given_validation_items_are_used(tmp_path):
    folder = indexed(tmp_path, ["train"] * 4 + ["val"] * 3 + ["test"])
    order = names(make(folder, validation_size=None), "validation")
    assert sorted(order) == ["04", "05", "06"]
    assert names(make(folder, validation_size=2), "validation") == order[:2]
    assert len(names(make(folder, validation_size=2, train_size=3), "train")) == 3
    refused(folder, "at least 4 validation images for validation_size 4, got 3", validation_size=4)


def test_sizes_that_are_too_large_are_refused(tmp_path):
    folder = indexed(tmp_path, ["train"] * 4 + ["test"] * 2)
    refused(folder, "at least 5 train images for train_size 5, got 4", train_size=5)
    refused(folder, "at least 3 test images for test_size 3, got 2 in .* of task 'cells'", test_size=3)
    refused(folder, "at least 5 train problems for train_size 3 and validation_size 2", train_size=3, validation_size=2)
    refused(folder, "a train_size or a validation_size, got null for both", validation_size=None)


def test_a_split_without_images_is_refused(tmp_path):
    refused(indexed(tmp_path / "a", ["train", "train"]), "at least one test image, got none in")
    refused(indexed(tmp_path / "b", ["test", "val"]), "at least one train image, got none in")


def test_equal_images_stay_together(tmp_path):
    folder = unsplit(tmp_path, 8)
    for n in range(8):
        shutil.copy(folder / f"images/{n:02}.png", folder / f"images/{n:02}-copy.png")
        save_mask(folder / f"masks/{n:02}-copy.png", disc(n + 1))
    for validation_size in (1, 2, 3):
        task = make(folder, validation_size=validation_size)
        found = [{name[:2] for name in names(task, split)} for split in SPLITS]
        assert not any(a & b for a, b in itertools.combinations(found, 2))
        assert all(found)


def test_equal_images_in_two_splits_are_refused(tmp_path):
    folder = indexed(tmp_path, ["train", "train", "test", "val"])
    shutil.copy(folder / "images/01.png", folder / "images/02.png")
    refused(folder, "different images and groups for train and test, got equal images in .*line 3 and .*line 4 of task 'cells'")
    save_image(folder / "images/02.png", pixels(2))
    shutil.copy(folder / "images/01.png", folder / "images/03.png")
    refused(folder, "different images and groups for train and validation")


def test_groups_stay_together(tmp_path):
    groups = [f"video {n // 4}" for n in range(24)]
    folder = indexed(tmp_path, [""] * 24, group=groups)
    for sizes in ({"validation_size": 4}, {"validation_size": 3}, {"train_size": 5, "validation_size": 3}, {"train_size": 4}):
        task = make(folder, **{"validation_size": None} | sizes)
        found = [{groups[int(name)] for name in names(task, split)} for split in SPLITS]
        assert not any(a & b for a, b in itertools.combinations(found, 2))
        assert all(found)
    refused(
        folder,
        "without a group in both, got none for validation",
        validation_size=1,
        train_size=11,
    )


def test_equal_images_stay_together_whatever_their_groups(tmp_path):
    """Four equal files have four groups, and another image shares one of these."""
    folder = indexed(tmp_path, ["train"] * 10 + ["test"], group=["g0", "g1", "g2", "g3", "g3", *map(str, range(6))])
    for n in range(1, 4):
        shutil.copy(folder / "images/00.png", folder / f"images/{n:02}.png")
    for sizes in ({"validation_size": 1}, {"validation_size": 2}, {"train_size": 1}, {"train_size": 2}, {"train_size": 5}):
        task = make(folder, **{"validation_size": None} | sizes)
        train, validation = ({"00", "01", "02", "03", "04"} & {*names(task, split)} for split in ("train", "validation"))
        assert not (train and validation)
    folder = indexed(tmp_path / "alone", ["train"] * 4 + ["test"], group=["g0", "g1", "g2", "g3", "g4"])
    for n in range(1, 4):
        shutil.copy(folder / "images/00.png", folder / f"images/{n:02}.png")
    refused(folder, "without a group in both, got none for train", validation_size=2)


def test_a_group_in_two_splits_is_refused(tmp_path):
    folder = indexed(tmp_path, ["train", "train", "test"], group=["a", "b", "a"])
    refused(folder, "different images and groups for train and test, got images of one group in .*line 2 and .*line 4")
    folder = indexed(tmp_path / "one", ["", ""], group=["a", "a"])
    refused(folder, "different images and groups for train and test")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: save_mask(folder / "masks/01.png", disc()[:-1]), r"a mask of 16 × 12 pixels, .* got 16 × 11 in .*01"),
        (lambda folder: save_mask(folder / "masks/01.png", disc()[:, :0:-1].T), r"a mask of 16 × 12 pixels, .* got 12 × 15"),
        (lambda folder: save_mask(folder / "masks/01.png", disc() & False), "a mask of an object, got no pixel .*masks/01.png"),
        (lambda folder: save_image(folder / "masks/01.png", pixels(0)[..., 0]), "mask values 0 and 255, got .*masks/01.png"),
        (lambda folder: (folder / "masks/01.png").unlink(), "the file of .*line 3, got no file at .*masks/01.png"),
        (lambda folder: (folder / "images/01.png").write_bytes(b"\xff\xd8\xff"), "a whole image file, got .*images/01.png"),
        (lambda folder: shorten(folder / "images/01.png"), "an undamaged image file, got image data .*images/01.png"),
        (lambda folder: shorten(folder / "masks/01.png", disc(1)), "an undamaged image file, got image data .*masks/01.png"),
    ],
)
def test_wrong_files_are_refused_before_work_starts(tmp_path, spoil, words):
    folder = indexed(tmp_path, ["train", "test"])
    spoil(folder)
    refused(folder, words)


def test_files_that_the_sizes_leave_out_are_not_decoded(tmp_path):
    folder = indexed(tmp_path, ["train"] * 3 + ["test"])
    unused = names(make(folder), "train")[-1]
    (folder / f"masks/{unused}.png").write_bytes(b"")
    refused(folder, f"a whole image file, .*masks/{unused}.png")
    assert len(make(folder, train_size=2).items("train")) == 2


def test_items_are_read_when_they_are_used(tmp_path):
    folder = indexed(tmp_path, ["train", "test"])
    items = make(folder).items("test")
    (folder / "images/01.png").unlink()
    with pytest.raises(InputError, match=r"got no file at .*images/01\.png"):
        items[0]


def test_a_threshold_reads_grey_masks(tmp_path):
    folder = indexed(tmp_path, ["train", "test"])
    save_image(folder / "masks/01.png", disc(1).astype(np.uint8) * 40)
    refused(folder, "mask values 0 and 255, got 0, 40 in .*masks/01.png; .* or set option threshold")
    np.testing.assert_array_equal(make(folder, threshold=40).items("test")[0].mask, disc(1))


@pytest.mark.parametrize("score", METRICS)
def test_the_option_score_chooses_the_metric(tmp_path, score):
    task = make(indexed(tmp_path, ["train", "test"]), score=score)
    (item,) = task.items("test")
    predicted = np.roll(item.mask, 2, axis=1)
    assert task.score(predicted, item) == METRICS[score](predicted, item.mask)
    assert 0 < task.score(predicted, item) < 1


def test_a_predicted_mask_of_another_size_is_refused(tmp_path):
    task = make(indexed(tmp_path, ["train", "test"]))
    with pytest.raises(InputError, match="a mask of 16 × 12 pixels, got 12 × 16 for the image images/01 of task 'cells'"):
        task.score(disc().T, task.items("test")[0])


def test_the_box_may_be_the_whole_image(tmp_path):
    (item,) = make(indexed(tmp_path, ["train", "test"]), prompt="image").items("test")
    assert item.box.tolist() == [0, 0, WIDTH - 1, HEIGHT - 1]


def test_jitter_is_a_function_of_seed_and_name(tmp_path):
    folder = indexed(tmp_path, ["train"] * 4 + ["test"] * 2)
    plain, first, again, other = (
        [item.box for item in make(folder, **options).items("train")]
        for options in ({}, {"jitter": 200}, {"jitter": 200, "train_size": 4}, {"jitter": 200.0, "seed": 1})
    )
    np.testing.assert_array_equal(first, again)
    assert (np.array(first) != np.array(other)).any(axis=1).all()
    assert len({tuple(np.subtract(a, b).tolist()) for a, b in zip(plain, first, strict=True)}) == 4


def test_widened_boxes_contain_the_box_and_stay_in_the_image():
    box = np.array([100, 200, 300, 400], np.float32)
    moved = np.array([widened_box(box, 512, 2048, 20, item_generator(0, str(n))) - box for n in range(400)])
    outwards = moved * [-1, -1, 1, 1]
    assert outwards.min() >= 0
    assert 39 < outwards.max() <= 40  # 20 pixels at 1024 are 40 at 2048
    assert outwards.mean() == pytest.approx(20, abs=1.5)
    edges = widened_box(np.array([1, 2, 2040, 510], np.float32), 512, 2048, 1000, item_generator(0, "a"))
    assert edges.tolist() == [0, 0, 2047, 511]


def test_boxes_by_hand():
    mask = np.zeros((5, 7), bool)
    mask[1, 2] = mask[3, 6] = True
    assert mask_box(mask).tolist() == [2, 1, 6, 3]
    assert mask_box(np.ones((5, 7), bool)).tolist() == [0, 0, 6, 4]
    assert image_box(5, 7).tolist() == [0, 0, 6, 4]


def test_fingerprints_follow_files_and_settings(tmp_path):
    folder = indexed(tmp_path, ["train"] * 3 + ["test"] * 2)
    first = {split: make(folder).fingerprint(split) for split in SPLITS}
    assert len(set(first.values())) == 3
    assert make(folder, workers=1).fingerprint("train") == first["train"]
    for options in ({"prompt": "image"}, {"jitter": 5.0}, {"seed": 3}, {"threshold": 9}, {"train_size": 2}):
        assert make(folder, **options).fingerprint("train") != first["train"]
    assert make(folder, score="dice").fingerprint("train") == first["train"]  # experts do not learn from the metric
    assert not {*make(folder, score="dice").problems("train")} & {*make(folder).problems("train")}
    save_mask(folder / "masks/04.png", disc(7))
    assert make(folder).fingerprint("test") != first["test"]
    assert make(folder).fingerprint("train") == first["train"]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("score", "mse", "one of iou, dice, s_measure, e_measure, weighted_f, got 'mse'"),
        ("prompt", "points", "one of box, image, got 'points'"),
        ("jitter", -1.0, "a finite number above 0 or null, got -1.0"),
        ("jitter", True, "a finite number above 0 or null, got True"),
        ("seed", -1, "a whole number of at least 0, got -1"),
        ("seed", None, "a whole number of at least 0, got None"),
        ("threshold", 0, "a whole number of at least 1 or null, got 0"),
        ("threshold", 256, "at most 255, got 256"),
        ("train_size", 0, "a whole number of at least 1 or null, got 0"),
        ("validation_size", -1, "a whole number of at least 0 or null, got -1"),
        ("validation_size", 2.0, "a whole number of at least 0 or null, got 2.0"),
        ("test_size", "3", "a whole number of at least 1 or null, got '3'"),
        ("workers", None, "a whole number of at least 1, got None"),
    ],
)
def test_wrong_options_are_named(tmp_path, option, value, words):
    task = object.__new__(SegmentationFolder)
    message = f"^expected option {option} to be {words} in task 'cells'; correct the config$"
    with pytest.raises(InputError, match=message):  # without the checks of annotations that only run in tests
        inspect.unwrap(SegmentationFolder.__init__)(task, "cells", tmp_path, **{option: value})


def test_jitter_needs_a_box(tmp_path):
    refused(tmp_path, "option jitter to be null with the prompt image, got 20", prompt="image", jitter=20)


@pytest.mark.parametrize("field", ["polyp", "skin", "leaf"])
def test_real_folders(field):
    task = SegmentationFolder(field, vision_folder(field), train_size=2, validation_size=2, test_size=2, jitter=20)
    assert [len(task.items(split)) for split in SPLITS] == [2, 2, 2]
    for split in SPLITS:
        for item in task.items(split):
            left, top, right, bottom = item.box
            assert item.mask[int(np.ceil(top)) : int(bottom) + 1, int(np.ceil(left)) : int(right) + 1].sum() == item.mask.sum()


@pytest.mark.exhaustive
@pytest.mark.parametrize("field", ["polyp", "skin", "leaf"])
def test_whole_real_folders(field):
    """Every real file passes the checks, and no image is in two splits."""
    task = SegmentationFolder(field, vision_folder(field))
    items = {split: list(task.items(split)) for split in SPLITS}
    assert {split: len(found) for split, found in items.items()}["validation"] == 32
    contents = [{item.image.tobytes() for item in found} for found in items.values()]
    assert not any(a & b for a, b in itertools.combinations(contents, 2))
    for found in items.values():
        assert all(task.score(item.mask, item) == 1.0 for item in found)


def test_camouflage_pictures():
    task = SegmentationFolder("camouflage", vision_folder("camouflage"), validation_size=0, score="s_measure")
    assert [len(task.items(split)) for split in SPLITS] == [2, 0, 2]
