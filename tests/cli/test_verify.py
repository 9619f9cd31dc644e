"""``cycleqd verify-task``: gold solutions and stubs of every kind, and errors of bad requests."""

from __future__ import annotations

import json

import pytest

from cycleqd_jax.cli import main
from cycleqd_jax.tasks import miniature

RECORD = {"task_id": 1, "text": "Add.", "code": "def add(a, b): return a + b", "test_list": ["assert add(1, 2) == 3"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return miniature.write(tmp_path_factory.mktemp("data"), 0, 6, 2)


@pytest.fixture
def write(tmp_path):
    def write_records(*records):
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write_records


def verify(capsys, *arguments):
    capsys.readouterr()
    code = main(["verify-task", *map(str, arguments)])
    out, error = capsys.readouterr()
    assert error == ""
    return code, json.loads(out)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", miniature.TASKS)
def test_the_gold_solutions_of_every_miniature_task_pass(files, capsys, kind):
    code, result = verify(capsys, kind, "--data", files[kind]["train"], "prompt=brief", "--json")
    assert (code, result["passed"], result["total"], result["failed"]) == (0, 6, 6, [])
    assert result["task"] == kind
    assert 0 < result["slowest"]["seconds"] <= result["seconds"]
    assert result["isolation"] in ("bwrap", "userns")


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["dbbench", "os_interaction"])
def test_gold_solutions_pass_with_tools(files, capsys, kind):
    code, result = verify(capsys, kind, "--data", files[kind]["train"], "protocol=tools")
    assert (code, result["passed"], result["total"], result["failed"]) == (0, 6, 6, [])
    code, result = verify(capsys, kind, "--data", files[kind]["train"], "protocol=tools", "--stub")
    assert (code, result["passed"], result["solved"]) == (0, 0, [])


def test_stubs_do_not_pass(files, capsys):
    code, result = verify(capsys, "mbpp", "--data", files["mbpp"]["train"], "--stub", "--workers", 1)
    assert (code, result["solutions"], result["passed"], result["total"], result["solved"]) == (0, "stub", 0, 6, [])


@pytest.mark.exhaustive
def test_failures_are_listed_and_the_exit_code_is_1(write, capsys):
    wrong = RECORD | {"task_id": 2, "code": "def add(a, b): return a - b"}
    data = write(RECORD, wrong)
    code, result = verify(capsys, "mbpp", "--data", data)
    assert (code, result["passed"], result["total"]) == (1, 1, 2)
    assert result["failed"] == [{"id": "2", "reason": "assert 1 failed: AssertionError: "}]
    halves = [verify(capsys, "mbpp", "--data", data, "--split", split) for split in ("train", "test")]
    assert sorted((code, result["passed"], result["total"]) for code, result in halves) == [(0, 1, 1), (1, 0, 1)]


def test_stubs_that_pass_are_listed(write, capsys):
    none = {"task_id": 3, "text": "Nothing.", "code": "def f(): pass", "test_list": ["assert f() is None"]}
    code, result = verify(capsys, "mbpp", "--data", write(RECORD, none), "--stub")
    assert (code, result["passed"], result["solved"]) == (1, 1, [{"id": "3", "reason": "passed"}])


@pytest.mark.exhaustive
def test_options_of_task_and_sandbox(write, capsys):
    slow = RECORD | {"task_id": 2, "code": "import time\ndef add(a, b):\n    time.sleep(1)\n    return a + b"}
    data = write(RECORD, slow)
    assert verify(capsys, "mbpp", "--data", data)[0] == 0
    for option in ("seconds=0.5", "sandbox.wall_s=0.5"):
        code, result = verify(capsys, "mbpp", "--data", data, option, "--backend", "bwrap")
        assert (code, result["failed"]) == (1, [{"id": "2", "reason": "timed out"}])


def test_no_isolation_only_on_request(write, capsys):
    code, result = verify(
        capsys, "mbpp", "--data", write(RECORD, RECORD | {"task_id": 2, "note": "another"}), "--sandbox", "none"
    )
    assert (code, result["isolation"]) == (0, "none")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "expected a kind of task (mbpp, evalplus"),
        (["mbpp", "prompt=long"], "one of instruct, brief"),
        (["mbpp", "colour=red"], "expected an option of mbpp (prompt, shown, seconds, memo), got 'colour'"),
        (["mbpp", "colour"], "of the form key=value, got 'colour'"),
        (["mbpp", "sandbox.colour=red"], "got the unknown key sandbox.colour"),
        (["mbpp", "--workers", "0"], "expected --workers to be at least 1, got 0"),
        (["mbpp", "--backend", "mysql"], "sandbox.backend"),
        (["mbpp", "train=x"], "expected an option of mbpp (prompt, shown, seconds, memo), got 'train'"),
    ],
)
def test_bad_requests(write, capsys, arguments, words):
    assert main(["verify-task", *arguments, "--data", write(RECORD, RECORD | {"task_id": 2})]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("cycleqd: ")
    assert words in error


def test_a_missing_file(tmp_path, capsys):
    assert main(["verify-task", "mbpp", "--data", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
