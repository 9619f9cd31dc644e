"""The run folder: which runs may continue in it, and what is recorded of their inputs."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

from cycleqd_jax.config import load_config
from cycleqd_jax.runs import folder as module
from cycleqd_jax.runs.folder import check_folder, check_inputs, claim_folder, versions
from cycleqd_jax.types import InputError


@pytest.fixture
def config(tmp_path):
    return load_config(
        {"name": "demo", "output": str(tmp_path / "run"), "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]},
        ["search.generations=5"],
    )


def changed(config, **search):
    return dataclasses.replace(config, search=dataclasses.replace(config.search, **search))


def begin(config):
    claim_folder(config)
    (config.folder / "history.jsonl").touch()
    (config.folder / "tables").mkdir()
    (config.folder / "tables" / "results.json").write_text("{}")


def test_a_claimed_folder_holds_the_config_and_the_versions(config):
    claim_folder(config)
    stored = yaml.safe_load((config.folder / "config.yaml").read_text())
    assert stored.pop("versions") == versions()
    assert load_config(stored) == config


def test_without_scores_another_config_claims_the_folder(config):
    claim_folder(config)
    other = changed(config, bins=7)
    check_folder(other)
    claim_folder(other)
    assert load_config(config.folder / "config.yaml") == other


def test_a_run_that_continues_keeps_its_files(config):
    begin(config)
    before = (config.folder / "config.yaml").read_bytes()
    claim_folder(config)
    assert (config.folder / "config.yaml").read_bytes() == before
    assert (config.folder / "tables" / "results.json").exists()


def test_more_generations_remove_the_results_and_change_nothing_else(config, monkeypatch):
    begin(config)
    first = yaml.safe_load((config.folder / "config.yaml").read_text())
    monkeypatch.setattr(module, "versions", lambda: {"jax": "another"})
    more = dataclasses.replace(changed(config, generations=9), baselines=("finetune_all",))
    check_folder(more)
    claim_folder(more)
    first["search"]["generations"] = 9
    assert yaml.safe_load((config.folder / "config.yaml").read_text()) == first
    assert not (config.folder / "tables" / "results.json").exists()


@pytest.mark.parametrize(("key", "value"), [("bins", 7), ("generations", 4), ("batch_size", 2)])
def test_a_folder_with_scores_of_another_config_is_refused(config, key, value):
    begin(config)
    before = getattr(config.search, key)
    with pytest.raises(InputError, match=f"expected search.{key} {before}, as in the run in .*, got {value}; choose another"):
        check_folder(changed(config, **{key: value}))


def test_a_folder_that_is_no_run_is_refused(config):
    config.folder.mkdir()
    (config.folder / ".lock").touch()
    check_folder(config)
    (config.folder / "thesis.tex").touch()
    with pytest.raises(InputError, match="got something that is not a run folder; choose another output"):
        check_folder(config)


def test_inputs_are_recorded_once_and_compared_afterwards(tmp_path):
    inputs = {"base": "1234", "mbpp/train": "5678"}
    lines = []
    check_inputs(tmp_path, inputs, lines.append)
    assert json.loads((tmp_path / "inputs.json").read_text()) == inputs | {"versions": versions()}
    check_inputs(tmp_path, inputs, lines.append)
    assert lines == []
    with pytest.raises(InputError, match=r"expected mbpp/train with digest 5678, as when the run .* began, got 9; restore it"):
        check_inputs(tmp_path, inputs | {"mbpp/train": "9"}, lines.append)


def test_other_versions_get_a_warning(tmp_path, monkeypatch):
    lines = []
    check_inputs(tmp_path, {}, lines.append)
    before = versions()
    monkeypatch.setattr(module, "versions", lambda: before | {"jax": "99"})
    check_inputs(tmp_path, {}, lines.append)
    (line,) = lines
    assert line.startswith("warning: versions changed since this run began")
    assert line.endswith(f"bit for bit: jax {before['jax']} → 99")
