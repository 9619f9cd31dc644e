"""A small copy of AgentBench's folder of OS problems."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cycleqd_jax.tasks.os_interaction.folder import read_os_rows
from cycleqd_jax.types import InputError, Score

from .helpers import make

CHECK = [None, {"language": "python", "file": "check/integer-match.py"}]
MATCH_INTEGER = "from sys import argv\nif int(argv[1]) != int(argv[2]):\n    exit(1)\n"


def problem(**fields):
    return {
        "description": "How many lines?",
        "create": {"local": "default", "init": {"file": "init/lines.sh"}},
        "evaluation": {"check": CHECK, "example": {"code": "wc -l < /tmp/lines"}},
    } | fields


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def write(name: str, content) -> None:
        path = tmp_path / "data/os_interaction" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))

    for number in ("1", "4", "7", "dev"):
        write(f"scripts/{number}/init/lines.sh", f"seq {number.replace('dev', '9')} > /tmp/lines")
        write(f"scripts/{number}/check/integer-match.py", MATCH_INTEGER)
    no_create = {key: value for key, value in problem(start="cd /tmp").items() if key != "create"}
    write("data/1/stock.json", [problem(), no_create | {"evaluation": {"match": "3"}, "example": {"code": "echo 3"}}])
    write("data/4/N11.json", problem(evaluation={"check": {"code": "exit 0"}}))
    several = {"init": ["true", {"code": "print(1)", "language": "python"}]}
    write("data/4/N2.json", [problem(create=several), problem(create=[None, {"file": "x"}])])
    write("data/dev.json", [problem()])
    write("data/6-backup.json", [problem(description="not of the set")])
    write("train_0317/training.json", [problem(), problem(evaluation={"check": CHECK, "example": "echo 1"})])
    return tmp_path / "data/os_interaction"


def test_folder(folder):
    rows = read_os_rows(folder)
    assert [row.id for row in rows] == [
        "std-001-stock-00000",
        "std-001-stock-00001",
        "std-004-N11-00000",
        "std-004-N2-00000",
        "std-004-N2-00001",
    ]
    assert [row.id for row in read_os_rows(folder.parents[1])] == [row.id for row in rows]
    first, match, single, several, odd = (row.fields for row in rows)
    assert first["init_script"] == [["bash", "seq 1 > /tmp/lines"]]
    assert first["check"] == [None, ["python", MATCH_INTEGER]]
    assert first["example_script"] == ["bash", "wc -l < /tmp/lines"]
    assert (match["match"], match["check"], match["start"]) == ({"answer": "3", "strip": True}, None, ["bash", "cd /tmp"])
    assert (match["init_script"], match["example_script"]) == ([], ["bash", "echo 3"])
    assert (single["check"], single["example_script"]) == ([["bash", "exit 0"]], None)
    assert several["init_script"] == [["bash", "true"], ["python", "print(1)"]]
    assert odd["init_script"] == []


def test_single_files(folder):
    (dev,) = read_os_rows(folder / "data/dev.json")
    assert (dev.id, dev.fields["init_script"]) == ("dev-001-dev-00000", [["bash", "seq 9 > /tmp/lines"]])
    training = read_os_rows(folder / "train_0317/training.json")
    assert [row.id for row in training] == ["train-0223-training-00000", "train-0223-training-00001"]
    assert training[0].fields["init_script"] == [["bash", "seq 7 > /tmp/lines"]]
    assert training[1].fields["example_script"] == ["bash", "echo 1"]
    (single,) = read_os_rows(folder / "data/4/N11.json")
    assert single.id == "std-004-N11-00000"


def test_flat_records_stay_as_they_are(write):
    record = {"id": "x", "description": "?", "init_script": [], "match": {"answer": "1"}}
    assert [row.fields for row in read_os_rows(write(record))] == [record]


def test_episodes(folder, sandbox):
    task = make("os_interaction", train=folder / "train_0317/training.json", test=folder, sandbox=sandbox, memo=False)
    values = []
    for record, answer in zip(task.records["test"], ("1", "3", "", "1", "1"), strict=True):
        episode = task.environment(record)
        try:
            episode.start()
            if not values:
                assert episode.step("Act: bash\n\n```bash\nwc -l < /tmp/lines\n```") == [
                    {"role": "user", "content": "The output of the OS:\n\n1"}
                ]
            score = episode.step(f"Act: answer({answer})")
        finally:
            episode.close()
        assert isinstance(score, Score)
        values.append(score.value)
    assert values == [1.0, 1.0, 1.0, 0.0, 0.0]  # the last two have no file to count


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"create": {"init": {"file": "init/none.sh"}}}, "readable script"),
        ({"create": {"init": {"file": "../../../../secret"}}}, "expected a script in the folder"),
        ({"create": {"init": {"file": "/etc/passwd"}}}, "^expected a script in the folder"),
        ({"create": {"init": 3}}, "a script as a text or an object"),
        ({"start": {"language": "bash"}}, "a script as a text or an object"),
        ({"start": {"file": "a\0b"}}, "readable script 'a\\\\x00b'"),
        ({"evaluation": []}, "an object in field 'evaluation'"),
        ({"description": None}, "'description'"),
    ],
)
def test_malformed_records_and_scripts_are_named(folder, change, words):
    (folder / "data/1/stock.json").write_text(json.dumps([problem(), problem() | change]))
    with pytest.raises(InputError, match=words) as error:
        read_os_rows(folder)
    assert "stock.json, item 2" in str(error.value)


def test_other_folders_are_refused(tmp_path, folder):
    with pytest.raises(InputError, match="got a folder without data and scripts"):
        read_os_rows(folder / "data")
    (tmp_path / "x" / "data").mkdir(parents=True)
    (tmp_path / "x" / "scripts").mkdir()
    with pytest.raises(InputError, match=r"expected files of problems .* in "):
        read_os_rows(tmp_path / "x")
    with pytest.raises(InputError, match="got no file at"):
        read_os_rows(tmp_path / "missing.json")
