"""What the script about racing counts; the searches themselves are tested with the package."""

from __future__ import annotations

import dataclasses

import pytest

from cycleqd_jax.individual import Individual
from cycleqd_jax.search import Journal

from ..script import load_script


@pytest.fixture(scope="module")
def racing():
    return load_script("racing")


def test_leaders_and_problems(racing, tmp_path):
    journal = Journal(tmp_path / "history.jsonl")
    expert = Individual(0, -1, "a", None, (-1, -1), None, None, scores={"a": 0.5, "b": 0.5}, items={"a": [0, 1], "b": [0, 1]})
    child = dataclasses.replace(expert, expert=None, active="a", parents=(0, 0))
    stopped = {"scores": None, "items": {"a": [1.0], "b": [1.0]}, "evaluated": {"a": [0], "b": [1]}}
    journal.append(expert)
    journal.append(dataclasses.replace(child, id=1, generation=0, **stopped))
    journal.append(dataclasses.replace(child, id=2, generation=0, scores={"a": 1.0, "b": 0.5}))
    journal.append(dataclasses.replace(child, id=3, generation=1, scores={"a": 0.5, "b": 1.0}))  # of equals the first leads
    leaders = racing.leaders_of(journal, ("a", "b"))
    assert leaders == [(0, 4), (2, 10), (2, 14)]
    assert racing.reached(leaders, {0: 0.2, 2: 0.6}, 0.6) == 10
    assert racing.reached(leaders, {0: 0.2, 2: 0.6}, 0.7) is None


def test_the_ratio_over_seeds(racing):
    one = {"seed": 0, "target": 0.5, "without": 400, "with": 100, "ratio": 0.25, "reached": True, "stopped": 3, "children": 9}
    found = racing.summary([one, {**one, "seed": 1, "with": 400, "ratio": 1.0, "reached": False}])
    assert found["ratio"] == pytest.approx(0.5)
    assert found["low"] * found["high"] == pytest.approx(0.25)
    assert found["missed"] == 1
    assert racing.summary([one])["low"] is None
    text = racing.markdown(found)
    assert "| 1 | 50.0 | 400 | 400 (not reached) | 1.00 | 3 of 9 |" in text
    assert text.endswith("1 of 2 seeds did not reach the target.")
