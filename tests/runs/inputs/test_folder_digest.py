"""Digests of model folders: every byte counts, and those of large files are kept."""

from __future__ import annotations

import os

import pytest

from cycleqd_jax.runs.inputs import digests as module
from cycleqd_jax.runs.inputs.digests import folder_digest


def write_large(file, blocks=3, changed=None):
    """A sparse file of a few blocks, with one byte changed."""
    with file.open("wb") as stream:
        stream.truncate(blocks * module.BLOCK + 5)
        if changed is not None:
            stream.seek(changed)
            stream.write(b"x")


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1 << 12)
    monkeypatch.setattr(module, "SETTLED_S", 0.0)


@pytest.mark.parametrize("changed", [0, 4097, 3 * 4096 - 1, 3 * 4096 + 4])
def test_every_byte_of_a_model_counts(tmp_path, small_blocks, changed):
    write_large(tmp_path / "model.safetensors")
    before = folder_digest(tmp_path)
    write_large(tmp_path / "model.safetensors", changed=changed)
    assert folder_digest(tmp_path) != before
    write_large(tmp_path / "model.safetensors")
    assert folder_digest(tmp_path) == before


def test_digests_of_large_files_are_kept_until_the_file_changes(tmp_path, small_blocks, monkeypatch):
    file, cache, read = tmp_path / "model.safetensors", tmp_path / "cache", []
    block = module._block_digest
    monkeypatch.setattr(module, "_block_digest", lambda *args: read.append(args) or block(*args))
    write_large(file)
    before = folder_digest(tmp_path, cache)
    assert len(read) == 4
    assert folder_digest(tmp_path, cache) == before == folder_digest(tmp_path)
    assert len(read) == 8  # without a cache everything is read
    stamp = file.stat()
    write_large(file, changed=5000)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a copy that keeps times leaves it
    assert folder_digest(tmp_path, cache) != before
    (kept,) = (cache / "digests").iterdir()
    kept.write_text("{")
    assert folder_digest(tmp_path, cache) != before


def test_a_file_that_has_just_changed_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1 << 12)
    write_large(tmp_path / "model.safetensors")
    folder_digest(tmp_path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_can_not_be_written_is_no_error(tmp_path, small_blocks):
    write_large(tmp_path / "model.safetensors")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "digests").touch()  # no folder can be made in this place
    assert folder_digest(tmp_path, tmp_path / "cache") == folder_digest(tmp_path)


def test_templates_beside_the_default_count(tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    before = folder_digest(tmp_path)
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("{{ bos_token }}")
    assert folder_digest(tmp_path) != before
