"""Runs that begin with the individuals of a finished one: changed files, failures, and what is left out."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.config import load_config
from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.runs.audit import verify_run
from cycleqd_jax.runs.extension.origin import open_origin, take_origin
from cycleqd_jax.search import Journal
from cycleqd_jax.types import Adapter, FailuresError, InputError, LowRank, Outcome, Score

from ...journals import lines_without_checksums
from .carried import (
    ALL,
    FIRST,
    INPUTS,
    NEW,
    OLD,
    Scores,
    as_for_users,
    config_of,
    elites_of,
    extended,
    models,
    search_in,
    space_of,
)


@as_for_users
def test_the_copy_of_the_old_run_is_checked(old, tmp_path):
    folder = tmp_path / "new"
    extended(old, folder)
    path = folder / "origin" / "history.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"generation":0', b'"generation":1', 1))
    with pytest.raises(InputError, match=r"expected history.jsonl with digest .*, as when this run began, got"):
        extended(old, folder)
    assert any("as when this run began" in one for one in verify_run(folder).problems)


@as_for_users
def test_changed_scores_of_the_old_run_are_found(old, tmp_path):
    folder = tmp_path / "new"
    extended(old, folder)
    lines = lines_without_checksums(folder / "history.jsonl")
    chosen = next(one for one in lines if one["id"] >= 4 and one["generation"] < FIRST and one["scores"])
    chosen["scores"]["mbpp"], chosen["items"]["mbpp"] = 0.625, [0.625]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    problems = verify_run(folder).problems
    assert any(f"expected the scores of individual {chosen['id']} on mbpp, dbbench, os_interaction" in one for one in problems)


@as_for_users
def test_an_adapter_of_a_higher_rank_is_refused(tmp_path):
    """Mutation draws a number for each direction, so the old genomes could not be made again."""
    base = models(1)[0]
    rng = np.random.default_rng(1)

    def adapter(rank):
        a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 24, rank), (2, rank, 18)))
        return Adapter({"layers/w": LowRank(a, b)})

    experts = [adapter(2) for _ in OLD]
    search_in(tmp_path / "old", config_of(), ExpertSpace.from_experts(base, experts), Scores(OLD))
    config = config_of((*OLD, NEW), ALL, origin=str(tmp_path / "old"), output=str(tmp_path / "new"))
    origin = open_origin(config, tmp_path / "new")
    assert len(list(origin.children(ExpertSpace.from_experts(base, [*experts, adapter(1)])))) == 3 * FIRST
    with pytest.raises(InputError, match=r"expected genomes of the shapes that those in .* an adapter of at most their rank"):
        origin.carried(ExpertSpace.from_experts(base, [*experts, adapter(3)]), None)  # before a journal is there
    with pytest.raises(InputError, match=r"expected genomes of the shapes that those in .* an adapter of at most their rank"):
        next(origin.children(ExpertSpace.from_experts(base, [*experts, adapter(3)])))
    with pytest.raises(InputError, match="expected the genome of individual"):  # other experts than those of the run
        list(origin.children(ExpertSpace.from_experts(base, [*experts[1:], adapter(2), adapter(2)], w_max=0.1)))


class Broken(Scores):
    """Scores of the new task, without a sandbox for the calls of some numbers."""

    def __init__(self, failing):
        super().__init__((NEW,))
        self.failing = failing

    def __call__(self, groups, on_result):
        for i, _ in enumerate(groups):
            self.calls += 1
            found = Evaluation({NEW: [Outcome(Score(0.5), (), 1, 1)]}, None, {"evaluate": 0.5})
            if self.calls in self.failing:
                found = Evaluation({}, "InfraError: no box", {}, transient=True)
            on_result(i, [found])


@as_for_users
def test_an_elite_that_cannot_be_evaluated_is_quarantined(old, tmp_path):
    further = Broken({5})
    extended(old, tmp_path / "new", further=further, most=2)
    elites = sorted(elites_of(old[0]))
    assert further.calls == 3 + len(elites)
    journal = Journal(tmp_path / "new" / "history.jsonl", read_only=True)
    one = journal[elites[1] + 1]
    assert (one.error, one.scores, one.items) == ("InfraError: no box", None, {})
    assert all(journal[i + 1].scores is not None for i in elites if i != elites[1])
    assert one.id not in elites_of(tmp_path / "new")
    assert verify_run(tmp_path / "new").problems == []


@as_for_users
def test_too_many_elites_in_a_row_stop_the_run(old, tmp_path):
    elites = [i + 1 for i in sorted(elites_of(old[0]))]
    row = rf"individuals in a row, got individuals {elites[1]} to {elites[3]} "
    with pytest.raises(FailuresError, match=row):
        extended(old, tmp_path / "new", further=Broken({5, 6, 7}), most=3)
    journal = Journal(tmp_path / "new" / "history.jsonl", read_only=True)
    assert not [i for i in elites[1:4] if journal.get(i) is not None]
    found = verify_run(tmp_path / "new")
    assert found.problems == []
    config, ids = load_config(tmp_path / "new" / "config.yaml"), journal.ids()
    count, size = len(config.expert_names), config.search.batch_size
    complete = range(count + (ids[-1] - count) // size * size)  # of the last generation, individuals may be missing
    assert any("are not in" in one for one in found.notes) == bool({*complete} - {*ids})
    *_, calls = extended(old, tmp_path / "new", most=3)
    assert calls[1].calls == len(elites) - 1
    assert verify_run(tmp_path / "new").problems == []
    with pytest.raises(FailuresError, match=r"expected scores of expert 'mbpp', got: InfraError: no box in"):
        extended(old, tmp_path / "expert", further=Broken({1}))


@as_for_users
def test_plain_qd_is_extended_too(tmp_path):
    options = {"search": {"generations": FIRST, "batch_size": 3, "bins": 4, "method": "qd"}, "export": {"method": "soup"}}
    search_in(tmp_path / "old", config_of(**options), space_of(OLD), Scores(OLD))
    options["search"]["generations"] = ALL
    config = config_of((*OLD, NEW), **options, origin=str(tmp_path / "old"))
    (tmp_path / "new").mkdir()
    origin = take_origin(config, tmp_path / "new", INPUTS, lambda line: None)
    further = Scores((NEW,))
    state = search_in(
        tmp_path / "new", config, space_of((*OLD, NEW)), Scores((*OLD, NEW)), origin.carried(space_of((*OLD, NEW)), further)
    )
    assert further.calls == 3 + len(origin.elites)
    assert len(origin.elites) > 3
    assert int(state.generation) == ALL
    assert verify_run(tmp_path / "new").problems == []


@as_for_users
def test_a_generation_that_a_budget_cut_short_is_left_out(tmp_path):
    options = {"search": {"generations": FIRST, "batch_size": 3, "bins": 4, "budget": 3 + 3 * 4 + 1}}
    old = config_of(**options)
    folder, lines = tmp_path / "old", []
    search_in(folder, old, space_of(OLD), Scores(OLD), budget=old.search.budget)
    config = config_of((*OLD, NEW), ALL, origin=str(folder))
    (tmp_path / "new").mkdir()
    origin = take_origin(config, tmp_path / "new", INPUTS, lines.append)
    assert (origin.generations, origin.left_out) == (4, 1)
    assert lines == [f"the last 1 children of the run in {folder} are left out: their generation is incomplete"]
    space = space_of((*OLD, NEW))
    search_in(tmp_path / "new", config, space, Scores((*OLD, NEW)), origin.carried(space, Scores((NEW,))))
    assert verify_run(tmp_path / "new").problems == []
