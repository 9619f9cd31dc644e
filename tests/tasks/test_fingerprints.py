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
        "656071454d6592cb8e993f2329357f4d78b9c6b347f329f903bdd6c68dfcb876",
        "6989d43c05b7274483a1eb1b68efa5efb65aed9e5df058a02ca60337d0002c5e",
        "85aa6f80483e49a1",
        "dcfa0a01dc3c822eb24fb652a846683a5826b42c474620e1bab43dbf589f94ec",
    ),
    "evalplus": (
        "f39b572e64c3e96e8a9329df46b11b9a1d52aa27995d5db77747f49ef6dadbb7",
        "9519f56a844aac43249a6008206c6e0000e1a66ba7f80102ce596e1147fe8686",
        "8c8402bfd7c31a9a",
        "f8e60574b5e365ee2c3ab8fcc6a154ca4e3ef178730a78f99e6decd1c25b72d6",
    ),
    "humaneval": (
        "959825a48b16d634667766021752d81742ad8ea04a9979c09751c0dad4a42fb8",
        "cf145c252985264b0f0558e257f6fb9e8d8eea997d209d7b71ae41614bd2db80",
        "7c85f187af463d4d",
        "f8e60574b5e365ee2c3ab8fcc6a154ca4e3ef178730a78f99e6decd1c25b72d6",
    ),
    "bigcodebench": (
        "e272013f48c0aa3a8c16e2c299dc975927263708006186661207832141de3813",
        "1d900299a831e49977322c643081da024c704ec027759b57dea0e54ed9cda769",
        "88c9a38cccf9921e",
        "6ec8a0cc908b8038f8b3e46cfbd678cc36ac312ba6cab67b89f7dda73f4f3a14",
    ),
    "dbbench": (
        "2fe56eb57f932fcb4db0838d5ef871084ad96594e9b42a5178a60e194965cd5f",
        "5bc9085b9148b92ba06803bef3ba13b34f49b167dfdb0c91d673e9b1b368aaf7",
        "7086a10eb3732941",
        "ae0ae7d57868f819c4e8e5d744be95fc02da63546ed39867133e2a4f884865b3",
    ),
    "os_interaction": (
        "11161e0ace5881fd94ec168e68c88d879487b9205e8cbf697479365bba761ab7",
        "c4669c54ffc942f4f7cb18c7d5d35eeea3ae8d75b013dfdb712db35c7fa15543",
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
