"""The record of the journal: its bytes, and the lines it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest

from cycleqd_jax.individual import Individual
from cycleqd_jax.types import InputError

EXPERT = (
    '{"id":0,"generation":-1,"expert":"mbpp","active":null,"parents":[-1,-1],"omega":null,"key":null,'
    '"scores":{"mbpp":0.875,"db":0.3333333333333333},"error":null,"items":{"mbpp":[1.0,0.75],"db":[0.0]},'
    '"seconds":{"express":1.971035,"evaluate":36.296812}}'
)
COUNTED = EXPERT[:-1] + ',"tokens":{"prompt":2000,"generated":300,"computed":1500,"attended":90000}}'
CHILD = (
    '{"id":7,"generation":2,"expert":null,"active":"db","parents":[0,3],"omega":[1.0296448469161987,0.9],'
    '"key":[4146024105,967050713],"scores":null,"error":"logits are \\u221e","items":{},"seconds":{}}'
)
STEADY = CHILD.replace('"scores"', '"asked":[1,4],"scores"')
STOPPED = CHILD.replace('"items":{}', '"items":{"db":[1.0,0.0]},"evaluated":{"db":[3,7],"mbpp":[]}').replace(
    '"logits are \\u221e"', "null"
)


@pytest.mark.parametrize("line", [EXPERT, CHILD, COUNTED, STEADY, STOPPED])
def test_a_line_read_and_written_has_the_same_bytes(line):
    individual = Individual.from_json(line, "here")
    written = individual.to_json()
    assert re.sub(',"checksum":"[0-9a-f]{16}"', "", written) == line  # lines of older versions had none
    assert Individual.from_json(line.encode(), "here") == individual
    assert Individual.from_json(written, "here").to_json() == written


def test_a_line_gives_the_individual():
    assert Individual.from_json(CHILD, "here") == Individual(
        id=7,
        generation=2,
        expert=None,
        active="db",
        parents=(0, 3),
        omega=(1.0296448469161987, 0.9),
        key=(4146024105, 967050713),
        error="logits are ∞",
    )
    fields = {field.name for field in dataclasses.fields(Individual)}
    optional = {"asked", "coefficients", "digest", "evaluated", "tokens"}  # only individuals that have them write them
    assert json.loads(EXPERT).keys() == fields - optional


def test_unknown_fields_are_ignored():
    assert Individual.from_json(EXPERT[:-1] + ',"note":1}', "here") == Individual.from_json(EXPERT, "here")


@pytest.mark.parametrize("line", ["{", "", b"\xff", EXPERT[:-9], "[1, 2]", "7", "null", "{}"])
def test_other_lines_are_refused(line):
    with pytest.raises(InputError, match=r"^expected a journal record .*, got .* in line 3 of x\.jsonl; restore the file$"):
        Individual.from_json(line, "line 3 of x.jsonl")


@pytest.mark.parametrize("name", json.loads(EXPERT))
def test_every_field_is_required(name):
    record = json.loads(EXPERT)
    del record[name]
    with pytest.raises(InputError, match=f"got none of {name} in here"):
        Individual.from_json(json.dumps(record), "here")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "1"),
        ("id", None),
        ("id", True),
        ("id", 1.0),
        ("generation", "0"),
        ("expert", 1),
        ("active", ["db"]),
        ("parents", None),
        ("parents", [1]),
        ("parents", [1, 2, 3]),
        ("parents", [1, "2"]),
        ("parents", [0.5, 1]),
        ("omega", [1.0]),
        ("omega", "ab"),
        ("omega", [1.0, None]),
        ("omega", [1.0, math.inf]),
        ("key", [1.5, 2]),
        ("key", 3),
        ("scores", 0.5),
        ("scores", [0.5]),
        ("scores", {"mbpp": None}),
        ("scores", {"mbpp": "0.5"}),
        ("scores", {"mbpp": math.nan}),
        ("scores", {"mbpp": -math.inf}),
        ("error", False),
        ("items", None),
        ("items", {"mbpp": 1.0}),
        ("items", {"mbpp": [True]}),
        ("items", {"mbpp": [1.0, math.nan]}),
        ("seconds", None),
        ("seconds", {"express": "1"}),
        ("seconds", {"express": math.nan}),
        ("tokens", 3),
        ("tokens", {"prompt": 1.5}),
        ("tokens", {"prompt": None}),
    ],
)
def test_fields_of_other_types_are_refused(name, value):
    record = json.loads(EXPERT) | {name: value}
    with pytest.raises(InputError, match=f"^expected {name} to be .*, got .* in here; restore the file$"):
        Individual.from_json(json.dumps(record), "here")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_does_not_have_are_not_written(value):
    individual = dataclasses.replace(Individual.from_json(EXPERT, "here"), scores={"mbpp": value})
    with pytest.raises(ValueError, match="JSON"):
        individual.to_json()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"omega":[0.1,', '"omega":[0.2,'),
        ('"parents":[0,1]', '"parents":[0,2]'),
        ('"scores":{"mbpp":0.5}', '"scores":{"mbpp":1.0}'),
        (',"checksum":"', ', "checksum":"'),
        ('"seconds":{}', '"seconds":{},"error":"x"'),
        ('"seconds":{}', '"seconds":{},"more":1'),
        (',"seconds"', ' ,"seconds"'),
    ],
)
def test_a_line_that_was_changed_is_refused(old, new):
    one = Individual(2, 0, None, "mbpp", (0, 1), (0.1, 0.3), (1, 2), scores={"mbpp": 0.5}, items={"mbpp": [1.0, 0.0]})
    line = one.to_json()
    assert old in line
    if old == ',"seconds"':  # the costs are not what archives are made of
        assert Individual.from_json(line.replace(old, new), "here").id == 2
        return
    with pytest.raises(
        InputError, match=r"^expected a journal record (as the run wrote it|in JSON), got .* in here; restore the file$"
    ):
        Individual.from_json(line.replace(old, new), "here")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"id": ' * 100_000])
def test_a_line_that_is_nested_too_deeply_is_refused(line):
    with pytest.raises(InputError, match=r"^expected a journal record in JSON, got .* in here; restore the file$"):
        Individual.from_json(line, "here")


def test_lines_of_equal_individuals_differ_in_their_costs_only():
    one = Individual(2, 0, None, "mbpp", (0, 1), (0.1, 0.3), (1, 2), error="é", seconds={"express": 1.0})
    other = dataclasses.replace(one, seconds={"express": 2.0}, tokens={"prompt": 3})
    lines = [json.loads(x.to_json()) for x in (one, other)]
    assert lines[0]["checksum"] == lines[1]["checksum"]
    assert Individual.from_json(other.to_json(), "here") == other
