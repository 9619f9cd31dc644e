"""The config of a run that extends a finished one: what is checked before training, and the same call again."""

from __future__ import annotations

import shutil
import types
from pathlib import Path

import pytest
import yaml

from cycleqd_jax.cli import extend as command
from cycleqd_jax.cli.parser import make_parser
from cycleqd_jax.config import to_dict
from cycleqd_jax.files import write_json
from cycleqd_jax.runs.extension import extend as extension
from cycleqd_jax.runs.extension.extend import extend
from cycleqd_jax.runs.extension.origin import take_origin
from cycleqd_jax.runs.folder.run_folder import versions
from cycleqd_jax.schema import SCHEMA
from cycleqd_jax.types import InputError

from ..searched import TASKS, write_run

NEW = "humaneval"


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A finished search whose models are only names; ``trained`` lists the experts that were trained."""
    folder, trained = write_run(tmp_path / "run"), []
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"schema": SCHEMA, "versions": versions()}))
    write_json(folder / "inputs.json", {"schema": SCHEMA, "versions": {}})
    models = types.SimpleNamespace(base=Path("hub/base"), expert=lambda name: Path(f"hub/{name}"))
    monkeypatch.setattr(extension, "recorded_folders", lambda config: models)
    monkeypatch.setattr(extension, "_train", lambda tree, task, *rest: trained.append(task) or f"cache/{task}")
    return folder, trained


def begin(config):
    """Begins the new run: its folder has a config, a copy of the old run and a journal."""
    config.folder.mkdir()
    tree = {**to_dict(config), "schema": SCHEMA, "versions": versions()}
    (config.folder / "config.yaml").write_text(yaml.safe_dump(tree))
    take_origin(config, config.folder, {}, lambda line: None)
    first = (Path(config.origin) / "history.jsonl").read_text().splitlines(keepends=True)[0]
    (config.folder / "history.jsonl").write_text(first)


@pytest.mark.exhaustive
def test_what_differs_is_found_before_an_expert_is_trained(finished, tmp_path):
    folder, trained = finished
    with pytest.raises(InputError, match=r"expected seed 0, as in the run in .*, got 1; use the old value"):
        extend(folder, tmp_path / "new", task=NEW, overrides=["seed=1"])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"expected a run folder or an empty place .* which has thesis.tex"):
        extend(folder, tmp_path / "new", task=NEW)
    assert trained == []
    assert extend(folder, tmp_path / "other", task=NEW).given_experts[NEW] == f"cache/{NEW}"
    assert trained == [NEW]


def test_the_same_call_continues_without_the_old_folder(finished, tmp_path):
    folder, trained = finished
    config = extend(folder, tmp_path / "new", task=NEW)
    assert config.given_experts == {**{name: f"hub/{name}" for name in TASKS}, NEW: f"cache/{NEW}"}
    begin(config)
    assert extend(folder, tmp_path / "new", task=NEW) == config
    shutil.rmtree(folder)
    assert extend(folder, tmp_path / "new", task=NEW) == config
    assert trained == [NEW]
    with pytest.raises(InputError, match="expected the folder of a finished run"):
        extend(folder, tmp_path / "other", task=NEW)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("given", "output"), [(".", "run-extended"), ("../run", "run-extended"), ("checkpoints/..", "run-extended")]
)
def test_the_new_folder_lies_beside_the_old_one(finished, monkeypatch, given, output):
    calls = []
    monkeypatch.chdir(finished[0])
    monkeypatch.setattr(command, "extend", lambda folder, output, **options: calls.append((folder, output)))
    monkeypatch.setattr(command, "run_all", lambda *args: None)
    command.extend_run(make_parser().parse_args(["extend", given, "--task", NEW]), [])
    ((folder, place),) = calls
    assert folder.resolve() == finished[0].resolve()
    assert place.resolve() == finished[0].resolve().with_name("run-extended")
