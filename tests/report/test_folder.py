"""A run folder as records, against the files that it is read from."""

import json
import math
import subprocess
import sys

import pytest

from cycleqd_jax.report import RunFolder, open_run, write_report
from cycleqd_jax.report.history import load_history
from cycleqd_jax.types import InputError

TASKS = ("mbpp", "dbbench", "os_interaction")


def journal(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_individuals_are_the_lines_of_the_journal(make_run):
    folder = make_run(generations=30, quarantine=0.3)
    records = open_run(folder).individuals
    lines = journal(folder)
    assert [record["id"] for record in records] == [line["id"] for line in lines]
    fields = ["id", "generation", "expert", "active", "parents", "omega", "key", "error", "items", "seconds", "tokens"]
    for record, line in zip(records, lines, strict=True):
        assert list(record) == [*fields, *TASKS, "average"]
        for name in ("generation", "active", "expert", "error", "items"):
            assert record[name] == line[name]
        for name in ("omega", "key"):
            assert record[name] == (None if line[name] is None else tuple(line[name]))
        assert record["parents"] == tuple(parent for parent in line["parents"] if parent >= 0)
        assert record["seconds"] == pytest.approx(sum(line["seconds"].values()))
        assert record["tokens"] is None  # the journal does not count them
        if line["scores"] is None:
            assert all(math.isnan(record[name]) for name in (*TASKS, "average"))
        else:
            assert {name: record[name] for name in TASKS} == line["scores"]
            assert record["average"] == pytest.approx(sum(line["scores"].values()) / 3)
    assert any(record["error"] for record in records)


def test_archives_hold_the_elites(make_run):
    folder = make_run(generations=40, bins=6)
    run, history = open_run(folder), load_history(folder)
    assert tuple(run.archives) == run.tasks == TASKS
    people = {record["id"]: record for record in run.individuals}
    for archive in history.archives():
        task = TASKS[archive.task]
        others = [name for name in TASKS if name != task]
        elites = run.archives[task]
        assert {elite["cell"]: elite["id"] for elite in elites} == {
            cell: history.individuals[row].id for cell, row in archive.cells.items()
        }
        for elite in elites:
            one = people[elite["id"]]
            assert elite["quality"] == elite[task] == one[task]
            assert elite["descriptors"] == tuple(one[name] for name in others)
            assert all(elite[name] == one[name] for name in (*TASKS, "average"))
    assert sum(map(len, run.archives_after(-1).values())) <= 9
    assert {elite["id"] for elites in run.archives_after(-1).values() for elite in elites} <= {0, 1, 2}


def test_lineage_goes_up_to_the_experts(make_run):
    folder = make_run(generations=40)
    run = open_run(folder)
    last = max(one["id"] for one in run.individuals if one["error"] is None)
    lineage = run.lineage(last)
    assert (lineage[0]["id"], lineage[0]["depth"]) == (last, 0)
    depths = {one["id"]: one["depth"] for one in lineage}
    assert len(depths) == len(lineage)
    assert list(depths.values()) == sorted(depths.values())
    parents = {line["id"]: [parent for parent in line["parents"] if parent >= 0] for line in journal(folder)}
    for identity in depths:
        assert all(depths[parent] <= depths[identity] + 1 for parent in parents[identity])
        assert identity == last or any(depths[child] + 1 == depths[identity] for child in depths if identity in parents[child])
    assert any(one["expert"] for one in lineage)
    assert all(parents[one["id"]] or one["expert"] for one in lineage)
    assert [one["expert"] for one in run.lineage(0)] == ["mbpp"]
    with pytest.raises(InputError, match="expected the id of an individual, got 999"):
        run.lineage(999)


def test_results_are_tidy(make_run):
    folder = make_run(generations=2)
    path = folder / "tables" / "results.json"
    raw = json.loads(path.read_text())
    raw["methods"]["uniform_merge"]["test"] = dict.fromkeys((*TASKS, "average"))
    path.write_text(json.dumps(raw))
    records = open_run(folder).results
    assert len(records) == len(raw["methods"]) * 2 * 4
    for record in records:
        score = raw["methods"][record["method"]][record["split"]][record["task"]]
        assert math.isnan(record["score"]) if score is None else record["score"] == score


def test_transcripts_are_selected(make_run, add_transcripts):
    folder = make_run(generations=1)
    run = open_run(folder)
    assert run.transcripts() == []
    add_transcripts(folder, TASKS)
    assert len(run.transcripts()) == 18
    one = run.transcripts(task="mbpp", split="test", method="cycleqd")[1]
    assert (one["task"], one["index"], one["score"], one["reason"]) == ("mbpp", 1, 1.0, "passed")
    assert one["messages"][1] == {"role": "user", "content": "Problem 1 of mbpp"}
    assert run.transcripts(split="train") == run.transcripts(method="base") == []


def test_tool_calls_are_shown(make_run):
    folder = make_run(generations=1)
    (folder / "transcripts").mkdir()
    call = {"id": "call00001", "type": "function", "function": {"name": "execute_sql", "arguments": {"query": "SELECT 1"}}}
    messages = [
        {"role": "user", "content": "?", "tools": []},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "name": "execute_sql", "content": "[(1,)]"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
    ]
    line = {"task": "dbbench", "split": "test", "method": "cycleqd", "index": 0, "score": 1.0, "messages": messages}
    (folder / "transcripts" / "dbbench.jsonl").write_text(json.dumps(line) + "\n")
    shown = '{"name": "execute_sql", "arguments": {"query": "SELECT 1"}}'
    (one,) = open_run(folder).transcripts()
    assert [message["content"] for message in one["messages"]] == ["?", f"I look.\n{shown}", "[(1,)]", f"{shown}\n{shown}"]


def test_config_is_a_mapping(make_run):
    run = open_run(make_run(generations=7))
    assert run.config["search"] == {"generations": 7, "batch": 1}
    assert run.config["versions"]["jax"] == "0.10.2"


def test_files_are_read_when_they_are_needed(make_run):
    folder = make_run(generations=2)
    (folder / "history.jsonl").write_text("damaged\n\n{}\n")
    run = open_run(str(folder))
    assert repr(run) == f"RunFolder({str(folder)!r})"
    assert run.results
    with pytest.raises(InputError, match=r"line 1 of .*history\.jsonl"):
        run.individuals


@pytest.mark.parametrize("kind", ["nothing", "a file", "a folder without them"])
def test_other_folders_are_an_error(tmp_path, kind):
    path = tmp_path / "run"
    if kind == "a file":
        path.touch()
    elif kind != "nothing":
        path.mkdir()
    with pytest.raises(InputError, match=f"expected a run folder with config.yaml, .* got {kind} at {path}; give the output"):
        RunFolder(path)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("config.yaml", lambda run: run.config),
        ("grid.json", lambda run: run.individuals),
        ("history.jsonl", lambda run: run.archives),
        ("tables/results.json", lambda run: run.results),
    ],
)
def test_missing_files_are_named(make_run, name, use):
    folder = make_run(generations=1)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"expected the file {name}, got none in {folder}; "):
        use(open_run(folder))


@pytest.mark.parametrize("text", ["a: [", "- 1", "\ud800"])
def test_damaged_config_is_an_error(make_run, text):
    folder = make_run(generations=1)
    (folder / "config.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"expected (YAML|a mapping) in .*config\.yaml"):
        _ = open_run(folder).config


def test_reading_needs_no_plotting():
    code = "import sys, cycleqd_jax.report; print('matplotlib' in sys.modules, 'jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False False\n"


def write_selection(folder, **changes):
    items = {task: [1.0, 0.0] for task in TASKS}
    one = {
        "kind": "aggregate",
        "ids": [1, 2],
        "error": None,
        "scores": dict.fromkeys(TASKS, 0.5),
        "items": items,
        "average": 0.5,
    }
    broken = {"kind": "elite", "ids": [7], "error": "overflow", "scores": None, "items": {}, "average": None}
    tree = {"problems": dict.fromkeys(TASKS, "1234"), "candidates": [one, broken], "soup": [1]}
    tree |= {"chosen": {"kind": "aggregate", "ids": [1, 2]}} | changes
    (folder / "tables" / "selection.json").write_text(json.dumps(tree))


@pytest.mark.exhaustive
def test_the_selection(make_run, undrawn):
    folder = make_run()
    assert open_run(folder).selection == []
    write_selection(folder)
    chosen, broken = open_run(folder).selection
    assert chosen == {"kind": "aggregate", "ids": (1, 2), **dict.fromkeys(TASKS, 0.5), "average": 0.5, "chosen": True}
    assert (broken["kind"], broken["ids"], broken["chosen"]) == ("elite", (7,), False)
    assert all(math.isnan(broken[column]) for column in (*TASKS, "average"))
    page = write_report(folder)[-1].read_text()
    assert "Candidates for the final model" in page
    assert "#1 + #2" in page
    write_selection(folder, chosen={"kind": "elite", "ids": [99]})  # not finished
    assert open_run(folder).selection == []
    assert "Candidates for the final model" not in write_report(folder)[-1].read_text()


@pytest.mark.parametrize(
    "changes", [{"candidates": [3]}, {"candidates": None}, {"problems": {"other": ""}}, {"chosen": 3}, {"soup": 3}]
)
def test_a_damaged_selection_is_named(make_run, changes):
    folder = make_run()
    write_selection(folder, **changes)
    with pytest.raises(InputError, match=r"expected candidates with kind, ids, scores and items, .* in .*selection\.json, got"):
        _ = open_run(folder).selection
