"""The parts of divided benchmark files, and the generated problems: each is solved by its own gold solution."""

from __future__ import annotations

import json
import random

import pytest

from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.tasks import TaskOptions, make_task
from cycleqd_jax.tasks.dbbench.databases import Table
from cycleqd_jax.tasks.records import read_rows
from cycleqd_jax.tasks.replay import replay_solutions

from ..script import load_script

TABLE = Table("Two words", ("Name", "No.", "Club's"), (("Ann", "7", "A"), ("Bob", "8", "B"), ("O'Neil", "9", "A")))


@pytest.fixture(scope="module")
def script():
    return load_script("divide_benchmarks")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(count, name="Players"):
    """Questions about tables of their own; the last column identifies a row."""
    return [
        {
            "id": f"{name}/{i}",
            "type": ["other"],
            "description": f"Which number has Ann in {name} {i}?",
            "label": ["7"],
            "sql": {"query": f"SELECT `No.` FROM `{name} {i}` WHERE Name = 'Ann'"},
            "table": {
                "table_name": f"{name} {i}",
                "table_info": {"columns": [{"name": c} for c in (f"Name {i}", "No.", "Club's")], "rows": TABLE.rows},
            },
        }
        for i in range(count)
    ]


@pytest.mark.exhaustive
def test_parts_and_overrides(script, tmp_path, capsys):
    file = write(tmp_path / "dbbench.jsonl", records(30))
    config = {
        "name": "x",
        "cache": str(tmp_path / "cache"),
        "tasks": [
            {"name": "dbbench", "train": str(file), "train_size": 4, "validation_size": 3, "test_size": 5},
            {"name": "mbpp"},
        ],
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    script.main([str(tmp_path / "config.yaml"), str(tmp_path / "parts"), "--generated", "20", "tasks.dbbench.test_size=6"])
    parts = {one: read_rows(tmp_path / "parts" / "dbbench" / f"{one}.jsonl") for one in ("search", "test", "finetune")}
    assert {one: len(rows) for one, rows in parts.items()} == {"search": 7, "test": 6, "finetune": 30 - 13 + 20}
    ids = [row.id for rows in parts.values() for row in rows]
    assert len(set(ids)) == len(ids) == 50
    own = {row.fields["table"]["table_name"] for row in parts["finetune"]}
    assert not own & {row.fields["table"]["table_name"] for one in ("search", "test") for row in parts[one]}
    assert f"  tasks.dbbench.finetune={tmp_path / 'parts' / 'dbbench' / 'finetune'}.jsonl" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_generated_problems_are_solved_by_their_gold_solutions(script, tmp_path):
    def task(path, sandbox):
        return make_task("dbbench", TaskOptions(sandbox=sandbox, name="dbbench", train=path, test=test, memo=False))

    test = write(tmp_path / "test.jsonl", records(1, "Others"))
    given = write(tmp_path / "rows.jsonl", records(3))
    with Sandbox() as sandbox:
        rows = read_rows(given)
        found = script.generate(task(given, sandbox), rows, rows[:1], 60, random.Random(0))
        assert len(found) == 60
        assert {one["type"][0] for one in found} == {"INSERT", "UPDATE", "other", "counting"}
        assert all(one["table"]["table_name"] != "Players 0" for one in found)
        generated = task(write(tmp_path / "found.jsonl", found), sandbox)
        assert all(one.score.value == 1.0 for one in replay_solutions(generated, ["train"]))
        assert all(one.score.value == 0.0 for one in replay_solutions(generated, ["train"], stub=True))
        assert len(generated.demonstrations("train")) == 60  # each has a query, or a change


def test_names_and_values_in_sql(script):
    assert script.quoted("Name") == "Name"
    assert script.quoted("Fee/Notes") == "`Fee/Notes`"
    assert script.quoted("a`b") == "`a``b`"
    assert script.text_of("O'Neil \\") == "'O''Neil \\\\'"


def test_cells_are_of_rows_that_one_column_identifies(script):
    found = set(script.cells(TABLE, random.Random(0)))
    assert ("Name", "O'Neil", "Club's", "A") in found
    assert all(column != "Club's" for column, key, _, _ in found if key == "A")
    assert all(not key.isdigit() for _, key, _, _ in found)
