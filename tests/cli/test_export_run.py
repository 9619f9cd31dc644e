"""Models that are rebuilt from a run folder without its checkpoints."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
from types import SimpleNamespace

import pytest

import cycleqd_jax as cq
from cycleqd_jax.cli import main
from cycleqd_jax.cli.export import names_a_run
from cycleqd_jax.runs.export import model_folders as export
from cycleqd_jax.runs.folder.models import ModelChoice
from cycleqd_jax.types import InputError

from .conftest import TASKS, history


@pytest.fixture
def bare(finished, tmp_path):
    """A copy of the finished run that has lost its checkpoints and its models."""
    folder = tmp_path / "moved"
    shutil.copytree(finished / "run", folder)
    for name in ("checkpoints", "model"):
        shutil.rmtree(folder / name)
    return folder


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.e2e
def test_the_selected_model_is_rebuilt_bit_by_bit(finished, bare, capsys):
    assert main(["export", str(bare), "--selected", "--output", str(bare.parent / "m")]) == 0
    assert f"model: {bare.parent / 'm'}" in capsys.readouterr().out
    assert weights(bare.parent / "m") == weights(finished / "run" / "model")
    card, before = ((folder / "README.md").read_text() for folder in (bare.parent / "m", finished / "run" / "model"))
    assert card.partition("Made by")[0] == before.partition("Made by")[0]
    assert main(["export", str(bare)]) == 0  # export.method
    assert weights(bare / "exports" / "selected") == weights(finished / "run" / "model")


@pytest.mark.e2e
def test_every_individual_can_be_rebuilt(finished, bare, trained, capsys):
    results = json.loads((bare / "tables" / "results.json").read_text())
    assert main(["export", str(bare), "--aggregate"]) == 0
    record = json.loads((bare / "exports" / "exports%2Faggregate.json").read_text())
    assert record["model"] == results["aggregate"]
    assert main(["export", str(bare), "--best-elite"]) == 0
    best = json.loads((bare / "exports" / "exports%2Fbest_elite.json").read_text())["model"]["id"]
    assert best == results["best_elite"]
    assert main(["export", str(bare), "--child", str(best)]) == 0
    assert weights(bare / "exports" / f"child-{best}") == weights(bare / "exports" / "best_elite")
    card = (bare / "exports" / f"child-{best}" / "README.md").read_text()
    assert f"those of individual {best}, which was chosen by its id." in card
    assert "Scores of the individual on the train problems: mbpp" in card
    elite = cq.open_run(bare).archives["dbbench"][0]
    cell = ",".join(map(str, elite["cell"]))
    assert main(["export", str(bare), "--elite", f"dbbench/{cell}"]) == 0
    assert (
        json.loads((bare / "exports" / f"exports%2Felite-dbbench-{cell.replace(',', '-')}.json").read_text())["model"]["id"]
        == elite["id"]
    )
    last = history(bare)[-1]
    config = str(finished / "config.yaml")
    assert main(["export", str(bare), "--child", str(last["id"])]) == 0
    capsys.readouterr()
    assert main(["evaluate", config, "--model", str(bare / "exports" / f"child-{last['id']}"), "sandbox.workers=2"]) == 0
    assert "train: " + ", ".join(f"{t} {last['scores'][t]:.3f}" for t in TASKS) in capsys.readouterr().out


@pytest.mark.e2e
def test_what_does_not_fit_is_refused(finished, bare, capsys):
    for argv, message in (
        (["--child", "999"], "expected individual 999, got 11 others"),
        (["--elite", "mbpp/99,99"], "expected a filled cell of the archive of mbpp, such as"),
        (["--elite", "nothing/0,0"], "expected a task of the run (mbpp, dbbench, os_interaction), got 'nothing'"),
        (["--elite", "mbpp"], "expected an elite TASK/CELL such as mbpp/3,7, got 'mbpp'"),
        (["seed=3"], "expected no overrides for a run folder"),
        (["--child", "4", "--output", str(bare / "tables")], "expected a new place or a model folder to replace"),
    ):
        assert main(["export", str(bare), *argv]) == 2, argv
        assert message in capsys.readouterr().err
    digests = json.loads((bare / "inputs.json").read_text())
    (bare / "inputs.json").write_text(json.dumps(digests | {"expert/mbpp": "0" * 16}))
    assert main(["export", str(bare), "--child", "4"]) == 2
    assert "expected expert/mbpp with digest 0000000000000000, which the run trained, got " in capsys.readouterr().err
    (bare / "tables" / "selection.json").unlink()
    assert main(["export", str(bare), "--selected"]) == 2
    assert "expected a finished selection" in capsys.readouterr().err


def test_options_of_a_run_folder_need_one(tmp_path):
    given = {
        "config": str(tmp_path / "c.yaml"),
        "child": None,
        "elite": None,
        "selected": False,
        "aggregate": False,
        "output": None,
    }
    assert not names_a_run(argparse.Namespace(**given))
    assert names_a_run(argparse.Namespace(**given | {"config": str(tmp_path)}))
    with pytest.raises(InputError, match="expected a run folder for --child, got"):
        names_a_run(argparse.Namespace(**given | {"child": 3}))


@pytest.mark.parametrize("name", ["base", "expert/mbpp"])
def test_a_model_of_the_run_is_not_replaced(tmp_path, monkeypatch, name):
    """Neither its base nor an expert: they are what the model is rebuilt from."""
    place = tmp_path / "model"
    folders = SimpleNamespace(
        search={"base": tmp_path / "base", "expert/mbpp": tmp_path / "a"} | {name: tmp_path / "." / "model"}
    )
    opened = contextlib.nullcontext()
    opened.config, opened.journal, opened.models = None, dict, SimpleNamespace(folders=folders)
    monkeypatch.setattr(export, "RunModels", lambda *args: opened)
    monkeypatch.setattr(export, "find_ingredients", lambda *args: SimpleNamespace(ids=(), weights=None, facts={}))
    monkeypatch.setattr(export, "ancestors_of", lambda *args: ())
    monkeypatch.setattr(export.report, "open_run", lambda folder: None)
    with pytest.raises(
        InputError, match=f"expected a folder that is no model of the run, got {name} in {place}; choose another"
    ):
        export.export_from_folder(tmp_path, ModelChoice("child", id=0), place, progress=print, log=print)
