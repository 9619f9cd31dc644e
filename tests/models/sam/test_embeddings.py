"""Stored embeddings: what is read instead of computed, what is not, and how much is kept."""

from __future__ import annotations

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.models.sam import embeddings
from cycleqd_jax.models.sam.embeddings import EmbeddingFolder
from cycleqd_jax.models.sam.predictor import SamPredictor, embed_images
from cycleqd_jax.training import MaskOptions, TrainOptions, finetune_masks

from ...shapes import CONFIGS, ellipses, random_params

CONFIG = CONFIGS["tiny_vit"]
ONE = 4 * 4 * 16 * 4  # bytes of an embedding


@pytest.fixture(scope="module")
def params():
    return random_params("tiny_vit")


@pytest.fixture(scope="module")
def items():
    return ellipses(5)


def embedded(folder, vision, items, *, config=CONFIG, batch_size=2, limit=1 << 20):
    vision = jax.tree.map(lambda leaf: leaf.astype(config.dtype), vision)
    stored = EmbeddingFolder(folder, limit_bytes=limit).of_encoder(vision, config, batch_size=batch_size)
    images = [item.image for item in items]
    return list(embed_images(vision, config, images, batch_size=batch_size, stored=stored))


def files(folder):
    return sorted(folder.glob("*/*.bin"))


def test_another_process_reads_the_same_bits(tmp_path, params, items, encoded):
    first = embedded(tmp_path, params["vision"], items)
    assert encoded == [2, 2, 2]
    again = embedded(tmp_path, jax.tree.map(jnp.copy, params["vision"]), items[::-1])
    assert encoded == [2, 2, 2]
    assert all(np.array_equal(a, b) for a, b in zip(first, again[::-1], strict=True))
    assert [file.stat().st_size for file in files(tmp_path)] == [ONE] * 5


def test_only_what_is_missing_is_computed(tmp_path, params, items, encoded):
    some = embedded(tmp_path, params["vision"], items[1:4:2])
    whole = embedded(tmp_path, params["vision"], items)
    assert encoded == [2, 2, 2, 2]  # a batch each for images 0, 2 and 4
    plain = list(embed_images(params["vision"], CONFIG, [item.image for item in items], batch_size=2))
    assert all(np.array_equal(a, b) for a, b in zip(whole, plain, strict=True))
    assert all(np.array_equal(a, whole[i]) for i, a in zip((1, 3), some, strict=True))


@pytest.mark.parametrize("change", ["weight", "batch", "dtype", "image", "device", "version", "precision"])
def test_whatever_changes_bits_is_stored_apart(tmp_path, params, items, encoded, monkeypatch, change):
    embedded(tmp_path, params["vision"], items[:2])
    vision, config, batch, images = params["vision"], CONFIG, 2, items[:2]
    if change == "weight":
        vision = jax.tree.map(jnp.copy, vision)
        bias = vision["stage1"]["blocks"]["attn"]["qkv"]["bias"]
        vision["stage1"]["blocks"]["attn"]["qkv"]["bias"] = bias.at[-1, -1].add(1e-6)
    elif change == "batch":
        batch = 1
    elif change == "dtype":
        config = CONFIG.replace(dtype="bfloat16")
    elif change == "device":
        monkeypatch.setattr(embeddings, "device_kind", lambda: "gpu NVIDIA H100")
    elif change == "version":
        monkeypatch.setattr(embeddings, "__version__", "0.0.0")
    elif change == "image":
        images = items[2:4]
    with jax.default_matmul_precision("highest" if change == "precision" else None):
        embedded(tmp_path, vision, images, config=config, batch_size=batch)
    assert sum(encoded) == 4
    assert len(files(tmp_path)) == 4


def test_bfloat16(tmp_path, params, items, encoded):
    config = CONFIG.replace(dtype="bfloat16")
    first, again = (embedded(tmp_path, params["vision"], items[:2], config=config) for _ in range(2))
    assert encoded == [2]
    assert again[0].dtype == jnp.bfloat16
    assert all(np.array_equal(a.view(np.uint16), b.view(np.uint16)) for a, b in zip(first, again, strict=True))


def test_a_file_cut_short_is_written_again(tmp_path, params, items, encoded):
    first = embedded(tmp_path, params["vision"], items[:2])
    os.truncate(files(tmp_path)[0], ONE // 2)
    again = embedded(tmp_path, params["vision"], items[:2])
    assert encoded == [2, 2]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert [file.stat().st_size for file in files(tmp_path)] == [ONE] * 2


def test_the_files_used_longest_ago_are_removed_first(tmp_path, params, items, encoded):
    embedded(tmp_path, params["vision"], items[:4])
    for age, file in enumerate(files(tmp_path)):
        os.utime(file, (1e9 - age, 1e9 - age))
    oldest = files(tmp_path)[3]
    embedded(tmp_path, params["vision"], items[4:], limit=4 * ONE)
    assert not oldest.exists()
    assert len(files(tmp_path)) == 4


def test_what_is_in_use_stays_where_there_is_no_room(tmp_path, params, items, encoded):
    embedded(tmp_path, params["vision"], items[:2])
    before = files(tmp_path)
    embedded(tmp_path, params["vision"], items, limit=2 * ONE)
    assert files(tmp_path) == before
    assert embedded(tmp_path / "none", params["vision"], items[:1], limit=0)
    assert not files(tmp_path / "none")


@pytest.mark.parametrize("limit", [0, ONE - 1])
def test_a_limit_below_one_file_removes_none(tmp_path, params, items, encoded, limit):
    embedded(tmp_path, params["vision"], items[:2])
    before = files(tmp_path)
    embedded(tmp_path, params["vision"], items[2:], limit=limit)
    assert files(tmp_path) == before


def test_files_of_other_processes_count_and_their_uses_too(tmp_path):
    """The object counts files that another process stores or reads later."""
    first = EmbeddingFolder(tmp_path, limit_bytes=30)
    for age, name in enumerate("cba"):
        first.write(f"e/{name}.bin", bytes(10))
        os.utime(tmp_path / "e" / f"{name}.bin", (1e9 - age, 1e9 - age))
    second = EmbeddingFolder(tmp_path, limit_bytes=35)
    first.read("e/a.bin")
    (tmp_path / "e" / "c.bin").unlink()
    second.write("e/d.bin", bytes(10))
    assert [file.name for file in files(tmp_path)] == ["a.bin", "b.bin", "d.bin"]
    second.write("e/e.bin", bytes(10))
    assert [file.name for file in files(tmp_path)] == ["a.bin", "d.bin", "e.bin"]


def test_a_file_that_vanishes_does_not_hide_the_others(tmp_path):
    EmbeddingFolder(tmp_path).write("e/a.bin", bytes(10))
    (tmp_path / "e" / "b.bin").symlink_to(tmp_path / "nowhere")
    EmbeddingFolder(tmp_path, limit_bytes=15).write("e/c.bin", bytes(10))
    assert [file.name for file in files(tmp_path)] == ["c.bin"]


def test_what_a_killed_writer_leaves_is_counted_and_then_removed(tmp_path):
    EmbeddingFolder(tmp_path).write("e/a.bin", bytes(10))
    left = tmp_path / "e" / ".b.bin.0123456789abcdef.tmp"
    left.write_bytes(bytes(10))
    EmbeddingFolder(tmp_path, limit_bytes=25).write("e/b.bin", bytes(10))
    assert left.exists()
    assert [file.name for file in files(tmp_path)] == ["b.bin"]
    os.utime(left, (1e9, 1e9))
    EmbeddingFolder(tmp_path)
    assert not left.exists()


def test_a_read_only_folder_is_read(tmp_path, params, items, encoded, monkeypatch):
    embedded(tmp_path, params["vision"], items[:2])

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(os, "utime", refuse)
    embedded(tmp_path, params["vision"], items[:2])
    assert encoded == [2]


def test_the_last_of_the_disk_is_left_free(tmp_path, params, items, encoded, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 30))
    embedded(tmp_path, params["vision"], items[:2])
    assert not files(tmp_path)


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path, params, items, encoded):
    (tmp_path / "file").touch()
    first, again = (embedded(tmp_path / "file", params["vision"], items[:2]) for _ in range(2))
    assert encoded == [2, 2]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_training_and_evaluations_share_them(tmp_path, params, items, encoded):
    options = TrainOptions(steps=3, batch_size=2, learning_rate=1e-3)
    masks = MaskOptions(flips="none")
    plain, metrics = finetune_masks(params, CONFIG, items, options, masks)
    del encoded[:]
    trained, with_folder = finetune_masks(params, CONFIG, items, options, masks, folder=EmbeddingFolder(tmp_path))
    computed = list(encoded)
    assert with_folder.embedded == metrics.embedded == len(files(tmp_path)) == 5
    again, warm = finetune_masks(params, CONFIG, items, options, masks, folder=EmbeddingFolder(tmp_path))
    predictor = SamPredictor(CONFIG, encoder=params["vision"], batch_size=2, folder=EmbeddingFolder(tmp_path))
    predictor.load(trained, donate=False)
    assert len(list(predictor.predict(items, 1))) == 5
    assert encoded == computed
    assert warm.embedded == 5
    assert predictor.usage()[0].attended == 5
    for a, b, c in zip(jax.tree.leaves(plain), jax.tree.leaves(trained), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


@pytest.mark.exhaustive
def test_other_sizes_of_batches_have_their_own(tmp_path, params, items, encoded):
    predictor = SamPredictor(CONFIG, encoder=params["vision"], batch_size=4, folder=EmbeddingFolder(tmp_path))
    for size, calls in ((4, 2), (2, 5), (4, 5)):
        predictor.resize(size)
        predictor.load(params, donate=False)
        list(predictor.predict(items, 1))
        assert len(encoded) == calls
        predictor._embeddings.clear()
