"""The honesty of the choice of a model: splits that are exact, and a bias that is found where there is one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cycleqd_jax.types import InputError

from ..script import load_script
from .conftest import write_config

TASKS = ("a", "b")


@pytest.fixture(scope="module")
def honesty():
    return load_script("selection_honesty")


def noise(honesty, count, problems, train=20, seed=0):
    """Candidates that are equally good: every problem is solved with probability 1/2, in the train problems too."""
    rng = np.random.default_rng(seed)
    return [
        honesty.Candidate(
            f"elite {i}",
            float(np.mean([rng.integers(0, 2, train).mean() for _ in TASKS])),
            {task: rng.integers(0, 2, problems).astype(float) for task in TASKS},
        )
        for i in range(count)
    ]


def test_the_halves_are_the_pool(honesty):
    candidates = noise(honesty, 5, 30)
    best = max(candidates, key=lambda one: one.train)
    pools = {one.name: np.mean([one.items[task].mean() for task in TASKS]) for one in candidates}
    splits = honesty.splits_of(candidates, 20, 0)
    assert len({one.validation.mean for one in splits}) > 5
    for one in splits:
        assert one.validation.mean + one.test.mean == pytest.approx(2 * pools[one.chosen])
        assert one.inside == (one.validation.low <= one.test.mean <= one.validation.high)
        assert one.low < one.validation.mean - one.test.mean < one.high
        assert one.high - one.low > one.validation.high - one.validation.low  # a difference has the spread of both
        assert one.on_train == best.name
        # Of this candidate only the test half is known. The chosen one is at least as good on the validation half.
        assert one.validation.mean >= 2 * pools[best.name] - one.on_train_test - 1e-9
        assert one.best_test >= max(one.test.mean, one.on_train_test) - 1e-9
    assert honesty.splits_of(candidates, 20, 0) == splits
    assert honesty.splits_of(candidates, 20, 1) != splits


def test_a_candidate_that_is_better_everywhere_is_chosen_without_bias(honesty):
    other, good = noise(honesty, 2, 30)
    good = honesty.Candidate("elite 9", 1.0, {task: np.ones(31) for task in TASKS})
    other = honesty.Candidate("aggregate", 0.5, {task: np.resize([0.0, 1.0], 31) for task in TASKS})
    found = honesty.summary([other, good], honesty.splits_of([other, good], 4, 0))
    assert {one["chosen"] for one in found["splits"]} == {one["on_train"] for one in found["splits"]} == {"elite 9"}
    assert found["inside"] == found["difference_contains_zero"] == 4
    assert found["on_validation"] == {"optimism": 0.0, "test": 1.0}
    assert found["on_train"] == {"train": 1.0, "optimism": 0.0, "test": 1.0}
    assert found["problems"] == {"a": 31, "b": 31}


def test_of_equals_the_first_is_chosen(honesty):
    items = {task: np.ones(4) for task in TASKS}
    twins = [honesty.Candidate(name, 0.5, items) for name in ("aggregate", "elite 3")]
    assert {(one.chosen, one.on_train) for one in honesty.splits_of(twins, 3, 0)} == {("aggregate", "aggregate")}


def test_a_choice_among_many_is_found_to_be_flattered(honesty):
    """The best of 40 equal candidates on 40 problems is 2.2 standard deviations (0.18) above its mean of 0.5."""
    candidates = noise(honesty, 40, 40)
    found = honesty.summary(candidates, honesty.splits_of(candidates, 20, 0))
    assert found["on_validation"]["optimism"] > 0.08
    assert found["on_validation"]["test"] == pytest.approx(0.5, abs=0.08)
    assert found["inside"] < 15
    assert found["on_train"]["optimism"] > 0.08
    two = noise(honesty, 1, 40)
    fair = honesty.summary(two, honesty.splits_of(two, 20, 0))
    assert abs(fair["on_validation"]["optimism"]) < 0.05
    assert fair["difference_contains_zero"] >= 18


@pytest.mark.slow
def test_the_shares_without_a_choice_are_those_that_are_said(honesty):
    """With one candidate there is no choice: 83 % of the test averages are inside, 95 % of the differences contain zero."""
    splits = [one for seed in range(400) for one in honesty.splits_of(noise(honesty, 1, 200, seed=seed), 1, seed)]
    assert np.mean([one.inside for one in splits]) == pytest.approx(0.83, abs=0.06)
    assert np.mean([one.low <= 0 <= one.high for one in splits]) == pytest.approx(0.95, abs=0.035)


def test_too_few_problems_are_refused(honesty):
    with pytest.raises(InputError, match=r"expected at least two problems of every task to split, got .*; increase --pool"):
        honesty.splits_of(noise(honesty, 2, 1), 3, 0)


def test_a_run_that_has_not_selected_is_refused(honesty, tmp_path):
    (tmp_path / "tables").mkdir()
    with pytest.raises(InputError, match=r"expected a finished selection in .*, got none; run the config with validation"):
        honesty.candidates_of(tmp_path)


def test_the_table(honesty):
    candidates = noise(honesty, 3, 20)
    text = honesty.markdown(honesty.summary(candidates, honesty.splits_of(candidates, 2, 0)))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    assert "3 candidates, problems: 20 of a, 20 of b; half of them validate and half test." in text


@pytest.mark.e2e
def test_a_run_is_measured_once(honesty, trained, capsys):
    config = str(write_config(trained, search={"generations": 2}, baselines=[], merges=[]))
    command = [config, "--pool", "20", "--splits", "3", "--output", str(trained / "honesty"), "search.batch_size=3"]
    honesty.main(command)
    shown = capsys.readouterr().out
    assert "candidates, problems: 20 of mbpp, 20 of dbbench, 20 of os_interaction" in shown
    tables = trained / "honesty" / "tables"
    found = json.loads((tables / "selection_honesty.json").read_text())
    assert found["candidates"][0]["name"] == "aggregate"
    assert len(found["candidates"]) == 1 + 3  # export.elites
    assert len(found["splits"]) == 3
    lines = [json.loads(line) for line in (trained / "honesty" / "history.jsonl").read_text().splitlines()]
    trains = [float(np.mean([*lines[int(one["name"].split()[1])]["scores"].values()])) for one in found["candidates"][1:]]
    assert [one["train"] for one in found["candidates"][1:]] == pytest.approx(trains)
    selection = json.loads((tables / "selection.json").read_text())["candidates"]
    assert [one["pool"] for one in found["candidates"]] == pytest.approx([one["average"] for one in selection[:4]])
    times = {path: path.stat().st_mtime_ns for path in (tables / "selection.json", tables / "results.json")}
    honesty.main(command)
    assert shown.endswith(capsys.readouterr().out[-500:])
    assert {path: path.stat().st_mtime_ns for path in times} == times
