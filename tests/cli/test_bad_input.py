"""What is wrong with the input is said in one sentence, with exit code 2, before anything is done or written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from cycleqd_jax.cli import main

from .conftest import TASKS, small_config, write_config


def refused(capsys, *argv: str) -> str:
    assert main(list(argv)) == 2
    error = capsys.readouterr().err
    assert error.startswith("cycleqd: ")
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("serch.generations=3", "serch"),
        ("search.generatons=3", "search.generations"),
        ("search.generations=many", "search.generations"),
        ("search.generations=-1", "search.generations"),
        ("tasks.0.name=dbbench", "dbbench"),
        ("tasks.0.kind=chess", "chess"),
        ("tasks.0.options.colour=red", "colour"),
        ("tasks=[]", "tasks"),
        ("model.base=/nowhere", "/nowhere"),
        ("tasks.0.train=/nowhere.jsonl", "/nowhere.jsonl"),
        ("genome.mutation=gaussian", "genome.mutation"),
        ("sandbox.isolation=magic", "sandbox.isolation"),
        ("seed", "key=value"),
    ],
)
def test_config(tmp_path, capsys, override, named):
    config = write_config(tmp_path)
    assert named in refused(capsys, "run", str(config), override)
    assert not (tmp_path / "run").exists()


def test_config_file(tmp_path, capsys):
    assert "missing.yaml" in refused(capsys, "run", str(tmp_path / "missing.yaml"))
    (tmp_path / "bad.yaml").write_text("name: [")
    assert "bad.yaml" in refused(capsys, "run", str(tmp_path / "bad.yaml"))


def test_folder_of_another_config(finished, capsys):
    before = {path: path.read_bytes() for path in (finished / "run").rglob("*") if path.is_file()}
    assert "search.generations" in refused(capsys, "run", str(finished / "config.yaml"), "search.generations=5")
    assert "seed" in refused(capsys, "evolve", str(finished / "config.yaml"), "seed=1")
    assert {path: path.read_bytes() for path in (finished / "run").rglob("*") if path.is_file()} == before


def test_folder_of_something_else(tmp_path, capsys):
    config = write_config(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    assert "not a run folder" in refused(capsys, "run", str(config))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.fixture
def experts(finished, tmp_path):
    """A config that names the trained models as folders, which tests may spoil."""
    models = {}
    for folder in (finished / "cache" / "models").iterdir():
        name = folder.name.rsplit("-", 1)[0]
        models[name] = tmp_path / name
        shutil.copytree(folder, models[name])
    config = small_config(tmp_path)
    config["model"] = {"base": str(models["base"]), "experts": {t: str(models[f"expert-{t}"]) for t in TASKS}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, models


def change_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def test_experts_given_as_folders(experts, finished):
    path, _ = experts
    assert main(["evolve", str(path)]) == 0
    run = json.loads((path.parent / "run" / "history.jsonl").read_text().splitlines()[0])
    assert run["scores"] == json.loads((finished / "run" / "history.jsonl").read_text().splitlines()[0])["scores"]


def test_two_tasks(experts):
    path, _ = experts
    config = yaml.safe_load(path.read_text())
    config["tasks"] = config["tasks"][:2]
    del config["model"]["experts"][TASKS[2]]
    path.write_text(yaml.safe_dump(config))
    assert main(["run", str(path)]) == 0
    results = json.loads((path.parent / "run" / "tables" / "results.json").read_text())
    assert set(results["methods"]["cycleqd"]["test"]) == {*TASKS[:2], "average"}


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda w: {k: v for k, v in w.items() if "norm" not in k}, "norm"),
        (lambda w: {k: v[:-1] if "embed" in k else v for k, v in w.items()}, "embed_tokens"),
        (lambda w: {k: v.astype(np.float16) for k, v in w.items()}, "float16"),
    ],
)
def test_expert_of_another_make(experts, capsys, spoil, named):
    path, models = experts
    change_weights(models["expert-dbbench"], spoil)
    error = refused(capsys, "run", str(path))
    assert named in error
    assert "expert-dbbench" in error
    assert not (path.parent / "run").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_numbers(experts, capsys, value):
    path, models = experts

    def spoil(weights):
        name = next(k for k in weights if "down_proj" in k)
        weights[name].flat[3] = value
        return weights

    change_weights(models["expert-mbpp"], spoil)
    assert "down_proj" in refused(capsys, "evolve", str(path))


def test_fewer_experts_than_tasks(experts, capsys):
    path, _ = experts
    config = yaml.safe_load(path.read_text())
    del config["model"]["experts"]["dbbench"]
    path.write_text(yaml.safe_dump(config))
    assert "dbbench" in refused(capsys, "run", str(path))


@pytest.mark.parametrize(
    ("content", "named"), [("", "empty"), ('{"task_id": 1}\n' * 2, "line 1"), ('{"id": 1}\nnot json\n', "line 2")]
)
def test_data(tmp_path, capsys, content, named):
    (tmp_path / "data.jsonl").write_text(content)
    error = refused(capsys, "run", str(write_config(tmp_path)), f"tasks.mbpp.train={tmp_path / 'data.jsonl'}")
    assert "data.jsonl" in error
    assert named in error
    assert not (tmp_path / "run").exists()
