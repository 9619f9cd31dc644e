"""The number of evaluations of a run, against counting by hand."""

from __future__ import annotations

import dataclasses

import pytest

from cycleqd_jax.config import load_config
from cycleqd_jax.plan import evaluations_of
from cycleqd_jax.plan.estimate import estimate
from cycleqd_jax.types import InputError

from .workloads import H100, LLAMA_8B, by_name, workload

SIZES = {"train": [32, 16, 8], "validation": [10, 10, 4], "test": [64, 64, 60]}
REPLIES = [1, 6, 5]
CONFIG = {"name": "a", "tasks": [{"name": name} for name in ("mbpp", "dbbench", "os")]}


def counted(population=1, **changes):
    return evaluations_of(load_config(CONFIG | changes), SIZES, REPLIES, population)


def test_a_run_of_cycleqd():
    search, selection, measurement = counted(search={"generations": 10, "batch_size": 4}, merges=["ties"])
    assert (search.stage, search.models, search.problems) == ("search", 3 + 40, 56)
    assert search.rounds == (56, 24, 24, 24, 24, 16)
    assert search.waves == 43
    # the aggregate, 8 elites, and a soup for each elite but the first
    assert (selection.stage, selection.models, selection.problems) == ("selection", 1 + 8 + 7, 24)
    assert selection.waves == 16
    # base, experts, uniform merge, ties; best elite, equation 5, soup, selected
    assert (measurement.stage, measurement.models, measurement.problems) == ("measurement", 1 + 3 + 1 + 1 + 4, 56 + 188)
    assert measurement.rounds == (244, 148, 148, 148, 148, 80)


def test_every_row_of_the_table_is_measured():
    more = {"model": {"prepare": {}}, "gradient": {}, "baselines": ["finetune_all"], "merges": ["ties"]}
    measurement = counted(**more)[-1]
    # base, prepared base, experts, fine-tuning on all, uniform merge, ties, gradient; best elite, equation 5, soup, selected
    assert measurement.models == 1 + 1 + 3 + 1 + 1 + 1 + 1 + 4


def test_no_more_elites_than_individuals():
    selection = counted(search={"generations": 1, "batch_size": 1}, export={"elites": 50})[1]
    assert selection.models == 1 + 4 + 3


def test_groups_of_devices_share_the_models_except_for_soups_and_rows():
    search, selection, measurement = counted(population=2, search={"generations": 10, "batch_size": 3})
    assert search.waves == 2 + 10 * 2
    assert selection.waves == 5 + 7
    assert measurement.waves == measurement.models == 9


@pytest.mark.parametrize(
    ("search", "models"),
    [
        ({"budget": 20}, 20),
        ({"budget": 1000}, 43),
        ({"budget_items": 56 * 13 + 55}, 13),
        ({"budget_items": 56 * 30, "budget": 29}, 29),
    ],
)
def test_budgets_limit_the_search(search, models):
    found = counted(search={"generations": 10, "batch_size": 4, **search})[0]
    assert found.models == models == found.waves


def test_too_small_a_budget_is_refused():
    with pytest.raises(
        InputError, match=r"expected search.budget_items of at least 392, which the experts and .*, got 391; inc"
    ):
        counted(search={"batch_size": 4, "budget_items": 56 * 7 - 1})


def test_other_methods_and_other_ends():
    selection, measurement = counted(search={"method": "qd"}, export={"elites": 3})[1:]
    assert selection.models == 3 + 2
    assert measurement.models == 1 + 3 + 1 + 3
    tasks = [{"name": name, "validation_size": 0} for name in ("mbpp", "dbbench", "os")]
    _, measurement = counted(tasks=tasks, export={"method": "aggregate"})
    assert measurement.models == 1 + 3 + 1 + 2


def test_seconds_are_those_of_the_stages():
    work = dataclasses.replace(workload(LLAMA_8B), rounds=(56, 24, 24, 24, 24, 16))
    stages = by_name(estimate(work, (1, 1, 1), H100))
    search = counted(search={"generations": 10, "batch_size": 4})[0]
    # whatever the rounds of the workload are
    assert search.seconds(workload(LLAMA_8B), (1, 1, 1), H100) == pytest.approx(
        43 * (stages["express"].seconds + stages["decode"].seconds)
    )
