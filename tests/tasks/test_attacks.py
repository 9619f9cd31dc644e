"""Attacks on the machine, on other episodes and on verdicts, each under the best isolation and under the fallback."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from cycleqd_jax.sandbox import InfraError, Killed, Limits, Sandbox
from cycleqd_jax.types import Score

from .attacks.table import ATTACKS, Attack
from .db_records import NAME, UPDATE, sql
from .helpers import make, play_replies
from .test_bigcodebench import GOLD as LETTERS_GOLD
from .test_bigcodebench import LETTERS
from .test_fuzz_replies import PLUS
from .test_humaneval import TWICE, WHOLE
from .test_mbpp import ADD
from .test_mbpp import GOLD as ADD_GOLD

SMALL = Limits(wall_s=3.0, cpu_s=3.0, memory_mb=256, processes=24, disk_mb=16)
# What no attack brings about honestly.
CHECKS = (
    ["bash", "-c", "ls -A /root | grep -qx never"],
    ["python3", "-c", "import json, os, sys; sys.exit(not os.path.exists('/root/never'))"],
)
CODING = {
    "mbpp": (ADD, ADD | {"task_id": 7}, ADD_GOLD),
    "humaneval": (TWICE, TWICE | {"task_id": "HumanEval/901"}, WHOLE),
    "evalplus": (PLUS, PLUS | {"task_id": "HumanEval/901"}, "def f(n):\n    return n + 1"),
    "bigcodebench": (LETTERS, LETTERS | {"task_id": "BigCodeBench/9001"}, LETTERS_GOLD),
}


@pytest.fixture(scope="module", params=["bwrap", "userns"])
def isolated(request):
    """A sandbox under the best isolation and under the fallback."""
    try:
        sandbox = Sandbox(request.param, limits=SMALL)
    except InfraError as error:
        pytest.skip(f"the isolation {request.param!r} does not work on this machine: {error}")
    with sandbox:
        yield sandbox


def cases(*forms: str) -> list:
    """The attacks of some forms as parameters; most of them are exhaustive."""
    return [
        pytest.param(attack, id=f"{attack.kind}: {attack.name}", marks=() if attack.default else pytest.mark.exhaustive)
        for attack in ATTACKS
        if attack.form in forms
    ]


def test_the_table_has_many_attacks_of_each_kind():
    assert len({(attack.form, attack.kind, attack.name) for attack in ATTACKS}) == len(ATTACKS) >= 130
    assert all(attack.body and attack.contained for attack in ATTACKS)
    print(len(ATTACKS), dict(Counter(attack.kind for attack in ATTACKS)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("attack", cases("program"))
def test_programs(isolated: Sandbox, attack: Attack):
    with isolated.box() as neighbour:
        neighbour.exec(["sh", "-c", "echo mine > /tmp/mine"])
        began = time.monotonic()
        done = isolated.run_python(attack.body)
        assert time.monotonic() - began < 20
        assert "ESCAPED" not in done.output
        assert neighbour.exec(["cat", "/tmp/mine"]).output == "mine\n"
    assert isolated.run_python("print('next')").output == "next\n"


@pytest.mark.parametrize("attack", cases("box"))
def test_boxes(isolated: Sandbox, attack: Attack):
    with isolated.box() as neighbour, isolated.box() as box:
        neighbour.exec(["sh", "-c", "echo mine > /tmp/mine"])
        box.seal()
        shell, output = box.shell(), ""
        try:
            output = shell.run(attack.body, timeout=2.0).output
            output += shell.run("true", timeout=0.3).output
            for check in CHECKS:
                assert box.exec(check, trusted=True).exit_code != 0
        except Killed:
            pass
        assert "ESCAPED" not in output.split()
        assert neighbour.exec(["cat", "/tmp/mine"]).output == "mine\n"
        began = time.monotonic()
        box.close()
    with isolated.box() as box:
        assert box.shell().run("echo next", timeout=10.0).output == "next\n"
        assert box.exec(CHECKS[0], trusted=True).exit_code == 1
    assert time.monotonic() - began < 10


@pytest.fixture(scope="module")
def coding(isolated, tmp_path_factory):
    """A coding task of each kind."""
    folder, tasks = tmp_path_factory.mktemp("coding"), {}
    for kind, (*records, _) in CODING.items():
        different = [{**record, "number": number} for number, record in enumerate(records)]  # equal ones fall into one half
        (folder / kind).write_text("".join(json.dumps(record) + "\n" for record in different))
        tasks[kind] = make(kind, sandbox=isolated, data=folder / kind, memo=False, seconds=2)
    return tasks


@pytest.mark.parametrize("attack", cases(*CODING))
def test_verdicts(coding, attack: Attack):
    task = coding[attack.form]

    def score(code: str) -> Score:
        return task.environment(task.records["train"][0]).step(f"```python\n{code}\n```")

    forged = score(attack.body)
    assert forged.value == 0.0
    assert forged.reason.encode()
    assert score(CODING[attack.form][2]) == Score(1.0, "passed")


def _databases(folder: Path, sandbox: Sandbox, **options):
    for name, number in {"train": 1, "test": 2}.items():
        (folder / name).write_text(json.dumps(UPDATE | {"id": f"update/{number}", "description": f"Problem {number}"}) + "\n")
    return make("dbbench", sandbox=sandbox, train=folder / "train", test=folder / "test", memo=False, seconds=1.0, **options)


def _attacked(task, attack: Attack):
    neighbour = task.environment(task.records["test"][0])
    neighbour.start()
    began = time.monotonic()
    results = play_replies(task, [sql(attack.body), sql("SELECT @cycleqd"), sql(f"SELECT COUNT(*) FROM {NAME}"), ""])
    assert time.monotonic() - began < 15
    assert "ESCAPED" not in " ".join(result for result in results if isinstance(result, str))
    assert neighbour.step(sql(UPDATE["label"][0])) == [{"role": "user", "content": "[]"}]
    assert neighbour.step("") == Score(1.0, "passed")
    neighbour.close()
    assert not os.path.exists("/tmp/cycleqd-attack")
    assert play_replies(task, [sql(UPDATE["label"][0]), ""])[-1] == Score(1.0, "passed")


@pytest.mark.parametrize("attack", cases("sqlite"))
def test_sqlite(isolated: Sandbox, tmp_path, attack: Attack):
    _attacked(_databases(tmp_path, isolated), attack)


@pytest.mark.parametrize("attack", cases("server"))
def test_a_server(sandbox: Sandbox, tmp_path, mysql_dsn, attack: Attack):
    task = _databases(tmp_path, sandbox, backend="mysql", dsn=mysql_dsn)
    try:
        _attacked(task, attack)
    finally:
        task.close()
