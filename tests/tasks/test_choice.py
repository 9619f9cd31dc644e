"""Multiple choice by log-likelihood: prompts, metrics, demonstrations, and records that are refused."""

from __future__ import annotations

import re

import pytest

from cycleqd_jax.tasks import TASKS, task_class
from cycleqd_jax.types import InputError, Likelihood, LikelihoodTask, Question

from .helpers import make, play_replies, solution_scores

ARC = {
    "id": "arc/1",
    "question": {"stem": "What falls?", "choices": [{"text": "rain", "label": "1"}, {"text": "the sky", "label": "2"}]},
    "answerKey": "2",
}
OTHER = {
    "id": "arc/2",
    "question": "What rises?",
    "choices": {"text": ["dough", "a stone"], "label": ["A", "B"]},
    "answerKey": "A",
}
THIRD = {**OTHER, "id": "arc/3", "question": "What burns?", "choices": {"text": ["wood", "ice"], "label": ["A", "B"]}}
CSQA = {
    "id": "c/1",
    "question": {"stem": "Where is a door? ", "choices": [{"text": "bank", "label": "A"}, {"text": "sea", "label": "B"}]},
    "answerKey": "A",
}
BOOLQ = {"id": "b/1", "passage": "Snow is cold.", "question": "is snow warm", "label": "false"}
HELLA = {"id": "h/1", "context": "Sumo: A man", "endings": ["eats.", "sings a song.", "flies."], "label": 1}
MMLU = {"question": "2 + 2?", "choices": ["3", "4", "5", "22"], "answer": 1, "subject": "arithmetic"}
EXPECTED = {
    "arc": (ARC, Question("Question: What falls?\nAnswer:", (" rain", " the sky"), 1)),
    "commonsenseqa": (CSQA, Question("Question: Where is a door?\nA. bank\nB. sea\nAnswer:", (" A", " B"), 0)),
    "boolq": (BOOLQ, Question("Snow is cold.\nQuestion: is snow warm?\nAnswer:", (" no", " yes"), 0)),
    "hellaswag": (HELLA, Question("Sumo: A man", (" eats.", " sings a song.", " flies."), 1)),
    "mmlu": (MMLU, Question("2 + 2?\nA. 3\nB. 4\nC. 5\nD. 22\nAnswer:", (" A", " B", " C", " D"), 1)),
}


def task_of(kind, write, nowhere, *records, **options):
    files = {f"{name}": write(record, name=f"{name}.jsonl") for name, record in zip(("train", "test"), records, strict=True)}
    return make(kind, sandbox=nowhere, **files, **options)


def different(kind):
    """Another problem of the same format."""
    record = {**EXPECTED[kind][0], "id": "x"}
    if kind in ("arc", "commonsenseqa"):
        return record | {"question": {**record["question"], "stem": "y"}}
    return record | {{"boolq": "passage", "hellaswag": "context", "mmlu": "question"}[kind]: "y"}


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_prompt_of_every_format(kind, write, nowhere):
    record, expected = EXPECTED[kind]
    task = task_of(kind, write, nowhere, record, different(kind))
    assert isinstance(task, LikelihoodTask)
    assert task.questions("train") == [expected]
    assert [*task.demonstrations("train")[0]] == [
        {"role": "user", "content": expected.context},
        {"role": "assistant", "content": expected.choices[expected.answer].strip()},
    ]
    assert solution_scores(task, expected) == [1.0]
    assert play_replies(task, [""])[-1].value == 0


def test_other_forms_of_labels(write, nowhere):
    for label in ("false", False, 0):
        task = task_of("boolq", write, nowhere, {**BOOLQ, "label": label}, different("boolq"))
        assert task.questions("train")[0].answer == 0
    for label in (2, "2"):
        task = task_of("hellaswag", write, nowhere, {**HELLA, "label": label}, different("hellaswag"))
        assert task.questions("train")[0].answer == 2
    assert task_of("mmlu", write, nowhere, {**MMLU, "answer": "D"}, different("mmlu")).questions("train")[0].answer == 3
    assert task_of("arc", write, nowhere, OTHER, ARC).questions("train")[0].choices == (" dough", " a stone")


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_accuracy_and_accuracy_per_character(metric, write, nowhere):
    task = task_of("arc", write, nowhere, ARC, OTHER, metric=metric)
    (question,) = task.questions("train")
    outcome = task.outcome(question, [Likelihood(-4.0, 1, False), Likelihood(-6.0, 2, False, 3)])
    assert outcome.score.reason == "acc 0, acc_norm 1"  # -4 / 4 < -6 / 7: the space before a choice does not count
    assert outcome.score.value == (metric == "acc_norm")
    assert outcome.dropped == 3
    assert outcome.messages[-1]["content"] == ("rain" if metric == "acc" else "the sky")
    assert task.outcome(question, [Likelihood(-7.0, 1, False)] * 2).score.reason == "acc 0, acc_norm 1"  # equal: the first


def test_solved_questions_stand_before_every_question(write, nowhere):
    shots = write(THIRD, name="shots.jsonl")
    task = task_of("arc", write, nowhere, ARC, OTHER, shots=1, shots_file=str(shots))
    before = "Question: What burns?\nAnswer: wood\n\n"
    assert task.questions("train")[0].context == f"{before}Question: What falls?\nAnswer:"
    assert task.episodes("test")[0].start()[0]["content"].startswith(before)
    plain = task_of("arc", write, nowhere, ARC, OTHER)
    assert plain.fingerprint("train") != task.fingerprint("train")
    for options, message in {
        (1, None): "both shots and shots_file, got shots alone in task 'arc'; give shots_file too",
        (None, shots): "got shots_file alone",
        (2, shots): "at least 2 records for shots: 2, got 1",
        (1, write(OTHER, name="again.jsonl")): "different records for the task and its shots",
    }.items():
        with pytest.raises(InputError, match=message):
            task_of("arc", write, nowhere, ARC, OTHER, shots=options[0], shots_file=options[1] and str(options[1]))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("arc", {"answerKey": "C"}, "one of the labels 1, 2 as the answer, got 'C' in .*train.jsonl, line 1"),
        ("arc", {"question": {"stem": "x", "choices": []}}, "at least two choices, and a label for each, got 0 choices"),
        ("arc", {"question": {"stem": "x"}}, "a list in field 'question/choices', got nothing"),
        ("arc", {"question": {"stem": "x", "choices": ["a", "b"]}}, "choices with a text and a label, got 'a'"),
        (
            "arc",
            {"question": {"stem": "x", "choices": [{"label": "1", "text": "a"}, {"label": "1", "text": "b"}]}},
            "a label of its own for each choice, got 1, 1 in .*train.jsonl, line 1",
        ),
        ("boolq", {"label": "maybe"}, "one of the labels false, true as the answer, got 'maybe'"),
        ("boolq", {"label": [1]}, "one of the labels false, true as the answer, got "),
        (
            "commonsenseqa",
            {"question": {"stem": "x", "choices": [{"label": str(i), "text": "a"} for i in range(27)]}, "answerKey": "0"},
            "at most 26 choices, one for each letter, got 27 choices",
        ),
        ("hellaswag", {"label": 3}, "one of the labels 0, 1, 2 as the answer, got 3"),
        ("hellaswag", {"label": True}, "one of the labels 0, 1, 2 as the answer, got True"),
        ("hellaswag", {"label": None}, "as the answer, got None"),
        ("hellaswag", {"endings": ["a", " "]}, "choices that are not blank"),
        ("mmlu", {"answer": 4}, "one of the labels A, B, C, D as the answer, got 4"),
        ("mmlu", {"choices": ["3"]}, "at least two choices"),
    ],
)
def test_records_that_are_refused(kind, change, message, write, nowhere):
    record = EXPECTED[kind][0]
    with pytest.raises(InputError, match=message):
        task_of(kind, write, nowhere, record | change, different(kind))


def test_a_kind_that_does_not_exist_names_the_nearest():
    with pytest.raises(InputError, match=re.escape("got 'helaswag'; did you mean hellaswag?")):
        task_class("helaswag")
    assert {"arc", "boolq", "commonsenseqa", "hellaswag", "mmlu"} <= set(TASKS)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "file", "count"),
    [
        ("arc", "arc/arc_challenge_test.visible.jsonl", 848),
        ("arc", "arc/arc_easy_test.visible.jsonl", 1684),
        ("boolq", "boolq/boolq_val.visible.jsonl", 2294),
        ("commonsenseqa", "commonsenseqa/csqa_dev.visible.jsonl", 846),
        ("hellaswag", "hellaswag/hellaswag_val_head1000.visible.jsonl", 689),
    ],
)
def test_the_published_files(kind, file, count, data_dir, nowhere):
    task = make(kind, sandbox=nowhere, data=str(data_dir / file))
    questions = [*task.questions("train"), *task.questions("test")]
    assert len(questions) == count
    assert len({question.answer for question in questions}) >= 2
