"""The problems of a run: which files are put into another order, and which sizes are refused."""

from __future__ import annotations

import json

import pytest

from cycleqd_jax.config import load_config
from cycleqd_jax.runs.inputs.tasks import open_tasks, resolve_tasks
from cycleqd_jax.tasks import RecordTask
from cycleqd_jax.tasks.records import by_digest, read_rows
from cycleqd_jax.types import InputError

from ...tasks.helpers import FakeSandbox


def record(n):
    tests = {"test_setup_code": "", "test_list": [f"assert f(1) == {n + 1}"], "challenge_test_list": []}
    return {
        "task_id": n,
        "text": f"Return x plus {n}, an interesting number.",
        "code": f"def f(x):\n    return x + {n}",
        **tests,
    }


@pytest.fixture
def open_both(tmp_path):
    def open_with(**options):
        for name, numbers in (("train", range(12)), ("test", range(20, 26))):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record(n)) + "\n" for n in numbers))
        files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
        tasks = [{"name": name, "kind": "mbpp", **files, "test_size": None, **options} for name in ("a", "b")]
        tree = {"name": "demo", "tasks": tasks, "cache": str(tmp_path / "cache"), "export": {"method": "best_elite"}}
        config = load_config(tree)
        return open_tasks(config, resolve_tasks(config), FakeSandbox(), 1, lambda line: None)

    return open_with


@pytest.fixture
def opened(open_both, tmp_path):
    def open_with(**options):
        found = open_both(**options)
        return found.tasks[0], [row.id for row in read_rows(str(tmp_path / "train.jsonl"))]

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


@pytest.mark.parametrize("validation_size", [0, 4])
def test_an_expert_can_be_fine_tuned_on_problems_that_the_search_does_not_score(open_both, monkeypatch, validation_size):
    learned = []
    monkeypatch.setattr(RecordTask, "_demonstrate", lambda self, record: learned.append(record) or [{"role": "user"}])
    sizes = {"train_size": 5, "validation_size": validation_size}
    apart, whole = (open_both(**sizes, finetune_on_train=on) for on in (False, True))
    for found, expected in ((apart, [*range(5, 12 - validation_size)]), (whole, [*range(12 - validation_size)])):
        records = found.tasks[0].records["train"]
        for _ in range(2):  # from the cache too
            assert len(found.training_data["a"].load()) == len(expected)
        assert learned == [records[i] for i in expected]
        learned.clear()
    assert apart.training_data["a"].identity == whole.training_data["a"].identity | {"start": 5}


def test_experts_need_problems_of_their_own(open_both):
    with pytest.raises(InputError, match=r"more than 8 train problems of task 'a' beside .* validation, got 8, so none is"):
        open_both(train_size=8, validation_size=4, finetune_on_train=False)
    with pytest.raises(InputError, match=r"expected tasks\.0\.train_size with finetune_on_train: false, got null for task 'a'"):
        open_both(train_size=None, validation_size=4, finetune_on_train=False)
