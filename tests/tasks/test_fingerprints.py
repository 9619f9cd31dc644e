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
        "5ff528b640f3ce140dab568eb424f4e514e148713abfd905488200d859c77577",
        "e1a8de9940046fdc3d4590c0c297bfbdafa3bce346adf52400b9e603ddcb6af8",
        "85aa6f80483e49a1",
        "dcfa0a01dc3c822eb24fb652a846683a5826b42c474620e1bab43dbf589f94ec",
    ),
    "evalplus": (
        "43a6708293494993370517069b2d91ca44bf784ef93363e4958c97ef33e2b92d",
        "2d0ed1f263fd79dcd522f6472da2124e73db91060c467fd0dc1435879fbc013b",
        "8c8402bfd7c31a9a",
        "f8e60574b5e365ee2c3ab8fcc6a154ca4e3ef178730a78f99e6decd1c25b72d6",
    ),
    "humaneval": (
        "a7d4ef32ee7618fb2eee141e62533b6df66fa56108086bf9607a1eabf425cf3c",
        "77d4b4327b0741f85552245d048f6916d9bfdda71c23f58ac0fe20cf77d32da2",
        "7c85f187af463d4d",
        "f8e60574b5e365ee2c3ab8fcc6a154ca4e3ef178730a78f99e6decd1c25b72d6",
    ),
    "bigcodebench": (
        "862409494543ceed45d77e5cd09b0d4760aa9fd7e5eef3a2f15aea23711da993",
        "5c4b2bd00e528a27f53d8bd21d6623a56bccc0e4a6266d709fe8ee67db4de85d",
        "88c9a38cccf9921e",
        "6ec8a0cc908b8038f8b3e46cfbd678cc36ac312ba6cab67b89f7dda73f4f3a14",
    ),
    "dbbench": (
        "34a7a272943e2a1db820a346da740033097b37323f66c89f55b593ea8b77ab32",
        "9ec1e33e0b0fbdbdb126028a6cc9145b29221d040c3b9f62586fe19dce011cc5",
        "7086a10eb3732941",
        "ae0ae7d57868f819c4e8e5d744be95fc02da63546ed39867133e2a4f884865b3",
    ),
    "os_interaction": (
        "e30c325eb097c8817cbf3d5e5a08e6a30a5431920c37dd8d4e963b05732ce0e5",
        "10fcf5a4ec76ebf6dd2ebcc43c334f44f4043f7cce11cb6dc872cae9e66606c8",
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


def test_miniature_problems():
    records = miniature.generate(0, 20, 20)
    assert {task: digest(splits, digits=16) for task, splits in records.items()} == {
        "mbpp": "3c0ac79d3e5aa6fc",
        "dbbench": "f45964e0f38bbfbb",
        "os_interaction": "47822b7bdb24b9d2",
    }
    assert {task: digest(miniature.demonstrations(task, 0, 50), digits=16) for task in miniature.TASKS} == {
        "mbpp": "51b7384148f22f76",
        "dbbench": "fa84854839784873",
        "os_interaction": "464e52979eaf504a",
    }
    assert digest(miniature.pretraining(0, 90, 0.5), digits=16) == "a084d462c9c41c75"
