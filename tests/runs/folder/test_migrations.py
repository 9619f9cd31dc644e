"""Run folders of older versions continue: ``schema0/`` is one of the version that recorded no schema."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from cycleqd_jax.config import load_config
from cycleqd_jax.report import open_run
from cycleqd_jax.report.read import load_config as load_config_text
from cycleqd_jax.report.status import read_status
from cycleqd_jax.runs.audit import run_digest, verify_run
from cycleqd_jax.runs.folder import migrations
from cycleqd_jax.runs.folder.migrations import migrate
from cycleqd_jax.runs.folder.run_folder import check_folder, check_inputs, claim_folder, compare_inputs
from cycleqd_jax.schema import SCHEMA
from cycleqd_jax.types import InputError

OLD = Path(__file__).parent / "schema0"
DIGEST = "c75d8b85f05959cd1548f4a14735696d558bd018ffbdeea9fe201438e8b12b13"
"""That of the folder, as the version that wrote it computed it."""


@pytest.fixture
def old(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def schemas(folder):
    texts = {name: (folder / name).read_text() for name in ("config.yaml", "inputs.json", "grid.json")}
    return {name: yaml.safe_load(text).get("schema", 0) for name, text in texts.items()}


def disagreements(folder):
    return [text for text in verify_run(folder).problems if "expected base with digest" not in text]


def test_an_old_folder_is_read_as_it_is(old):
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    assert run_digest(old) == DIGEST
    assert disagreements(old) == []
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert set(schemas(old).values()) == {0}


def test_a_run_that_continues_migrates_its_folder(old):
    config = load_config(old / "config.yaml", [f"output={old}"])
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    check_folder(config)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    claim_folder(config)
    assert set(schemas(old).values()) == {SCHEMA}
    assert (old / "history.jsonl").read_bytes() == before["history.jsonl"]
    for name in ("inputs.json", "grid.json"):
        assert json.loads((old / name).read_text()) == {"schema": 1, **json.loads(before[name])}
    assert run_digest(old) == DIGEST
    assert disagreements(old) == []
    check_folder(config)
    compare_inputs(old, {"base": "0123456789abcdef"})
    after = {path.name: path.read_bytes() for path in old.iterdir()}
    claim_folder(config)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == after


@pytest.mark.parametrize("at", range(3))
def test_an_interrupted_migration_is_repeated(old, tmp_path, monkeypatch, at):
    whole = Path(shutil.copytree(old, tmp_path / "whole"))
    migrate(whole)
    writes = []

    def write(real):
        def stopping(path, value):
            writes.append(path)
            if len(writes) > at:
                raise KeyboardInterrupt
            real(path, value)

        return stopping

    with monkeypatch.context() as patch:
        for name in ("write_json", "write_text"):
            patch.setattr(migrations, name, write(getattr(migrations, name)))
        with pytest.raises(KeyboardInterrupt):
            migrate(old)
    assert schemas(old)["config.yaml"] == 0
    assert run_digest(old) == DIGEST
    migrate(old)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_a_damaged_old_folder_is_refused(old):
    (old / "grid.json").write_text("{")
    with pytest.raises(
        InputError, match=r"^expected files of a run that can be read, got an error \(.*\) in .*; restore them$"
    ):
        migrate(old)
    assert yaml.safe_load((old / "config.yaml").read_text()).get("schema") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"^expected the digests of a run's inputs in .*inputs\.json, got an error \(.*\); restore the file$"),
        ("[]", r"with versions in .*inputs\.json, got list; restore the file$"),
        ('{"base": "x"}', r"with versions in .*inputs\.json, got no versions; restore the file$"),
        (
            '{"base": "x", "versions": {}, "schema": 7}',
            r"^expected a file of schema 1 or older, got schema 7 in .*inputs\.json",
        ),
    ],
)
def test_damaged_or_newer_inputs_are_refused(old, content, message):
    (old / "inputs.json").write_text(content)
    for read in (migrate, lambda folder: compare_inputs(folder, {}), lambda folder: check_inputs(folder, {}, "cpu", print)):
        with pytest.raises(InputError, match=message):
            read(old)


@pytest.mark.parametrize("schema", ["2", "'2'", "2 # x", " 2", "[", "-1"])
def test_a_folder_of_a_newer_version_is_refused_by_all_who_read_it(old, schema):
    config = old / "config.yaml"
    config.write_text(f"{config.read_text()}schema: {schema}\n")
    message = r"^expected (a file of schema 1 or older, got schema 2|schema to be a version, got .*) in .*config\.yaml; "
    for read in (open_run, read_status, load_config_text):
        with pytest.raises(InputError, match=message):
            read(old)


def test_there_is_a_migration_from_every_schema():
    assert len(migrations.MIGRATIONS) == SCHEMA
