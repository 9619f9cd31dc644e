"""All searchers in the search loop: journals, budgets, and resuming from checkpoints."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms.common import rebuild_child
from cycleqd_jax.evaluation import Evaluation, Evaluator, SerialWorker, WorkerPool
from cycleqd_jax.genome import CoefficientGenome
from cycleqd_jax.individual import Individual
from cycleqd_jax.search import Checkpoints, Journal, evolve, individuals_within, tree_digest
from cycleqd_jax.types import InputError, Outcome, Score

from .all_searchers import (
    BATCH,
    GENERATIONS,
    TASKS,
    WITH_COEFFICIENTS,
    K,
    experts_of,
    searchers,
)

loop = pytest.mark.parametrize("name", searchers("cycleqd"), indirect=True)
"""Of tests of the search loop that concern no state of a searcher."""


class Killed(BaseException):
    """Stands for a killed process."""


@dataclasses.dataclass
class FromWeights(Evaluator):
    """Scores computed from the weights, two items for each task; the call number ``dies_at`` raises."""

    dies_at: int | None = None
    broken_at: int | None = None
    calls: int = 0

    def unload(self) -> None:
        pass

    def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()) -> Evaluation:
        if self.calls == self.dies_at:
            raise Killed
        self.calls += 1
        if self.calls - 1 == self.broken_at:
            return Evaluation({}, "the logits are not finite", {})
        sums = np.asarray(params["layers"]["w"], np.float64).sum(axis=(0, 1))
        values = [float(np.round(1 / (1 + np.exp(-one)), 1)) for one in sums]  # coarse, so that there are ties
        outcomes = {
            task: [Outcome(Score(value), (), 1, 1), Outcome(Score(1 - value / 2), (), 1, 1)]
            for task, value in zip(TASKS, values, strict=True)
        }
        return Evaluation(outcomes, None, {"evaluate": 0.001})


def run(made, folder, evaluator=None, *, every=1, **options):
    searcher, space = made
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", every=every)
    try:
        return evolve(
            searcher,
            experts_of(space),
            WorkerPool([SerialWorker(space.express, evaluator or FromWeights())]),
            tasks=TASKS,
            key=jax.random.key(1),
            batch_size=BATCH,
            journal=Journal(folder / "history.jsonl"),
            checkpoints=checkpoints,
            **{"generations": GENERATIONS} | options,
        )
    finally:
        checkpoints.close()


def lines(folder):
    found = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.exhaustive)])
@loop
def test_resumed_at_any_generation_it_ends_the_same(made, tmp_path, assert_identical, every):
    state = run(made, tmp_path / "whole", every=9)
    for generation in range(GENERATIONS):
        folder = tmp_path / f"{generation}"
        with pytest.raises(Killed):
            run(made, folder, FromWeights(dies_at=K + generation * BATCH + 1), every=every)
        assert_identical(run(made, folder, every=every), state)
        assert lines(folder) == lines(tmp_path / "whole")


@pytest.mark.exhaustive
def test_quarantined_children_resume(made, tmp_path, assert_identical):
    state = run(made, tmp_path / "whole", FromWeights(broken_at=6))
    assert [line["id"] for line in lines(tmp_path / "whole") if line["scores"] is None] == [6]
    with pytest.raises(Killed):
        run(made, tmp_path / "killed", FromWeights(broken_at=6, dies_at=9), every=3)
    assert_identical(run(made, tmp_path / "killed", every=3), state)


@pytest.mark.as_users
def test_the_journal_rebuilds_every_child(name, made, tmp_path, assert_close):
    """From the experts and the journal alone: parents, active task and key, or the recorded coefficients."""
    _searcher, space = made
    run(made, tmp_path)
    journal = Journal(tmp_path / "history.jsonl")
    genomes = {k: space.expert(k) for k in range(K)}
    for identity in range(K, K + GENERATIONS * BATCH):
        one = journal.get(identity)
        assert one is not None
        assert (one.coefficients is not None) == (name in WITH_COEFFICIENTS)
        if one.coefficients is not None:
            assert one.omega is None
            assert one.active is None
            genomes[identity] = CoefficientGenome(jnp.asarray(one.coefficients, jnp.float32))
            continue
        assert one.key is not None
        assert one.omega is not None
        assert one.active is not None
        first, second = (genomes[parent] for parent in one.parents)
        omega, key = jnp.asarray(one.omega, jnp.float32), jnp.asarray(one.key, jnp.uint32)
        genomes[identity] = rebuild_child(space, first, second, omega, key, jnp.int32(TASKS.index(one.active)))
    for identity, genome in genomes.items():
        recorded = journal.get(identity)
        again = FromWeights()(space.express(genome))
        assert recorded is not None
        assert again.scores == recorded.scores, identity
        assert tree_digest(genome) == recorded.digest, identity


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "budget", [K + 2 * BATCH + 1, *(pytest.param(K + n, marks=pytest.mark.exhaustive) for n in (BATCH, 2 * BATCH, 11))]
)
@loop
def test_the_budget_is_spent_and_not_exceeded(made, tmp_path, budget, assert_identical):
    evaluator = FromWeights()
    state = run(made, tmp_path / "whole", evaluator, budget=budget)
    assert evaluator.calls == budget == len(lines(tmp_path / "whole")) == int(state.next_id)
    again = FromWeights()
    assert_identical(run(made, tmp_path / "whole", again, budget=budget), state)
    assert again.calls == 0
    with pytest.raises(Killed):
        run(made, tmp_path / "killed", FromWeights(dies_at=budget - 1), budget=budget, every=2)
    assert_identical(run(made, tmp_path / "killed", budget=budget, every=2), state)


@pytest.mark.exhaustive
@loop
def test_a_budget_of_items(made, tmp_path):
    assert individuals_within(None, None, 6) is None
    assert individuals_within(9, None, 6) == 9
    budget = individuals_within(100, 6 * 10 + 5, 6)
    assert budget == 10
    run(made, tmp_path, budget=budget)
    items = sum(len(items) for line in lines(tmp_path) for items in line["items"].values())
    assert items == 60


@loop
def test_a_budget_below_one_generation_is_refused_before_any_evaluation(made, tmp_path):
    evaluator = FromWeights()
    with pytest.raises(InputError, match=r"expected a budget of at least 7 individuals, 3 experts and .*, got 6; increase"):
        run(made, tmp_path, evaluator, budget=6)
    assert evaluator.calls == 0


def test_a_record_with_coefficients(tmp_path):
    one = Individual(3, 0, None, None, (-1, -1), None, (0, 1), coefficients=([0.25, 0.5], [1.0, -0.125]))
    assert Individual.from_json(one.to_json(), "here") == one
    assert "coefficients" not in dataclasses.replace(one, coefficients=None).to_json()
    damaged = re.sub(',"checksum":"[0-9a-f]+"', "", one.to_json()).replace("[0.25,0.5]", "0.25")
    with pytest.raises(InputError, match="expected coefficients to be lists of finite numbers or null, got"):
        Individual.from_json(damaged, "line 1")
