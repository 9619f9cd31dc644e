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
        "882b0d3588a27e779af137069996802df0f79625a4a8512b74dd38a44aa9b0c4",
        "3b647d19dbcde696cade92db89cfbc7cfe7f2ff9987828e59c07ca58b4349c40",
        "85aa6f80483e49a1",
        "dcfa0a01dc3c822eb24fb652a846683a5826b42c474620e1bab43dbf589f94ec",
    ),
    "evalplus": (
        "23eb16ca8d68b92767b39bc1914747b3995c17955d96f2f055da7c52f2c22b04",
        "7d0964d7fd7b1d01e127df335be0f1c64c5ac298893825d1c6f61e93ec9c297a",
        "8c8402bfd7c31a9a",
        "f8e60574b5e365ee2c3ab8fcc6a154ca4e3ef178730a78f99e6decd1c25b72d6",
    ),
    "humaneval": (
        "872fb54490910d5916d078c8ccfb796c4443e1c89e231df5769b6988e52d20fa",
        "d2a2fc1b97fa53489a444fe6c1a9390964e8c5f75ba256420f763ca4d56becb3",
        "7c85f187af463d4d",
        "f8e60574b5e365ee2c3ab8fcc6a154ca4e3ef178730a78f99e6decd1c25b72d6",
    ),
    "bigcodebench": (
        "45479a7698bcc1c35aa27d1649deaf90ea434d7a23fe8c030738e7f08e8604c4",
        "55722e38f2f4f571ce2e1a45e02c30449fb5ae16175474b34583f62ce82dffc7",
        "88c9a38cccf9921e",
        "6ec8a0cc908b8038f8b3e46cfbd678cc36ac312ba6cab67b89f7dda73f4f3a14",
    ),
    "dbbench": (
        "636b4b35c7a22f8d7f1e0c81b43926aeb54cff1f9d5cf737158c7d4ed277196d",
        "033982c820f5ac9a79b2e6d7b48ddcb5ed8ae298743553354e867f297216e88d",
        "7086a10eb3732941",
        "ae0ae7d57868f819c4e8e5d744be95fc02da63546ed39867133e2a4f884865b3",
    ),
    "os_interaction": (
        "d0ece56405647696d491f21073ecf26698531229c02882d7a96207a1ab3aa280",
        "3603d01c48c2760366cbb11b368ea034e4eddad52c8ccb7eb22dbd35694e1266",
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
