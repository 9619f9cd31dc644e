"""The choice of the final model: argmax of validation, the greedy soup, ties, and a kill between candidates."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.genome import CoefficientSpace, DenseSpace, ExpertSpace
from cycleqd_jax.runs.results.selection import Candidate, select
from cycleqd_jax.types import InputError, Outcome, Score

TASKS = ("a", "b")
PROBLEMS = {"a": "1234", "b": "5678"}
N = 8  # problems of each task


def evaluation(solved: tuple[int, int]) -> Evaluation:
    """An evaluation with so many solved problems of each task."""
    outcomes = {
        task: [Outcome(Score(float(i < count)), (), 1, 1) for i in range(N)] for task, count in zip(TASKS, solved, strict=True)
    }
    return Evaluation(outcomes, None, {"evaluate": 1.0})


class FakeEvaluator:
    """Scores genomes, which are single numbers, by a table; ``solved`` None is a model without finite logits.

    It raises an interrupt instead of evaluation number ``dies`` (from 0).
    """

    def __init__(self, solved, size=1, dies=None):
        self.solved, self.size, self.dies, self.seen = solved, size, dies, []

    def __call__(self, groups, on_result):
        for i, group in enumerate(groups):
            assert len(group) <= self.size
            found = []
            for genome in group:
                if len(self.seen) == self.dies:
                    raise KeyboardInterrupt
                value = round(float(genome), 4)
                self.seen.append(value)
                solved = self.solved[value]
                found.append(Evaluation({}, "overflow", {}) if solved is None else evaluation(solved))
            on_result(i, found)


def candidates(*values, aggregate=100.0):
    """The aggregate, and elites with the ids 10, 11, …, whose genomes are the given numbers."""
    elites = [Candidate("elite", (10 + i,), jnp.float32(value)) for i, value in enumerate(values)]
    return [Candidate("aggregate", (10, 11), jnp.float32(aggregate)), *elites]


def chosen_of(tmp_path, evaluator, given, **more):
    return select(given, evaluator, tmp_path / "tables" / "selection.json", problems=PROBLEMS, **more)


# Elites 1, 2 and 4. The best is 2; 2 with 4 (3.0) is as good, all three (2.3333) fall.
SOLVED = {100.0: (3, 3), 1.0: (4, 1), 2.0: (4, 4), 4.0: (5, 2), 3.0: (2, 6), 2.3333: (4, 3)}


def test_the_best_on_validation_is_chosen_and_the_soup_is_greedy(tmp_path):
    lines = []
    found = chosen_of(tmp_path, evaluator := FakeEvaluator(SOLVED), candidates(1.0, 2.0, 4.0), log=lines.append)
    assert evaluator.seen == [100.0, 1.0, 2.0, 4.0, 3.0, 2.3333]  # elites from the best to the worst: 2, 4, 1
    assert found.soup.key == ("soup", (11, 12))
    assert float(found.soup.genome) == 3.0
    assert found.chosen.key == ("elite", (11,))  # before the soup, which is as good
    assert found.facts == {"average": 0.5, "problems": 2 * N, "candidates": 5, "elites": 3, "soups": 1}
    assert lines == ["selected on 16 validation problems: elite 11, 50.0 %"]

    tree = json.loads((tmp_path / "tables" / "selection.json").read_text())
    assert tree["problems"] == PROBLEMS
    assert tree["soup"] == [11, 12]
    assert tree["chosen"] == {"kind": "elite", "ids": [11]}
    assert [(one["kind"], one["ids"]) for one in tree["candidates"]] == [
        ("aggregate", [10, 11]), ("elite", [10]), ("elite", [11]), ("elite", [12]), ("soup", [11, 12]), ("soup", [11, 12, 10]),
    ]  # fmt: skip
    one = tree["candidates"][1]
    assert one["scores"] == {"a": 0.5, "b": 0.125}
    assert one["average"] == 0.3125
    assert one["items"]["a"] == [1.0] * 4 + [0.0] * 4
    assert one["error"] is None


def test_a_better_soup_is_chosen(tmp_path):
    found = chosen_of(tmp_path, FakeEvaluator(SOLVED | {3.0: (5, 4), 2.3333: (8, 8)}), candidates(1.0, 2.0, 4.0))
    assert found.chosen.key == found.soup.key == ("soup", (11, 12, 10))


def test_without_an_accepted_elite_the_soup_is_the_best_one(tmp_path):
    solved = SOLVED | {3.0: (3, 4), 1.5: (0, 0)}
    found = chosen_of(tmp_path, FakeEvaluator(solved), candidates(1.0, 2.0, 4.0))
    assert found.soup.key == found.chosen.key == ("elite", (11,))
    assert found.facts["candidates"] == 4


def test_of_equals_the_first_is_chosen(tmp_path):
    solved = dict.fromkeys((100.0, 1.0, 2.0, 1.5), (3, 3)) | {2.0: (6, 0)}
    found = chosen_of(tmp_path, FakeEvaluator(solved), candidates(1.0, 2.0))
    assert found.chosen.kind == "aggregate"
    assert found.soup.ids == (10, 11)  # of equal elites, the better on train begins


def test_equal_scores_are_equal_whatever_the_order_of_their_problems(tmp_path):
    """The rounding of a sum of floats depends on their order; averages are compared as fractions."""

    class Evaluator(FakeEvaluator):
        def __call__(self, groups, on_result):
            for i, group in enumerate(groups):
                items = {"a": [0.1, 0.2, 0.3], "b": [0.7]} if float(group[0]) == 1.0 else {"a": [0.3, 0.2, 0.1], "b": [0.7]}
                outcomes = {task: [Outcome(Score(value), (), 1, 1) for value in of] for task, of in items.items()}
                on_result(i, [Evaluation(outcomes, None, {})])

    given = candidates(1.0, 2.0)[1:]
    assert chosen_of(tmp_path, Evaluator({}), given).soup.ids == (10, 11)


def test_models_without_scores_are_never_chosen(tmp_path):
    solved = {100.0: None, 1.0: (1, 0), 2.0: None, 4.0: (0, 0), 2.5: None}
    found = chosen_of(tmp_path, FakeEvaluator(solved), candidates(1.0, 2.0, 4.0))
    assert found.chosen.key == ("elite", (10,))
    with pytest.raises(
        InputError, match=r"expected an elite with finite scores on the validation problems, got none in .*json; "
    ):
        chosen_of(tmp_path / "other", FakeEvaluator(dict.fromkeys((100.0, 1.0))), candidates(1.0))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("dies", range(6))
def test_a_killed_selection_evaluates_no_candidate_twice(tmp_path, dies, size):
    given = candidates(1.0, 2.0, 4.0)
    whole = chosen_of(tmp_path / "whole", FakeEvaluator(SOLVED, size), given)
    killed = FakeEvaluator(SOLVED, size, dies)
    with pytest.raises(KeyboardInterrupt):
        chosen_of(tmp_path, killed, given)
    file = tmp_path / "tables" / "selection.json"
    assert not file.exists() or "chosen" not in json.loads(file.read_text())
    recorded = len(json.loads(file.read_text())["candidates"]) if file.exists() else 0
    found = chosen_of(tmp_path, again := FakeEvaluator(SOLVED, size), given)
    assert again.seen == [100.0, 1.0, 2.0, 4.0, 3.0, 2.3333][recorded:]
    assert recorded == dies if size == 1 else recorded <= dies
    assert (found.chosen.key, found.soup.key, found.facts) == (whole.chosen.key, whole.soup.key, whole.facts)
    assert file.read_bytes() == (tmp_path / "whole" / "tables" / "selection.json").read_bytes()
    assert chosen_of(tmp_path, FakeEvaluator({}, size), given).chosen.key == whole.chosen.key  # nothing is left


@pytest.mark.parametrize("size", [1, 2])
def test_what_is_evaluated_is_named_before_it_is_written(tmp_path, size):
    seen = []

    def on_evaluated(evaluated):
        file = tmp_path / "tables" / "selection.json"
        assert len(json.loads(file.read_text())["candidates"] if file.exists() else []) == len(seen)
        assert all(one.seconds == {"evaluate": 1.0} for one in evaluated.values())
        seen.extend(evaluated)

    chosen_of(tmp_path, FakeEvaluator(SOLVED, size), candidates(1.0, 2.0, 4.0), on_evaluated=on_evaluated)
    assert seen == ["aggregate", "elite 10", "elite 11", "elite 12", "soup 11 + 12", "soup 11 + 12 + 10"]


def test_groups_do_not_depend_on_what_is_known(tmp_path):
    evaluator = FakeEvaluator(SOLVED, size=3, dies=3)
    with pytest.raises(KeyboardInterrupt):
        chosen_of(tmp_path, evaluator, candidates(1.0, 2.0, 4.0))
    again = FakeEvaluator(SOLVED, size=3)
    chosen_of(tmp_path, again, candidates(1.0, 2.0, 4.0))
    assert again.seen[0] == 4.0


def test_a_selection_on_other_problems_is_refused(tmp_path):
    chosen_of(tmp_path, FakeEvaluator(SOLVED), candidates(1.0, 2.0, 4.0))
    with pytest.raises(
        InputError, match=r"expected the validation problems .* of this run, got a selection on .*; restore the"
    ):
        select(candidates(1.0), FakeEvaluator(SOLVED), tmp_path / "tables" / "selection.json", problems={"a": "other"})


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"candidates": [3], "problems": {}}',
        '{"candidates": [{"kind": "elite", "ids": [1]}], "problems": {}}',
        '{"candidates": [{"kind": "elite", "ids": [1], "error": null, "items": {}}], "problems": {}}',
        '{"candidates": [{"kind": "elite", "ids": [1], "error": null, "items": {"a": ["x"]}}], "problems": {}}',
        '{"candidates": [{"kind": "elite", "ids": [1], "error": null, "items": {"a": [NaN]}}], "problems": {}}',
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "selection.json").write_text(text)
    with pytest.raises(
        InputError, match=r"expected the candidates of a selection, got .* in .*selection\.json; remove the file"
    ):
        chosen_of(tmp_path, FakeEvaluator(SOLVED), candidates(1.0, 2.0, 4.0))


def spaces():
    keys = jax.random.split(jax.random.key(0), 3)
    base, *experts = ({"layers": {"w": jax.random.normal(key, (2, 4, 4))}, "norm": jnp.ones(4)} for key in keys)
    return {
        "expert": ExpertSpace.from_experts(base, experts),
        "dense": DenseSpace.from_experts(base, experts),
        "coefficients": CoefficientSpace.from_experts(base, experts, groups=2),
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["expert", "dense", "coefficients"])
def test_a_soup_of_genomes_is_the_average_of_weights(tmp_path, name):
    space = spaces()[name]
    genomes = [space.expert(0), space.expert(1)]
    if name != "coefficients":
        genomes[0] = space.mutate(jax.random.key(3), genomes[0], jnp.int32(1))

    class Evaluator:
        size = 1

        def __call__(self, groups, on_result):
            for i in range(len(groups)):
                on_result(i, [evaluation((1, 1))])

    given = [Candidate("elite", (i,), genome) for i, genome in enumerate(genomes)]
    soup = chosen_of(tmp_path, Evaluator(), given).soup
    assert soup.ids == (0, 1)
    ours = space.express(soup.genome)
    theirs = jax.tree.map(lambda x, y: (x + y) / 2, *map(space.express, genomes))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6, rtol=0), ours, theirs)
