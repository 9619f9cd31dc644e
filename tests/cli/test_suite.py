"""``cycleqd evaluate --suite``: the models of a finished run on other tasks."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import yaml

from cycleqd_jax.cli import main
from cycleqd_jax.tasks import miniature

from .conftest import write_config

ARC = 70  # more than the default test_size of a task


def write_suite(folder, **changes):
    """Multiple choice and programs: two ways of scoring."""
    rng = random.Random(0)
    rows = []
    for i in range(ARC):
        choices = [{"label": label, "text": f"{rng.choice('abc')} {i} {label}"} for label in "ABCD"]
        rows.append(
            {"id": f"q{i}", "question": {"stem": f"Which is {i}?", "choices": choices}, "answerKey": rng.choice("ABCD")}
        )
    (folder / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    miniature.write(folder / "problems", 0, 8, 8, ["mbpp"], validation=0)
    tasks = [
        {"name": "arc", "kind": "arc", "data": str(folder / "arc.jsonl")},
        {"name": "programs", "kind": "mbpp", "data": str(folder / "problems" / "mbpp" / "test.jsonl"), "limit": 6},
    ]
    tasks[1] |= {"max_new_tokens": 40, "options": dict(miniature.OPTIONS["mbpp"])}
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump({"name": "small", "title": "Other tasks", "tasks": tasks} | changes))
    return file


@pytest.mark.e2e
def test_all_rows_on_other_tasks(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "copy")
    folder = tmp_path / "copy"
    config = write_config(folder)
    suite = write_suite(tmp_path)
    assert main(["evaluate", str(config), "--suite", str(suite)]) == 0
    shown = capsys.readouterr().out
    assert "Other tasks" in shown
    assert "share of the base model's score" in shown
    record = json.loads((folder / "run" / "tables" / "suite-small.json").read_text())
    results = json.loads((folder / "run" / "tables" / "results.json").read_text())
    assert [*record["rows"]] == [*results["methods"]]
    assert {task: facts["problems"] for task, facts in record["tasks"].items()} == {"arc": ARC, "programs": 6}
    for row in record["rows"].values():
        assert [len(row["items"][task]) for task in ("arc", "programs")] == [ARC, 6]
    keys = [json.dumps(row["key"]) for row in record["rows"].values() if row["key"] is not None]
    assert len(keys) == len(results["found"])
    before = (folder / "run" / "tables" / "suite-small.json").read_bytes()

    # Rows that are there are not scored again, if they have all problems; a changed limit scores them anew.
    del record["rows"]["uniform_merge"]
    part = next(name for name in record["rows"] if name.startswith("expert/"))
    record["rows"][part]["items"]["arc"] = record["rows"][part]["items"]["arc"][:-1]
    record["rows"]["base"]["scores"]["arc"] = 0.125
    (folder / "run" / "tables" / "suite-small.json").write_text(json.dumps(record))
    assert main(["evaluate", str(config), "--suite", str(suite)]) == 0
    again = json.loads((folder / "run" / "tables" / "suite-small.json").read_text())
    assert again["rows"]["base"]["scores"]["arc"] == 0.125
    for name in ("uniform_merge", part):
        assert again["rows"][name] == json.loads(before)["rows"][name]
    fewer = write_suite(tmp_path, slots=5)
    (folder / "run" / "tables" / "suite-small.json").write_bytes(b"{")
    assert main(["evaluate", str(config), "--suite", str(fewer)]) == 0
    assert json.loads((folder / "run" / "tables" / "suite-small.json").read_text())["rows"] == json.loads(before)["rows"]
    assert main(["report", str(folder / "run")]) == 0
    assert '<section id="suites">' in (folder / "run" / "report.html").read_text()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_len": 100_000}, "expected max_len of at most "),
        ({"tasks": [{"name": "a", "kind": "ark", "data": "x"}]}, "arc"),
        ({"tasks": [{"name": "a", "kind": "arc", "data": "absent.jsonl"}]}, "absent.jsonl"),
    ],
)
def test_suites_that_are_refused(finished, tmp_path, capsys, changes, words):
    assert main(["evaluate", str(finished / "config.yaml"), "--suite", str(write_suite(tmp_path, **changes))]) == 2
    assert words in capsys.readouterr().err


def test_a_model_and_a_suite_are_refused(tmp_path, capsys):
    config = write_config(tmp_path)
    assert main(["evaluate", str(config), "--model", "m", "--suite", "s.yaml"]) == 2
    assert "expected --model or --suite, got both" in capsys.readouterr().err
