"""Validation records: held out of the train records, never among demonstrations, never in another split."""

from __future__ import annotations

import hashlib

import pytest

from cycleqd_jax.evaluation import Evaluator
from cycleqd_jax.tasks.base import refuse_overlap
from cycleqd_jax.tasks.records import read_rows
from cycleqd_jax.types import SPLITS, InputError

from .helpers import FakeSandbox, make


def record(n):
    return {
        "task_id": n,
        "text": f"Return x plus {n}, an interesting number.",
        "code": f"def f(x):\n    return x + {n}",
        "test_setup_code": "",
        "test_list": [f"assert f(1) == {n + 1}"],
        "challenge_test_list": [],
    }


@pytest.fixture
def task(write):
    files = {"train": write(*map(record, range(6))), "test": write(*map(record, range(10, 13)), name="t.jsonl")}
    return make("mbpp", sandbox=FakeSandbox(), **files)


class Silent:
    """A generator that never replies."""

    def submit(self, conversation, messages, max_new_tokens, *, individual=0):
        pass

    def advance(self):
        return []

    def release(self, conversation):
        pass


def ids(task):
    return {split: [row.id for row in task.rows[split]] for split in SPLITS}


def test_without_validation_there_are_no_such_records(task):
    assert ids(task) == {"train": [*"012345"], "validation": [], "test": ["10", "11", "12"]}
    assert task.episodes("validation") == []


def test_held_out_records_leave_the_train_records(task):
    before = task.fingerprint("train")
    task.hold_out(task.pool[2:4])
    assert ids(task) == {"train": [*"0145"], "validation": ["2", "3"], "test": ["10", "11", "12"]}
    assert [row.id for row in task.pool] == [*"012345"]
    assert [len(task.records[split]) for split in SPLITS] == [4, 2, 3]
    assert [episode.start()[0]["content"].count("plus 2") for episode in task.episodes("validation")] == [1, 0]
    assert task.fingerprint("train") != before  # so experts of other data have another name in the cache


def test_shuffled_train_records_are_in_the_order_of_the_digests(task):
    task.shuffle()
    order = sorted("012345", key=lambda one: hashlib.sha256(one.encode()).digest())
    assert ids(task)["train"] == order != [*"012345"]
    assert [row.id for row in task.pool] == order
    opening = task.episodes("train")[0].start()[0]["content"]
    assert f"plus {order[0]}," in opening


def test_the_same_problem_under_another_id_is_refused(write):
    files = {"train": write(*map(record, range(3))), "test": write(record(2) | {"task_id": 99}, name="t.jsonl")}
    with pytest.raises(InputError, match=r"expected different records for train and test, got the same one in .*line 3"):
        make("mbpp", sandbox=FakeSandbox(), **files)


def test_a_problem_that_comes_twice_is_not_held_out_of_itself(write):
    twice = [record(1), record(2), record(2) | {"task_id": 99}]
    task = make("mbpp", sandbox=FakeSandbox(), train=write(*twice), test=write(record(9), name="t.jsonl"))
    with pytest.raises(InputError, match="expected different records for train and validation, got the same one"):
        task.hold_out(task.pool[2:])


def test_experts_are_not_taught_validation_problems(write, sandbox):
    files = {"train": write(*map(record, range(4))), "test": write(record(10), name="t.jsonl")}
    task = make("mbpp", sandbox=sandbox, **files)
    task.hold_out(task.pool[1:3])
    taught = " ".join(messages[0]["content"] for messages in task.demonstrations("train"))
    assert [f"plus {n}," in taught for n in range(4)] == [True, False, False, True]


def test_records_of_another_file(task, write):
    task.hold_out(read_rows(write(*map(record, range(20, 22)), name="v.jsonl")))
    assert ids(task)["train"] == [*"012345"]
    assert ids(task)["validation"] == ["20", "21"]


@pytest.mark.parametrize(("number", "splits"), [(1, "train and validation"), (11, "validation and test")])
def test_a_record_of_two_splits_is_refused(task, write, number, splits):
    rows = read_rows(write(record(30), record(number), name="v.jsonl"))
    with pytest.raises(
        InputError, match=f"expected different records for {splits}, got the same one in .* of task 'mbpp'; give"
    ):
        task.hold_out(rows)


def test_the_message_names_both_splits(task):
    with pytest.raises(InputError, match="expected different records for fine-tuning and validation, got the same one in"):
        refuse_overlap("mbpp", task.rows["train"], task.pool[2:3], "fine-tuning and validation")


def test_the_evaluator_plays_all_validation_problems_and_the_first_train_problems(task):
    task.hold_out(task.pool[2:4])
    evaluator = Evaluator(lambda params, *, donate: None, Silent(), [task], sizes={"mbpp": {"train": 2, "test": 1}})
    assert [len(evaluator.episodes(task, split)) for split in SPLITS] == [2, 2, 1]
