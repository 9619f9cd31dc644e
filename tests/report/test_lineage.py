"""The ancestors of an individual: what the tree, the JSON and the drawing say, against the journal."""

from __future__ import annotations

import inspect
import json
import re
import sys
from xml.etree import ElementTree

import pytest

from cycleqd_jax.cli import main
from cycleqd_jax.report import open_run
from cycleqd_jax.report.history import shares
from cycleqd_jax.report.lineage import lineage_json, lineage_svg, lineage_text
from cycleqd_jax.types import InputError

TASKS = ("mbpp", "dbbench", "os_interaction")
SVG = "{http://www.w3.org/2000/svg}"


def journal(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def write(folder, lines):
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def ancestors(lines, child):
    found, level = {child}, [child]
    while level:
        level = [parent for one in level for parent in lines[one]["parents"] if parent >= 0 and parent not in found]
        found |= set(level)
    return found


@pytest.fixture
def folder(make_run):
    return make_run(generations=40, batch=2)


@pytest.fixture
def child(folder):
    return max(line["id"] for line in journal(folder) if line["scores"] is not None)


def test_every_ancestor_is_listed_once_with_its_parents(folder, child):
    lines = journal(folder)
    text = lineage_text(open_run(folder).lineage(child), TASKS).splitlines()
    rows = [line for line in text[1:] if "see above or below" not in line]
    ids = [int(re.search(r"(\d+)(?: \(expert \w+\))?$", line)[1]) for line in rows]
    assert len(ids) == len(set(ids))
    assert set(ids) == ancestors(lines, child)
    assert len(text) - 1 == 1 + sum(len([p for p in lines[i]["parents"] if p >= 0]) for i in ids)
    assert text[1].split()[-1] == str(child)
    for task in TASKS:
        assert f"{lines[child]['scores'][task]:.3f}" in text[1]


def test_the_shares_and_the_weights_of_the_experts(folder, child):
    lines = journal(folder)
    for record in open_run(folder).lineage(child):
        line = lines[record["id"]]
        if record["expert"] is not None:
            assert record["shares"] is None
            assert record["mixing"] == {task: float(task == record["expert"]) for task in TASKS}
            continue
        assert record["shares"] == pytest.approx([omega / sum(line["omega"]) for omega in line["omega"]])
        assert sum(record["mixing"].values()) == pytest.approx(1.0)
    assert shares((1e-4, -1e-4)) == (0.5, 0.5)  # as the operator


def test_json(folder, child, capsys):
    assert main(["lineage", str(folder), str(child), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["individual"] == child
    assert {one["id"] for one in found["ancestors"]} == ancestors(journal(folder), child)
    assert all("items" not in one for one in found["ancestors"])


def test_a_quarantined_individual_has_ancestors_too(folder, capsys):
    bad = next(line["id"] for line in journal(folder) if line["error"])
    assert main(["lineage", str(folder), str(bad)]) == 0
    assert f"individual {bad} is quarantined: InfraError" in capsys.readouterr().out
    record = lineage_json(open_run(folder).lineage(bad))[0]
    assert record["average"] is None


def test_the_drawing_has_a_box_for_each_and_a_line_for_each_parent(folder, child, tmp_path):
    assert main(["lineage", str(folder), str(child), "--svg", str(tmp_path / "tree.svg")]) == 0
    root = ElementTree.parse(tmp_path / "tree.svg").getroot()
    lines = journal(folder)
    ids = ancestors(lines, child)
    assert len(root.findall(f"{SVG}g")) == len(ids)
    drawn = root.findall(f"{SVG}line")
    assert len(drawn) == sum(len([p for p in lines[i]["parents"] if p >= 0]) for i in ids)
    assert all(float(line.get("y2")) > float(line.get("y1")) for line in drawn)  # parents are below
    boxes = [group.get("transform") for group in root.findall(f"{SVG}g")]
    assert len(set(boxes)) == len(boxes)


def test_a_drawing_survives_any_text(make_run):
    folder = make_run(tasks=("a<b>&\"'", "b"), generations=4)
    lines = journal(folder)
    lines[-1] |= {"scores": None, "error": "a\x00<b>", "items": {}}
    write(folder, lines)
    ElementTree.fromstring(lineage_svg(open_run(folder).lineage(lines[-1]["id"]), open_run(folder).tasks))


@pytest.mark.parametrize("change", ["missing", "younger", "itself"])
def test_a_journal_edited_by_hand(folder, child, change, capsys):
    lines = journal(folder)
    parent = lines[child]["parents"][0]
    if change == "missing":
        lines = [line for line in lines if line["id"] != parent]
    else:
        lines[child]["parents"][0] = child + 1 if change == "younger" else child
    write(folder, lines)
    assert main(["lineage", str(folder), str(child)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("cycleqd: expected the parent ")
    assert err.endswith("history.jsonl; restore the file\n")
    assert err.count("\n") == 1


def test_bad_input(folder, tmp_path, capsys):
    for argv, message in (
        ([str(folder), "9999"], "expected the id of an individual, got 9999"),
        ([str(tmp_path / "none"), "1"], "expected a run folder"),
    ):
        assert main(["lineage", *argv]) == 2
        assert message in capsys.readouterr().err
    (folder / "history.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="expected a journal record"):
        open_run(folder).lineage(1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("length", "frames"), [pytest.param(1500, 1000, id=pytest.HIDDEN_PARAM, marks=pytest.mark.exhaustive), (300, 150)]
)
def test_a_long_line_of_ancestors(make_run, length, frames):
    """More ancestors than Python has frames for calls: a walk that calls itself for each would end in RecursionError."""
    folder = make_run(generations=length, quarantine=0.0)
    lines = journal(folder)
    for line in lines[3:]:
        line["parents"] = [line["id"] - 1, line["id"] - 2]
    write(folder, lines)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(min(limit, len(inspect.stack()) + frames))
    try:
        records = open_run(folder).lineage(lines[-1]["id"])
        text, drawing = lineage_text(records, TASKS), lineage_svg(records, TASKS)
    finally:
        sys.setrecursionlimit(limit)
    assert len(text.splitlines()) > length
    assert len(ElementTree.fromstring(drawing).findall(f"{SVG}g")) == len(records)
