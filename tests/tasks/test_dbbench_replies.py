"""The replies of DBBench: operations, final answers, and their comparison with the labels."""

from __future__ import annotations

import time

import pytest

from cycleqd_jax.tasks.dbbench.answers import parse_answer, same_answer
from cycleqd_jax.tasks.dbbench.replies import final_answer, operation


@pytest.mark.parametrize(
    ("reply", "statement"),
    [
        ("Action: Operation\n```sql\nSELECT 1\n```", "SELECT 1"),
        ("I think.\nAction: Operation\n```sql\nSELECT 1,\n  2\n```\n```sql\nSELECT 3\n```", "SELECT 1,   2"),
        ("```sql\nSELECT 1\n```\nAction: Operation\n", "SELECT 1"),
        ("Action: Operation\n```sql\n\n```", ""),
        ("Action: Operation", None),
        ("Action: Operation \n```sql\nSELECT 1\n```", None),
        ("Action: Answer\nFinal Answer: []\nAction: Operation\n```sql\nSELECT 1\n```", None),
        ("Action: Operation\n```sql\nSELECT 1", None),
        ("Action: Operation\n```\nSELECT 1\n```", None),
        ("Action: Operation\n```sql SELECT 1```", None),
        ("SELECT 1", None),
        ("", None),
    ],
)
def test_operations(reply, statement):
    assert operation(reply) == statement


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ('Action: Answer\nFinal Answer: ["1"]', ' ["1"]'),
        ('x\nFinal Answer:["1"]\nFinal Answer: ["2"]', '["1"]'),
        ("Final Answer: [1]", None),
        ("Action: Answer", None),
        ("\nFinal Answer:", ""),
    ],
)
def test_final_answers(reply, text):
    assert final_answer(reply) == text


@pytest.mark.parametrize(
    "piece", ["Action: ", "Action: Operation\n```sql\n", "```sql\n", "\nFinal Answer:", "Action: Operation\n", "["]
)
def test_megabytes_are_quick(piece):
    reply = piece * (2_000_000 // len(piece))
    began = time.monotonic()
    operation(reply)
    same_answer(final_answer("\nFinal Answer:" + reply) or reply, ["1"])
    same_answer("[" + "'" * 19_000 + "]", ["1"])
    same_answer("[" * 9_000 + "]" * 9_000, ["1"])
    assert time.monotonic() - began < 5


def test_a_number_with_too_many_digits_stays_text():
    assert parse_answer(f"[0x{'f' * 4_000}]") == [f"0x{'f' * 4_000}"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("[('a',), ('b',)]", ["a", "b"]),
        ("[1, 2.5]", ["1", "2.5"]),
        ("[a, b c]", ["a", "b c"]),
        ("[\"it's\", 'x']", ["it's", "x"]),
        ("[null]", ["None"]),
        ("[]", []),
        ("12", ["12"]),
        ("['a', 'b'", ["['a', 'b'"]),
        ("[__import__('os').system('touch /tmp/x')]", None),
    ],
)
def test_answers_are_parsed_and_never_evaluated(text, values):
    assert values is None or parse_answer(text) == values


@pytest.mark.parametrize(
    ("given", "labels", "right"),
    [
        ('["17"]', ["17.0"], True),
        ("[17]", ["17"], True),
        ("17", ["17"], True),
        ('["17.005"]', ["17"], True),
        ('["17.02"]', ["17"], False),
        ('["3729.7"]', ["3,729.7"], True),
        ('["45%"]', ["45"], True),
        ('["a", "b"]', ["b", "a"], True),
        ('["a", "a", "b"]', ["b", "a"], True),
        ('["a"]', ["b", "a"], False),
        ("[1, 2]", ["2.0", "1.0"], True),
        ("[1, 1]", ["1", "2"], False),
        ("[1, 2, 2]", ["1", "2"], False),
        ('["none"]', ["none"], True),
        ("[0]", ["none"], True),
        ('[""]', ["none"], True),
        ("[]", ["none"], False),
        ("", ["none"], False),
        ("  ", ["0.0"], False),
        ('["nan"]', ["17"], False),
        ('["1e999"]', ["17"], False),
        ('["rome"]', ["Rome"], False),
        ('["[x"]', ["[x"], True),
        ("[[1, 2]]", ["[1, 2]"], True),
    ],
)
def test_comparison(given, labels, right):
    assert same_answer(given, labels) is right
