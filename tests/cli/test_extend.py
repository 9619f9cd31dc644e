"""``cycleqd extend``: what it refuses, and a finished run that goes on with another task, and without one."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from cycleqd_jax.cli import main
from cycleqd_jax.report import open_run
from cycleqd_jax.runs.folder.run_folder import versions
from cycleqd_jax.search import Journal

from ..runs.searched import TASKS, write_run
from ..small_run import finished, history, kill_at

__all__ = ["finished"]

NEW = "humaneval"


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished search without models."""
    folder = write_run(tmp_path_factory.mktemp("searched") / "run")
    file = folder / "config.yaml"
    tree = yaml.safe_load(file.read_text()) | {"schema": 1, "versions": versions()}
    file.write_text(yaml.safe_dump(tree))
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a task to add or a task to remove, got neither; give --task or --remove"),
        (("--remove", "mbpp", "--expert", "x"), "expected a new task with the expert x, got none; give --task"),
        (("--task", "mbpp"), "expected a name that is none of mbpp, dbbench, os_interaction, got --task mbpp; give another"),
        (("--remove", NEW), "expected a task of the run (mbpp, dbbench, os_interaction), got --remove humaneval; correct it"),
        (("--task", NEW, "--generations", "0"), "expected at least one further generation, got 0; correct --generations"),
        (("--task", NEW, "--output", "run"), "expected another folder than that of the run, which stays as it is, got run"),
        (("--task", NEW), "expected the digests of the run's models in run/inputs.json"),
    ],
)
def test_what_cannot_be_extended_is_refused(searched, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(searched.parent)
    assert main(["extend", "run", *arguments]) == 2
    assert f"cycleqd: {message}" in capsys.readouterr().err
    assert not (searched.parent / "run-extended").exists()


def test_a_run_that_is_not_finished_is_refused(searched, tmp_path, capsys):
    folder = shutil.copytree(searched, tmp_path / "run")
    lines = (folder / "history.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "history.jsonl").write_bytes(b"".join(lines[:-2]))
    assert main(["extend", str(folder), "--task", NEW]) == 2
    assert "expected a finished search of 15 individuals, got 13" in capsys.readouterr().err


SIZES = ["train_size=8", "validation_size=8", "test_size=8", "finetune_size=400", "max_new_tokens=40"]


@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_a_finished_run_takes_a_fourth_task_and_loses_one(finished, tmp_path, capsys, compiled):
    shutil.copytree(finished / "cache", tmp_path / "cache")
    run, new = finished / "run", tmp_path / "four"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    sizes = [f"tasks.{NEW}.{one}" for one in SIZES]
    shared = [f"cache={tmp_path / 'cache'}"]
    command = ["extend", str(run), "--task", NEW, "--generations", "3", "--output", str(new), *sizes, *shared]
    kill_at(command, new / "history.jsonl", 9, compiled, seconds=900)
    assert main(command) == 0
    assert "humaneval" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    old, found = history(run), {one["id"]: one for one in history(new)}
    assert len(found) == 4 + (4 + 3) * 2
    scored = 0
    for one in old:
        mine = found[one["id"] if one["id"] < 3 else one["id"] + 1]
        if mine["scores"] is not None:
            scored += 1
            assert {task: mine["scores"][task] for task in TASKS} == one["scores"]
            assert {task: mine["items"][task] for task in TASKS} == one["items"]
            assert len(mine["items"][NEW]) == 8
    assert scored > 3
    assert {one["id"] for one in found.values() if one["generation"] == 6} == {16, 17}
    capsys.readouterr()
    assert main(["verify", str(new)]) == 0
    capsys.readouterr()
    assert main(["status", str(new), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["stage"], status["individuals"], status["total"]) == ("finished", 18, 18)
    assert main(["lineage", str(new), "17"]) == 0
    assert main(["export", str(new), "--child", "17"]) == 0
    carried = next(i for i, one in found.items() if one["generation"] >= 0 and one["scores"] is not None)
    assert main(["export", str(new), "--child", str(carried)]) == 0
    assert {*open_run(new).lineage(17)[0]["mixing"]} == {*TASKS, NEW}
    # Without DBBench, its expert stays.
    less = tmp_path / "less"
    assert main(["extend", str(new), "--remove", "dbbench", "--generations", "2", "--output", str(less)]) == 0
    assert main(["verify", str(less)]) == 0
    journal = Journal(less / "history.jsonl", read_only=True)
    assert [journal[k].expert for k in range(4)] == ["mbpp", "os_interaction", NEW, "dbbench"]
    assert journal[0].scores.keys() == {"mbpp", "os_interaction", NEW}
    assert "expert/dbbench" in json.loads((less / "tables" / "results.json").read_text())["methods"]
