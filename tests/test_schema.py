"""Versions of the format of run folders: older ones are read, and newer ones are refused in a sentence."""

from __future__ import annotations

import json

import pytest
import yaml

from cycleqd_jax.config import load_config
from cycleqd_jax.individual import Individual
from cycleqd_jax.report.history import load_grid
from cycleqd_jax.report.read import load_config as load_text
from cycleqd_jax.runs.folder.run_folder import check_folder, compare_inputs
from cycleqd_jax.schema import SCHEMA, check_schema
from cycleqd_jax.types import InputError

NEWER = rf"^expected a file of schema {SCHEMA} or older, got schema {SCHEMA + 1} in .*; use the version of cycleqd_jax"
CONFIG = {"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]}


@pytest.mark.parametrize("bad", ["1", 1.0, True, None, -1, [1]])
def test_a_schema_is_a_number(bad):
    with pytest.raises(InputError, match=r"expected schema to be a version, got .* in x; restore the file"):
        check_schema({"schema": bad}, "x")


def test_older_schemas_are_read():
    assert [check_schema(tree, "x") for tree in ({}, *({"schema": i} for i in range(SCHEMA + 1)))] == [0, *range(SCHEMA + 1)]


def test_files_of_a_newer_version_are_refused(tmp_path):
    newer = {"schema": SCHEMA + 1}
    config = load_config({**CONFIG, "output": str(tmp_path)})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **newer}))
    (tmp_path / "history.jsonl").touch()
    for name in ("grid.json", "inputs.json"):
        (tmp_path / name).write_text(json.dumps(newer))
    readers = [
        lambda: load_config(tmp_path / "config.yaml"),
        lambda: load_text(tmp_path),
        lambda: check_folder(config),
        lambda: load_grid(tmp_path),
        lambda: compare_inputs(tmp_path, {}),
        lambda: Individual.from_json(json.dumps(newer), "line 1 of history.jsonl"),
    ]
    for read in readers:
        with pytest.raises(InputError, match=NEWER):
            read()


def test_the_schema_of_a_config_is_no_key(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "schema": SCHEMA}, sort_keys=False))
    assert load_config(tmp_path / "config.yaml") == load_config(CONFIG)
    assert "schema" not in load_text(tmp_path).text
