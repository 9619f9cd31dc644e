"""Fingerprints stay the same between versions: stored demonstrations, trained models and run folders depend on them."""

from __future__ import annotations

import pytest

from cycleqd_jax.files import digest
from cycleqd_jax.tasks import miniature

from .helpers import FakeSandbox, make

RECORDS = {
    "mbpp": {"task_id": 1, "text": "Add.", "code": "def add(a, b): return a + b", "test_list": ["assert add(1, 2) == 3"]},
    "evalplus": {
        "task_id": "HumanEval/1",
        "prompt": "def add(a, b):\n",
        "canonical_solution": "    return a + b\n",
        "entry_point": "add",
        "base_input": [[1, 2]],
        "plus_input": [[3, 4]],
        "atol": 0,
    },
    "humaneval": {
        "task_id": "HumanEval/1",
        "prompt": "def add(a, b):\n",
        "canonical_solution": "    return a + b\n",
        "entry_point": "add",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    },
    "bigcodebench": {
        "task_id": "BigCodeBench/1",
        "complete_prompt": "def add(a, b):\n",
        "instruct_prompt": "Add.",
        "code_prompt": "def add(a, b):\n",
        "canonical_solution": "    return a + b",
        "entry_point": "add",
        "test": "import unittest\nclass TestCases(unittest.TestCase):\n    def test(self):\n"
        "        self.assertEqual(add(1, 2), 3)\n",
    },
    "dbbench": {
        "id": "ask",
        "description": "How old is Eve?",
        "add_description": "The table is staff.",
        "label": ["17"],
        "type": ["other"],
        "table": {
            "table_name": "staff",
            "table_info": {"columns": [{"name": "name"}, {"name": "age"}], "rows": [["Eve", "17"]]},
        },
    },
    "os_interaction": {
        "id": "count",
        "description": "How many lines are in ~/list?",
        "init_script": [["bash", "echo one > ~/list"]],
        "match": {"answer": "1", "strip": True},
        "example_script": ["bash", "wc -l < ~/list"],
    },
}

# For each kind: the fingerprints with default and with other options, the digest in inputs.json, and the digest of the prompt.
PINNED = {
    "mbpp": (
        "14e5371f0bba8df18ddeb075129beb98f01e5e6a5874466bbb1e81db0a652d0e",
        "a0640af70ec0c5032e02e8351e1ea206b9d014dd2f6426697639a84f0a73bbaf",
        "85aa6f80483e49a1",
        "dcfa0a01dc3c822eb24fb652a846683a5826b42c474620e1bab43dbf589f94ec",
    ),
    "evalplus": (
        "07d084485a0845f81435804378d5058c20581835acf52308bbf1359496d3201e",
        "076165e3ffd32808fb9c0ef3b5c96572ed89d8a80603af6ae89c278fbb4f2298",
        "8c8402bfd7c31a9a",
        "f8e60574b5e365ee2c3ab8fcc6a154ca4e3ef178730a78f99e6decd1c25b72d6",
    ),
    "humaneval": (
        "4da76649c3ac3925a4695001937606e660dac75b17ff9f61e644cdc90ca9fbdf",
        "c21a5a3987fac8768a3445720c06e69e9c51a5ae10b1cddcf886a55a32e389f5",
        "7c85f187af463d4d",
        "f8e60574b5e365ee2c3ab8fcc6a154ca4e3ef178730a78f99e6decd1c25b72d6",
    ),
    "bigcodebench": (
        "cbddeb450f1a6986bdb7730364b7128676df64206f21177748c16946b7b08d80",
        "62d9a21c7921b9fcb3913fce592b98feff844c8c9cb3a1f1a72ba37295b4b9cd",
        "88c9a38cccf9921e",
        "6ec8a0cc908b8038f8b3e46cfbd678cc36ac312ba6cab67b89f7dda73f4f3a14",
    ),
    "dbbench": (
        "245bc5ab888e0088ae23e229a3ca26d250a63ba56b7b7a0dfc120907d1cdcd11",
        "4a4b6cf97084bc3c1555a09457f443018cdd16a6058e033c3b9eb30f2dbf3cf3",
        "7086a10eb3732941",
        "ae0ae7d57868f819c4e8e5d744be95fc02da63546ed39867133e2a4f884865b3",
    ),
    "os_interaction": (
        "b62ab43cf968f304ed7c4b048575b71dd02eb0847124f5c1487edec4aaddec35",
        "5e94a1a8f08877542d43da3977678d1adeac6673cc2209a4765a123a182cff80",
        "bb1d9d101444031d",
        "3ec44c7e6d53947bd134bec54f1416bfc3c81338ad038a63c5bf96d444e2de23",
    ),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_fingerprints_of_tasks(write, kind):
    record = RECORDS[kind]
    name = "id" if "id" in record else "task_id"
    other = record | {name: record[name] + 1 if isinstance(record[name], int) else f"{record[name]}0", "text": "Sum."}
    files = {"train": write(record), "test": write(other, name="test.jsonl")}
    plain = make(kind, sandbox=FakeSandbox(), **files)
    changed = make(kind, sandbox=FakeSandbox(), prompt="brief", seconds=3, **files)
    rows = digest([row.fingerprint for row in plain.rows["train"]], digits=16)
    opening = digest(plain.environment(plain.records["train"][0]).opening())
    assert (plain.fingerprint("train"), changed.fingerprint("train"), rows, opening) == PINNED[kind]


@pytest.mark.exhaustive
def test_miniature_problems():
    records = miniature.generate(0, 20, 20)
    assert {task: digest(splits, digits=16) for task, splits in records.items()} == {
        "mbpp": "3c0ac79d3e5aa6fc",
        "dbbench": "f45964e0f38bbfbb",
        "os_interaction": "47822b7bdb24b9d2",
        "humaneval": "5f8bfadf67764b65",
    }
    assert {task: digest(miniature.demonstrations(task, 0, 50), digits=16) for task in miniature.TASKS} == {
        "mbpp": "51b7384148f22f76",
        "dbbench": "fa84854839784873",
        "os_interaction": "464e52979eaf504a",
        "humaneval": "4939738aa1c2d70e",
    }
    assert digest(miniature.pretraining(0, 90, 0.5, miniature.TASKS[:3]), digits=16) == "a084d462c9c41c75"
    assert digest(miniature.pretraining(0, 90, 0.5), digits=16) == "0598e9c907fab2e9"
