"""Places that can't take the files of a run: they are refused before it starts."""

from __future__ import annotations

import dataclasses
import os

import pytest

from cycleqd_jax.runs.folder.run_folder import check_folder, claim_folder
from cycleqd_jax.types import InputError


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("model/Merged-Q8_0.gguf", r"expected a new place or a model folder to replace, got Merged-Q8_0\.gguf"),
        ("best_elite/notes.txt", r"got notes\.txt in .*best_elite; move it away"),
        ("model/additional_chat_templates/notes.txt", r"got additional_chat_templates/notes\.txt"),
        ("tables", "expected a folder of the run in .*tables, got a file; remove it"),
        ("grid.json/x", r"expected a file of the run in .*grid\.json, got a folder; remove it"),
        ("tables/results.json/x", r"expected a file of the run in .*results\.json, got a folder; remove it"),
        ("figures/curves.png/x", r"expected a file of the run in .*curves\.png, got a folder; remove it"),
    ],
)
def test_a_place_that_no_result_can_take_is_refused_before_the_run(config, name, named):
    claim_folder(config)
    place = config.folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    if name.startswith("model/"):
        (config.folder / "model" / "config.json").touch()
    with pytest.raises(InputError, match=named):
        check_folder(config)


@pytest.mark.parametrize("key", ["output", "cache"])
def test_a_link_that_leads_nowhere_is_refused_before_the_run(config, key, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    config = dataclasses.replace(config, **{key: str(tmp_path / "link" / "x")})
    with pytest.raises(InputError, match=f"got a link that leads nowhere in .*link; choose another {key}"):
        check_folder(config)
    (tmp_path / "gone").mkdir()
    check_folder(config)


@pytest.mark.parametrize("key", ["output", "cache"])
def test_a_place_without_permission_is_refused_before_the_run(config, key, tmp_path, monkeypatch):
    config = dataclasses.replace(config, cache=str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    config.folder.mkdir()
    place = str(config.folder if key == "output" else config.cache)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != place)
    with pytest.raises(InputError, match=rf"expected to write into {place}, got a folder without .*; choose another {key}"):
        check_folder(config)


@pytest.mark.parametrize("key", ["output", "cache"])
def test_a_name_that_is_too_long_is_refused_before_the_run(config, key, tmp_path):
    config = dataclasses.replace(config, **{key: str(tmp_path / "no" / ("é" * 128) / "x")})
    with pytest.raises(InputError, match=rf"expected names of at most 255 bytes, got 256 in .*; choose another {key}"):
        check_folder(config)
