"""Whether the files of a run agree: what is damaged is named, with its file and what to do."""

from __future__ import annotations

import json
import re
import shutil

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from cycleqd_jax.cli import main
from cycleqd_jax.files import write_json
from cycleqd_jax.runs.audit import run_digest, verify_run
from cycleqd_jax.runs.export.model_folders import record_export
from cycleqd_jax.runs.inputs.digests import folder_digest
from cycleqd_jax.search import Checkpoints, Journal, read_checkpoint
from cycleqd_jax.types import InputError

from .folder.test_replay import METHODS, QUICK
from .searched import edit, write_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


@pytest.mark.parametrize("method", [pytest.param(m, marks=pytest.mark.exhaustive) if m not in QUICK else m for m in METHODS])
def test_a_whole_run_agrees(tmp_path, method):
    folder = write_run(tmp_path / "run", method)
    found = verify_run(folder)
    assert found.problems == []
    assert {"the grid", "the archives", "the tables", "the selection"} <= set(found.checked)
    assert any("checkpoints" in text for text in found.checked)
    state = read_checkpoint(folder / "checkpoints", 4).state
    flax.serialization.to_state_dict(state)
    folder2 = write_run(tmp_path / "again", method, every=3)
    assert run_digest(folder) == run_digest(folder2)  # the same run with other checkpoints on the way


@pytest.mark.exhaustive
def test_a_steady_run_agrees(tmp_path):
    folder = write_run(tmp_path / "run", steady=True, batch_size=1, generations=12)
    assert verify_run(folder).problems == []

    def change(lines):
        lines[9]["asked"][0] -= 1
        return lines

    edit(folder, change)
    assert any("expected the active task" in problem for problem in verify_run(folder).problems)


def change_score(lines):
    lines[5]["scores"]["mbpp"] += 0.125
    return lines


def change_score_and_items(lines):
    for line in lines[3:]:
        if line["scores"]:
            line["scores"]["mbpp"], line["items"]["mbpp"] = 0.875, [0.875]
    return lines


def change_digest(lines):
    return [line | {"digest": "0" * 16} for line in lines]


def change_expert(lines):
    scores = lines[0]["scores"]
    scores["mbpp"], lines[0]["items"]["mbpp"] = 0.375, [0.375]
    return lines


JOURNALS = {
    "a score": (
        change_score,
        r"expected the score \S+ of mbpp, the mean of its problems, got \S+ of individual 5 in .*history.jsonl",
    ),
    "scores and items": (
        change_score_and_items,
        r"expected the archives and the state that the journal gives, got another .*/4;",
    ),
    "an expert": (
        change_expert,
        r"expected the grid that the scores of the experts give, got another one in .*grid.json; remove",
    ),
    "digests": (
        change_digest,
        r"expected the genome of individual \d+ with digest 0{16}, got \w+ in .*checkpoints/4; remove it",
    ),
    "a line removed": (
        lambda lines: lines[:5] + lines[6:],
        r"expected every individual before the last generation, got none of \[5\]",
    ),
    "the end removed": (
        lambda lines: lines[:-3],
        r"expected at most the 3 generations of the journal, got a checkpoint of generation 4",
    ),
    "a parent": (
        lambda lines: [*lines[:-1], lines[-1] | {"parents": [14, 0]}],
        "expected parents of earlier generations, got parent 14",
    ),
    "a generation": (
        lambda lines: [*lines[:-1], lines[-1] | {"generation": 2}],
        "expected a child of generation 3, got expert None",
    ),
    "the active task": (
        lambda lines: [*lines[:-1], lines[-1] | {"active": "dbbench"}],
        "expected the active task 'mbpp', got 'dbb",
    ),
    "an error": (
        lambda lines: [*lines[:-1], lines[-1] | {"scores": None, "error": None}],
        "expected scores or an error, got neither",
    ),
    "one too many": (
        lambda lines: [*lines, lines[-1] | {"id": 15, "generation": 4}],
        "expected at most 15 individuals, as config",
    ),
    "twice": (lambda lines: [*lines, lines[-1]], "expected distinct ids, got id 14 of line 15 again"),
    "no record": (lambda lines: [{}], "expected a journal record"),
}


@pytest.mark.parametrize("name", JOURNALS)
def test_a_journal_that_was_edited(run, name, capsys):
    change, message = JOURNALS[name]
    edit(run, change)
    assert main(["verify", str(run)]) == 1
    out = capsys.readouterr().out

    assert re.search(message, out), out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    "change",
    [lambda one: one | {"key": [1, 2]}, lambda one: one | {"omega": [0.25, 0.5]}, lambda one: one | {"parents": [1, 0]}],
)
def test_a_child_that_a_checkpoint_covers_was_edited(run, change, capsys):
    path = run / "history.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[5] = json.dumps(change(json.loads(lines[5]))) + "\n"
    path.write_text("".join(lines))
    assert main(["verify", str(run)]) == 1
    assert "expected a journal record as the run wrote it, got one of another checksum in line 6 of" in capsys.readouterr().out
    with pytest.raises(InputError, match="got one of another checksum in line 6 of"):
        Journal(path)  # so no search continues


def save(run, change):
    """Replaces the newest checkpoint by one of a changed state."""
    stored = read_checkpoint(run / "checkpoints", 4)
    state = jax.tree.map(np.array, dict(stored.state))
    key = change(state)
    key = jax.random.wrap_key_data(jnp.asarray(stored.key_data)) if key is None else key
    shutil.rmtree(run / "checkpoints" / "4")
    checkpoints = Checkpoints(run / "checkpoints")
    checkpoints.save(4, state, key)
    checkpoints.close()


@pytest.mark.exhaustive
def test_a_checkpoint_of_another_state(run):
    def other_genome(state):
        mixing = state["archives"]["repertoires"]["genotypes"]["mixing"]
        mixing += 1e-6

    save(run, other_genome)
    assert "expected the genome of individual" in verify_run(run).problems[0]

    def other_score(state):
        state["archives"]["repertoires"]["extra_scores"]["scores"][0, 0, 0] += 0.25

    save(run, other_score)
    (problem,) = verify_run(run).problems
    assert "got another archives/repertoires/extra_scores/scores in" in problem
    assert problem.endswith("checkpoints/4; remove it, and the run continues from the checkpoint before it or from the journal")
    save(run, lambda state: jax.random.key(5))
    assert "expected the PRNG key of seed 0, got another key" in verify_run(run).problems[0]


def test_checkpoints_that_are_damaged(run):
    step = run / "checkpoints" / "4"
    data = max((path for path in (step / "search").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    for i in range(0, len(content), 7):
        content[i] ^= 0xFF
    data.write_bytes(content)
    problems = verify_run(run).problems
    assert len(problems) == 1
    assert str(step) in problems[0]
    (step / "files.json").unlink()
    (step / "meta" / "metadata").unlink()
    assert "expected a readable checkpoint, got FileNotFoundError" in verify_run(run).problems[0]
    shutil.rmtree(run / "checkpoints")
    found = verify_run(run)
    assert found.problems == []
    assert any("there are no checkpoints" in note for note in found.notes)


def test_a_run_that_writes_at_this_moment(run):
    path = run / "history.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    shutil.rmtree(run / "checkpoints" / "4")
    found = verify_run(run)
    assert found.problems == []
    assert any("incomplete line" in note for note in found.notes)
    assert path.read_bytes() == content[:-20]


@pytest.mark.parametrize(
    "name", ["results.json", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("items.json", "selection.json"))]
)
def test_tables_that_were_edited(run, name, capsys):
    path = run / "tables" / name
    path.write_text(path.read_text().replace("0.75", "0.625").replace("0.0,", "1.0,"))
    assert main(["verify", str(run)]) == 1
    out = capsys.readouterr().out
    assert "expected the means of items" in out
    assert "; remove it, and run cycleqd evaluate" in out
    path.write_text("[")
    assert main(["verify", str(run)]) == 1
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"selected": None}, {"methods": {"cycleqd": {"test": {"mbpp": "0.75"}}}}])
def test_a_table_of_another_form_is_a_problem(run, changes):
    path = run / "tables" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (problem,) = verify_run(run).problems
    assert str(path) in problem


@pytest.mark.exhaustive
def test_averages_that_were_edited(run):
    """The average decides which candidate is chosen, and is what a reader looks at first."""
    results, selection = (run / "tables" / name for name in ("results.json", "selection.json"))
    content = {file: file.read_text() for file in (results, selection)}
    results.write_text(content[results].replace('"average": 0.75', '"average": 0.875'))
    assert any("got others of ['average'] in" in problem for problem in verify_run(run).problems)
    results.write_text(content[results])
    selection.write_text(content[selection].replace('"average": 0.75', '"average": 0.875'))
    assert any("expected averages of scores, got others" in problem for problem in verify_run(run).problems)
    selection.write_text(content[selection])
    (run / "tables" / "items.json").unlink()
    found = verify_run(run)
    assert found.problems == []
    assert any("items.json lacks scores of problems of cycleqd, whose scores in" in note for note in found.notes)


def test_tables_of_another_journal(run):
    best = json.loads((run / "tables" / "results.json").read_text())["best_elite"]
    for name in ("results.json", "selection.json"):
        path = run / "tables" / name
        path.write_text(path.read_text().replace(f" {best}", " 77"))
    assert sum("expected individuals of the journal, got [77]" in problem for problem in verify_run(run).problems) == 2


def test_an_exported_model(run, capsys):
    model = run / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(100))
    assert any("recorded no digest" in note for note in verify_run(run).notes)
    record = {"folder": "model", "digest": folder_digest(model), "model": {}}
    write_json(run / "exports" / "model.json", record)
    assert main(["verify", str(run)]) == 0
    assert "model/" in capsys.readouterr().out
    write_json(run / "exports" / "model.json", record | {"individuals": 3})
    assert main(["verify", str(run)]) == 0
    assert "exported when the journal had 3 individuals, and it has" in capsys.readouterr().out
    (model / "model.safetensors").write_bytes(bytes(99) + b"1")
    assert main(["verify", str(run)]) == 1
    assert "expected the exported model with digest" in capsys.readouterr().out
    shutil.rmtree(model)
    assert main(["verify", str(run)]) == 0
    (run / "exports" / "model.json").write_text("3")
    assert main(["verify", str(run)]) == 1


@pytest.mark.parametrize(
    "names", [("best_elite", "exports/best_elite"), ("exports/a/b", "exports/a-b"), ("exports/a%2Fb", "exports/a/b")]
)
def test_every_exported_model_has_a_record_of_its_own(run, names):
    for name in names:
        (run / name).mkdir(parents=True)
        (run / name / "config.json").write_text(name)
        record_export(run, run / name, {}, 15)
    assert {f"{(run / name).name}/" for name in names} <= set(verify_run(run).checked)
    for name in names:
        (run / name / "config.json").write_text("damaged")
    assert len(verify_run(run).problems) == 2


def test_records_of_earlier_versions_are_renamed_and_kept(run):
    old, new = run / "exports" / "best_elite", run / "best_elite"
    for model in (old, new):
        model.mkdir(parents=True)
        (model / "config.json").write_text(str(model))
    write_json(run / "exports" / "best_elite.json", {"folder": "exports/best_elite", "digest": folder_digest(old)})
    (run / "exports" / "child-3.json").write_text("damaged")
    record_export(run, new, {}, 15)
    assert sorted(file.name for file in (run / "exports").glob("*.json")) == [
        "best_elite.json", "child-3.json", "exports%2Fbest_elite.json"
    ]  # fmt: skip
    (problem,) = verify_run(run).problems
    assert "child-3.json; remove it" in problem
    (old / "config.json").write_text("{}")
    record_export(run, old, {}, 15)  # no record of its earlier content stays
    assert len(verify_run(run).problems) == 1


def test_a_journal_is_not_accused_where_the_copy_of_the_other_run_is_damaged(run):
    """Which of its individuals are those of the other run is not known then."""
    edit(run, lambda lines: [line | {"active": "mbpp"} if line["id"] >= 3 else line for line in lines])
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"] = {"base": "/gone/base", "experts": {task["name"]: f"/gone/{task['name']}" for task in config["tasks"]}}
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"origin": "/gone"}))
    (run / "origin").mkdir()
    (run / "origin" / "origin.json").write_text("damaged")
    (problem,) = verify_run(run).problems
    assert "expected the digests of a run in" in problem


def test_experts_that_are_gone(run):
    write_json(run / "inputs.json", {"base": "0" * 16, "versions": {}})
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"cache": str(run / "cache")}))
    (problem,) = verify_run(run).problems
    assert problem.startswith("expected base with digest 0000000000000000, which the run trained, got 0 others")


def test_models_that_lie_elsewhere_are_named(run):
    write_json(run / "inputs.json", {"base": "0" * 16, "versions": {}})
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"] = {"base": "/gone/base", "experts": {task["name"]: f"/gone/{task['name']}" for task in config["tasks"]}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (problem,) = verify_run(run).problems
    assert problem.startswith(f"expected base in /gone/base, as {run / 'config.yaml'} says, got nothing there; put it back")


def test_the_digest(whole, run, capsys):
    assert main(["verify", str(whole), "--digest"]) == 0
    first = capsys.readouterr()
    assert len(first.out) == 65
    assert "agree" in first.err
    edit(run, lambda lines: [line | {"seconds": {"evaluate": 9.0}, "tokens": None} for line in lines])
    assert run_digest(run) == first.out.strip()
    edit(run, lambda lines: [*lines[:-1], lines[-1] | {"error": "x"}])
    assert run_digest(run) != first.out.strip()


def test_no_run_folder(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "expected a run folder" in capsys.readouterr().err
