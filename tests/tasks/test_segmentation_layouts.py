"""Indexes and published layouts of data sets, and what is wrong with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cycleqd_jax.tasks.segmentation.layouts import find_pairs
from cycleqd_jax.types import InputError

from .segmentation_data import indexed, save_pair, vision_folder, write_index


def touch(*files: Path) -> None:
    """Empty files: the layout is found without opening them."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def refused(folder: Path, words: str) -> str:
    with pytest.raises(InputError, match=words) as error:
        find_pairs(folder)
    message = str(error.value)
    assert str(folder) in message
    assert re.fullmatch(r"expected .+, got .+; .+[^.]", message), message
    return message


def found(folder: Path) -> dict[str, tuple[str, str | None, str]]:
    """Mask, split and group of every pair by its name."""
    return {p.name: (p.mask.relative_to(folder).as_posix(), p.split, p.group) for p in find_pairs(folder)}


def test_an_index_gives_names_splits_and_groups(tmp_path):
    folder = indexed(tmp_path, ["train", "val", "test", "validation"], group=["a", "", "b", "b"])
    pairs = find_pairs(folder)
    assert [pair.name for pair in pairs] == ["images/00", "images/01", "images/02", "images/03"]
    assert [pair.split for pair in pairs] == ["train", "validation", "test", "validation"]
    assert [pair.group for pair in pairs] == ["a", "", "b", "b"]
    assert pairs[1].where == f"{folder / 'index.csv'}, line 3"
    assert pairs[1].mask == folder / "masks/01.png"


def test_an_index_without_splits(tmp_path):
    assert {pair.split for pair in find_pairs(indexed(tmp_path / "a", ["", ""]))} == {None}
    save_pair(tmp_path / "b/x.png", tmp_path / "b/y.png", 0)
    write_index(tmp_path / "b", [{"image": "x.png", "mask": "y.png"}])
    assert found(tmp_path / "b") == {"x": ("y.png", None, "")}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns image, mask, got an empty file"),
        ("image,split\nx.png,train\n", "columns image, mask, got image, split"),
        ("image,mask\n", "at least one image with a mask, got none"),
        ("image,mask\nx.png\n", "2 values, got another number in .*line 2"),
        ("image,mask\nx.png,y.png,z\n", "2 values, got another number in .*line 2"),
        ("image,mask\nx.png, \n", "a value in column mask, got nothing in .*line 2"),
        ("image,mask\nx.png,none.png\n", "the file of .*line 2, got no file at .*none.png; add it, or remove the row"),
        ("image,mask\nnone.jpg,y.png\n", "the file of .*line 2, got no file at .*none.jpg"),
        ("image,mask,split\nx.png,y.png,dev\n", "split train, validation or test, got 'dev' in .*line 2"),
        ("image,mask,split\nx.png,y.png,train\na.png,b.png,\n", "a split in all rows or in none, got none in .*line 3"),
        ("image,mask\nx.png,y.png\nx.png,b.png\n", r"different names of images \(x is also in .*line 2\), got it .*line 3"),
        ("image,mask\nx.png,y.png\nd/../x.png,b.png\n", r"different names of images \(x is also in .*line 2\), got it .*"),
        ("image,mask\nx.png,y.png\na.png,./y.png\n", "a mask of its own for every image, got .*y.png in .*3 and in .*2"),
        ("image,mask\nx.png,y.png\na.png,x.png\n", "a mask, got the file that is the image in .*line 2, in .*line 3"),
        ("image,mask\nx.png,x.png\n", "a mask, got the file that is the image in .*line 2, in .*line 2"),
        ("image,mask,mask\nx.png,y.png,b.png\n", "different names of columns, got 'mask' twice in .*index.csv"),
        ('image,mask\n"x.png,y.png\n', "a readable CSV file"),
    ],
)
def test_a_wrong_index_is_named_with_its_line(tmp_path, text, words):
    save_pair(tmp_path / "x.png", tmp_path / "y.png", 0)
    save_pair(tmp_path / "a.png", tmp_path / "b.png", 1)
    (tmp_path / "d").mkdir()
    (tmp_path / "index.csv").write_text(text)
    refused(tmp_path, words)


def test_an_index_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "index.csv").write_bytes(b"image,mask\n\xff\xfe,\n")
    refused(tmp_path, "a readable CSV file in UTF-8")


def test_kvasir(tmp_path):
    folder = tmp_path / "Kvasir-SEG"
    touch(*(folder / part / f"{name}.jpg" for part in ("images", "masks") for name in ("b", "a")))
    touch(folder / "kavsir_bboxes.json", folder / "images/Thumbs.db", folder / "masks/.hidden.jpg")
    assert found(folder) == {"images/a": ("masks/a.jpg", None, ""), "images/b": ("masks/b.jpg", None, "")}


@pytest.mark.parametrize("part", ["images", "masks"])
def test_images_in_folders_of_these_folders_are_named(tmp_path, part):
    touch(tmp_path / "images/a.jpg", tmp_path / "masks/a.png")
    touch(tmp_path / part / ".ipynb_checkpoints/a.png", tmp_path / part / "notes/deep/a.txt", tmp_path / part / "c/.b/a.png")
    assert list(found(tmp_path)) == ["images/a"]
    touch(tmp_path / part / "centre1/day2/b.png")
    refused(tmp_path, f"images directly in .*{part}, got more in its folder centre1; move them there, or write an index.csv")
    (tmp_path / "index.csv").write_text("image,mask\nimages/a.jpg,masks/a.png\n")
    assert list(found(tmp_path)) == ["images/a"]


def test_image_and_mask_may_have_different_suffixes(tmp_path):
    touch(tmp_path / "Imgs/a.jpg", tmp_path / "GT/a.png")
    assert found(tmp_path) == {"Imgs/a": ("GT/a.png", None, "")}


def test_leaf_disease_without_the_augmented_copies(tmp_path):
    for part, end in (("data", ""), ("aug_data", "_aug")):
        touch(tmp_path / part / f"images/00000{end}.jpg", tmp_path / part / f"masks/00000{end}.png")
    assert found(tmp_path) == {"data/images/00000": ("data/masks/00000.png", None, "")}
    assert list(found(tmp_path / "data")) == ["images/00000"]
    refused(tmp_path / "aug_data", "original images, got augmented copies")


def test_cod10k_without_the_images_that_show_no_object(tmp_path):
    names = ["COD10K-CAM-1-Aquatic-1-BatFish-1", "COD10K-NonCAM-5-Background-70-Other-2"]
    for part in ("Train", "Test"):
        touch(*(tmp_path / part / f"Image/{name}-{part}.jpg" for name in names))
        touch(*(tmp_path / part / f"GT_Object/{name}-{part}.png" for name in names))
        touch(tmp_path / part / f"GT_Edge/{names[0]}-{part}.png")
    assert found(tmp_path) == {
        f"{part}/Image/{names[0]}-{part}": (f"{part}/GT_Object/{names[0]}-{part}.png", part.lower(), "")
        for part in ("Train", "Test")
    }


def test_camo(tmp_path):
    for part, name in (("Train", "camourflage_00001"), ("Test", "camourflage_00002")):
        touch(tmp_path / "Images" / part / f"{name}.jpg", tmp_path / f"GT/{name}.png")
    assert found(tmp_path) == {
        "Images/Train/camourflage_00001": ("GT/camourflage_00001.png", "train", ""),
        "Images/Test/camourflage_00002": ("GT/camourflage_00002.png", "test", ""),
    }
    touch(tmp_path / "GT/camourflage_00003.png")
    refused(tmp_path, "an image of every mask, got none for .*camourflage_00003.png")


def test_isic_2017(tmp_path):
    for n, part in enumerate(("Training", "Validation", "Test_v2")):
        touch(tmp_path / f"ISIC-2017_{part}_Data/ISIC_000000{n}.jpg")
        touch(tmp_path / f"ISIC-2017_{part}_Data/ISIC_000000{n}_superpixels.png")
        touch(tmp_path / f"ISIC-2017_{part}_Data/ISIC-2017_{part}_Data_metadata.csv")
        touch(tmp_path / f"ISIC-2017_{part}_Part1_GroundTruth/ISIC_000000{n}_segmentation.png")
    masks = "ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0000002_segmentation.png"
    pairs = found(tmp_path)
    assert pairs["ISIC-2017_Test_v2_Data/ISIC_0000002"] == (masks, "test", "")
    assert [split for _, split, _ in pairs.values()] == ["train", "validation", "test"]
    (tmp_path / masks).unlink()
    refused(tmp_path, r"a mask ISIC_0000002_segmentation in .*, got none for .*ISIC_0000002.jpg")


@pytest.mark.parametrize("part", ["", "PNG", "TIF"])
def test_cvc_clinicdb_groups_frames_by_video(tmp_path, part):
    data = tmp_path / part
    for n in (1, 2, 10):
        touch(data / f"Original/{n}.png", data / f"Ground Truth/{n}.png")
    refused(tmp_path, "the videos of the frames of CVC-ClinicDB, .* got no metadata.csv")
    metadata = tmp_path / "metadata.csv"
    metadata.write_text("frame_id,sequence_id,note\n1,1,x\n2,1,\n10,2,\n")
    prefix = f"{part}/" if part else ""
    assert found(tmp_path) == {
        f"{prefix}Original/{n}": (f"{prefix}Ground Truth/{n}.png", None, f"sequence {video}")
        for n, video in ((1, 1), (10, 2), (2, 1))
    }
    metadata.write_text("frame_id,sequence_id\n1,1\n2,1\n")
    refused(tmp_path, "a row for frame 10, got none in .*metadata.csv")


def test_pairs_without_a_partner_are_named(tmp_path):
    touch(tmp_path / "images/a.jpg", tmp_path / "masks/a.png", tmp_path / "masks/b.png")
    refused(tmp_path, "an image of every mask, got none for .*masks/b.png; add the image, or remove the mask")
    touch(tmp_path / "images/b.jpg", tmp_path / "images/c.jpg")
    refused(tmp_path, "a mask c in .*masks, got none for .*images/c.jpg; add the mask, or remove the image")
    (tmp_path / "images/c.jpg").unlink()
    touch(tmp_path / "masks/a.bmp")
    refused(tmp_path, "one mask of an image, got a.bmp too in .*a.png")
    (tmp_path / "masks/a.bmp").unlink()
    touch(tmp_path / "images/a.png")
    refused(tmp_path, "one image of a mask, got a.jpg of the same name too in .*images/a.png; rename one with its mask")


def test_other_folders_are_refused_with_the_known_layouts(tmp_path):
    touch(*(tmp_path / f"d{n}/a.png" for n in range(7)))
    assert "got d0, d1, d2, d3, d4, … in" in refused(tmp_path, r"expected index.csv, .*COD10K.*write an index.csv")
    refused(tmp_path / "none", "a folder of images and masks, got no folder at")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    refused(tmp_path, "at least one image with a mask, got none")


@pytest.mark.parametrize(("field", "train", "test"), [("polyp", 220, 57), ("skin", 240, 97), ("leaf", 70, 18)])
def test_the_real_indexes(field, train, test):
    splits = [pair.split for pair in find_pairs(vision_folder(field))]
    assert (splits.count("train"), splits.count("test"), len(splits)) == (train, test, train + test)


def test_the_real_camouflage_pictures():
    assert len(find_pairs(vision_folder("camouflage"))) == 4
