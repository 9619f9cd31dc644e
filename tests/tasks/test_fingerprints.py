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
        "90f99a31241ca2688eaf19cfece39a8027002e9c233772a2247cac55cc34bf0f",
        "81ec5f06436117cdcd57c1fd91053fe92042e9e097d330c326db5ad827acfdcb",
        "85aa6f80483e49a1",
        "dcfa0a01dc3c822eb24fb652a846683a5826b42c474620e1bab43dbf589f94ec",
    ),
    "evalplus": (
        "76f6501ac93d9cec65d678760c876581b9b1fc36ad82280a19d28559665b07ee",
        "b1e8368e46193a71c43d857fadfd467a93506ca53f43e268b8cfda7e051b95ff",
        "8c8402bfd7c31a9a",
        "f8e60574b5e365ee2c3ab8fcc6a154ca4e3ef178730a78f99e6decd1c25b72d6",
    ),
    "humaneval": (
        "9b7b9d2b012bed889fa36b6b0977294ede5eb3914364bdadcd52c392ef4141ec",
        "173ed5c33182842398a22b0a5f6205bd4cf59aca0317f82c819281f238c1e1a0",
        "7c85f187af463d4d",
        "f8e60574b5e365ee2c3ab8fcc6a154ca4e3ef178730a78f99e6decd1c25b72d6",
    ),
    "bigcodebench": (
        "e4955bccc51140656a8af1fd2f34764634f7450921fcbb0ec97432b7cb9b4306",
        "7eca5c9a152faf1b75207498052aba5b6e375a85ab3de304fdd532b57da310e6",
        "88c9a38cccf9921e",
        "6ec8a0cc908b8038f8b3e46cfbd678cc36ac312ba6cab67b89f7dda73f4f3a14",
    ),
    "dbbench": (
        "11b449b9a43151e8ba112597d727cbf83f5116e23785d682c93db48c9ff62497",
        "eae45501a61da369b92e688dd5f87d16e42494d8a17de443cb7618138a406dbd",
        "7086a10eb3732941",
        "ae0ae7d57868f819c4e8e5d744be95fc02da63546ed39867133e2a4f884865b3",
    ),
    "os_interaction": (
        "860384c632863f4b926030e6d1cf2f40d23ce8ef6141dda5c505d5f85d5ad5e1",
        "9084245f769ab069e848594396a717e75350d2781d56ed98a09cd5ed29c40a2a",
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
