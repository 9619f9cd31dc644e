"""Tasks whose replies hold one answer: the forms of answers, and the published files."""

from __future__ import annotations

import pytest

from cycleqd_jax.tasks.exact_match import last_number, marked_number, stated_answer
from cycleqd_jax.types import InputError

from .helpers import make, play_replies

ROBE = {"id": "g/1", "question": "How many bolts?", "answer": "It takes 2/2=<<2/2=1>>1 bolt.\n#### 3"}
HOUSE = {"id": "g/2", "question": "How much profit?", "answer": "He made $70,000.\n#### 70,000"}
THIRD = {"id": "g/3", "question": "How many?", "answer": "One.\n#### 1"}


def gsm8k(write, nowhere, record, **options):
    other = HOUSE if record is ROBE else ROBE
    train, test = write(record, name="train.jsonl"), write(other, name="test.jsonl")
    return make("gsm8k", sandbox=nowhere, train=train, test=test, **options)


def score(task, reply):
    return play_replies(task, [reply])[-1].value


@pytest.mark.parametrize(
    ("text", "marked", "last"),
    [
        ("#### 3", "3", "3"),
        ("#### -1,234.50 and 7", "-1234.50", "7"),
        ("####3", None, "3"),
        ("I pay $18.", None, "18"),
        ("#### 2\n#### 5", "2", "5"),
        ("none", None, None),
    ],
)
def test_numbers_are_found_as_by_the_harness(text, marked, last):
    assert marked_number(text) == marked
    assert last_number(text) == last


def test_gsm8k(write, nowhere):
    task = gsm8k(write, nowhere, HOUSE)
    assert task.episodes("train")[0].start()[0]["content"] == "Question: How much profit?\nAnswer:"
    assert [score(task, reply) for reply in ("#### 70000", "It is $70,000.", "70000 or 3", "", "no")] == [1, 1, 0, 0, 0]
    assert score(task, "So 70,000.\n\nQuestion: Who has 3 dogs?\nAnswer: 3") == 1  # the model goes on with another problem
    assert score(task, "So 3.\n\nQuestion: Who has 70000 dogs?") == 0
    strict = gsm8k(write, nowhere, HOUSE, extraction="strict")
    assert [score(strict, reply) for reply in ("#### 70,000", "It is $70,000.")] == [1, 0]
    assert len(strict.demonstrations("train")) == 1
    with pytest.raises(InputError, match=r"an answer that ends with '#### number', got '.*7' in .*train.jsonl, line 1"):
        gsm8k(write, nowhere, {**ROBE, "answer": "7"})
    with pytest.raises(InputError, match=r"an answer that ends with '#### number', got '.*#### \.'"):
        gsm8k(write, nowhere, {**ROBE, "answer": "Nothing. #### ."})  # a reply that ends with "..." would be right
    shots = write(THIRD, name="shots.jsonl")
    task = gsm8k(write, nowhere, ROBE, shots=1, shots_file=str(shots), extraction="strict")
    assert task.episodes("train")[0].start()[0]["content"].startswith("Question: How many?\nAnswer: One.\n#### 1\n\nQuestion")


@pytest.mark.parametrize(
    ("target", "right", "wrong"),
    [
        (
            "(B)",
            [
                "So the answer is (B).",
                "b",
                "(B)",
                "B.",
                "(b) a dog",
                "The answer is **B**",
                "x\nB) yes",
                "The answer is:\n\n(B)",
                "(B)\n\nQ: x\nA: (A)",
                "See the FAQ: no. The answer is (B).\nQ: x\nA: The answer is (A).",
            ],
            ["(A)", "", "Bob", "(A)\n\nQ: x\nA: So the answer is (B)."],
        ),
        ("True", ["true", "So the answer is True.", "a\n\nTrue\n"], ["False", "True or False"]),
        ("2", ["The answer is 2.", "2"], ["12", "two"]),
        ("syndrome therefrom", ["syndrome  therefrom.", "answer is: syndrome therefrom"], ["therefrom syndrome"]),
        ("] ) }", ["] ) }", "So the answer is ] ) }."], ["] )", "}"]),
    ],
)
def test_the_answer_forms_of_bbh(target, right, wrong, write, nowhere):
    records = [{"id": f"bbh/{n}", "task": "t", "input": f"question {n}", "target": target} for n in range(2)]
    task = make("bbh", sandbox=nowhere, data=write(*records))
    assert [score(task, reply) for reply in right] == [1] * len(right)
    assert [score(task, reply) for reply in wrong] == [0] * len(wrong)
    assert len(task.demonstrations("train")) == 1


def test_a_stated_answer_wins_over_the_last_line():
    assert stated_answer("The answer is 3.\nThat was easy") == "3."
    assert stated_answer("The answer is not 2. So the answer is 3.") == "3."
    assert stated_answer(" \n") is None


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "file"),
    [("gsm8k", "gsm8k/gsm8k_test.visible.jsonl"), ("bbh", "bbh/bbh.visible.jsonl")],
)
def test_every_gold_answer_of_the_published_files_scores(kind, file, data_dir, nowhere):
    task = make(kind, sandbox=nowhere, data=str(data_dir / file))
    for split in ("train", "test"):
        assert len(task.demonstrations(split)) == len(task.rows[split])
        assert all(not score for score in (play_replies(task, [""], split)[-1].value,))
