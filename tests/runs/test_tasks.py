"""The problems of a run: which files are put into another order, and which sizes are refused."""

from __future__ import annotations

import json

import pytest

from cycleqd_jax.config import load_config
from cycleqd_jax.runs.tasks import open_tasks, resolve_tasks
from cycleqd_jax.tasks.records import by_digest, read_rows
from cycleqd_jax.types import InputError

from ..tasks.helpers import FakeSandbox


def record(n):
    tests = {"test_setup_code": "", "test_list": [f"assert f(1) == {n + 1}"], "challenge_test_list": []}
    return {
        "task_id": n,
        "text": f"Return x plus {n}, an interesting number.",
        "code": f"def f(x):\n    return x + {n}",
        **tests,
    }


@pytest.fixture
def opened(tmp_path):
    def open_with(**sizes):
        for name, numbers in (("train", range(12)), ("test", range(20, 26))):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record(n)) + "\n" for n in numbers))
        files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
        tasks = [{"name": name, "kind": "mbpp", **files, "test_size": None, **sizes} for name in ("a", "b")]
        tree = {"name": "demo", "tasks": tasks, "cache": str(tmp_path / "cache"), "export": {"method": "best_elite"}}
        config = load_config(tree)
        found = open_tasks(config, resolve_tasks(config), FakeSandbox(), 1, lambda line: None)
        return found.tasks[0], [row.id for row in read_rows(files["train"])]

    return open_with


def test_validation_problems_are_held_out_of_a_train_file_by_hash(opened):
    task, _ = opened(train_size=5, validation_size=4)
    order = [row.id for row in by_digest(task.pool)]
    assert [row.id for row in task.pool] == order != sorted(order, key=int)
    assert [row.id for row in task.rows["validation"]] == order[5:9]
    assert [row.id for row in task.rows["train"]] == [*order[:5], *order[9:]]
    assert [row.id for row in task.rows["test"]] == [str(n) for n in range(20, 26)]


def test_a_train_file_keeps_its_order_without_validation_problems(opened):
    task, order = opened(train_size=5, validation_size=0)
    assert [row.id for row in task.rows["train"]] == order


def test_more_test_problems_than_the_file_has_are_refused(opened):
    with pytest.raises(InputError, match=r"expected at least 7 test problems for test_size 7, got 6 in .*test\.jsonl"):
        opened(train_size=5, validation_size=4, test_size=7)
