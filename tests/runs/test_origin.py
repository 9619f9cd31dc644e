"""A run that begins with the individuals of a finished one: genomes, old scores, resume, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from cycleqd_jax.algorithms.selection import extra_scores
from cycleqd_jax.config import load_config, to_dict
from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.files import write_json
from cycleqd_jax.genome import DenseSpace, ExpertSpace
from cycleqd_jax.report import open_run
from cycleqd_jax.report.status import read_status
from cycleqd_jax.runs.audit import run_digest, verify_run
from cycleqd_jax.runs.folder import versions
from cycleqd_jax.runs.origin import compare_origin, open_origin, take_origin
from cycleqd_jax.runs.replay import rebuild, replay
from cycleqd_jax.runs.searchers import grid_of, make_searcher
from cycleqd_jax.schema import SCHEMA
from cycleqd_jax.search import Checkpoints, Journal, evolve, tree_digest
from cycleqd_jax.types import Adapter, FailuresError, InputError, LowRank, Outcome, Score

OLD, NEW = ("mbpp", "dbbench", "os_interaction"), "humaneval"
FIRST, ALL = 5, 8
INPUTS = {"base": "b", **{f"expert/{name}": name for name in (*OLD, NEW)}, **{f"{name}/train": name for name in (*OLD, NEW)}}


class Killed(BaseException):
    """Stands for a killed process."""


class Scores:
    """Scores of some tasks that depend on the bits of a genome's part for the old experts; about one in nine is quarantined."""

    size = 1

    def __init__(self, tasks, dies_at=None):
        self.tasks, self.dies_at, self.calls = tasks, dies_at, 0

    def __call__(self, groups, on_result):
        for i, (genome,) in enumerate(groups):
            if self.calls == self.dies_at:
                raise Killed
            self.calls += 1
            number = int(tree_digest(genome), 16)
            if len(jax.tree.leaves(genome)[0]) and not self._is_expert(genome) and number % 9 == 0:
                on_result(i, [Evaluation({}, "the logits are not finite", {})])
                continue
            values = {task: (number >> 7 * k) % 5 / 4 for k, task in enumerate(self.tasks)}
            outcomes = {task: [Outcome(Score(value), (), 1, 1)] for task, value in values.items()}
            on_result(i, [Evaluation(outcomes, None, {"evaluate": 0.5})])

    @staticmethod
    def _is_expert(genome):
        return all(not np.asarray(d).any() for d in getattr(genome, "mutation", {"": np.ones(1)}).values())


def models(count):
    rng = np.random.default_rng(0)
    return [
        {
            "layers": {"w": jnp.asarray(0.5 * rng.normal(size=(2, 24, 18)), jnp.float32)},
            "norm": jnp.asarray(rng.normal(size=24), jnp.float32),
        }
        for _ in range(count)
    ]


def space_of(names, dense=False):
    """The space of experts, each of which is the same in every space."""
    base, *experts = models(5)
    chosen = [dict(zip((*OLD, NEW), experts, strict=True))[name] for name in names]
    return DenseSpace.from_experts(base, chosen) if dense else ExpertSpace.from_experts(base, chosen)


def config_of(names=OLD, generations=FIRST, **changes):
    given = {"base": "hub/base", "experts": {name: f"hub/{name}" for name in names}}
    search = {"generations": generations, "batch_size": 3, "bins": 4}
    tree = {"name": "x", "tasks": [{"name": t} for t in names], "model": given, "search": search}
    return load_config({**tree, **changes})


def search_in(folder, config, space, evaluator, carried=None, every=2, budget=None, max_failures=None):
    """Runs the search of a config in a folder, as a run does."""
    folder.mkdir(exist_ok=True)
    stored = {**to_dict(config), "schema": SCHEMA, "versions": versions()}
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    write_json(folder / "inputs.json", {"schema": SCHEMA, **INPUTS, "versions": {}})
    names = config.expert_names
    experts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[space.expert(k) for k in range(len(names))])
    checkpoints, journal = Checkpoints(folder / "checkpoints", every=every), Journal(folder / "history.jsonl")

    def write_grid(state):
        scores = np.asarray([journal.scores(k, config.task_names) for k in range(len(names))], np.float32)
        write_json(folder / "grid.json", grid_of(config, scores))

    try:
        return evolve(
            make_searcher(config, space),
            experts,
            evaluator,
            tasks=config.task_names,
            names=names,
            key=jax.random.key(config.seed),
            generations=config.search.generations,
            batch_size=config.search.batch_size,
            journal=journal,
            checkpoints=checkpoints,
            budget=budget,
            max_failures=max_failures,
            carried=carried,
            on_start=write_grid,
        )
    finally:
        checkpoints.close()


as_for_users = pytest.mark.as_users
"""Genomes are compared bit by bit with those of arrays of other shapes. The emitters with which the default tests compile round
them otherwise, so programs have to be compiled as for users."""


@pytest.fixture(scope="module", params=["expert", pytest.param("dense", marks=pytest.mark.exhaustive)])
def old(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("old") / "run"
    dense = request.param == "dense"
    genome = {"genome": {"space": "dense"}} if dense else {}
    search_in(folder, config_of(**genome), space_of(OLD, dense), Scores(OLD))
    return folder, dense, genome


def extended(old, folder, tasks=(*OLD, NEW), others=(), evaluator=None, further=None, every=2, generations=ALL, most=None):
    """Extends a run, or continues to; returns config, state and evaluators."""
    origin_folder, dense, genome = old
    config = config_of(tasks, generations, **genome, origin=str(origin_folder), output=str(folder))
    if others:
        model = dataclasses.replace(config.model, others={name: f"hub/{name}" for name in others})
        config = dataclasses.replace(config, model=model)
    folder.mkdir(exist_ok=True)
    origin = take_origin(config, folder, INPUTS, lambda line: None)
    space = space_of(config.expert_names, dense)
    evaluator, further = evaluator or Scores(config.task_names), further or Scores(origin.new_tasks)
    carried = origin.carried(space, further if origin.new_tasks else None)
    state = search_in(folder, config, space, evaluator, carried, every, max_failures=most)
    return config, space, state, (evaluator, further)


def elites_of(folder):
    config, journal = load_config(folder / "config.yaml"), Journal(folder / "history.jsonl", read_only=True)
    archives = replay(config, journal).state.archives
    ids = np.asarray(extra_scores(archives.repertoires)["id"])[np.asarray(archives.occupied())]
    return {i for i in ids.tolist() if i >= len(config.expert_names)}


@as_for_users
def test_a_new_task(old, tmp_path, assert_close):
    before = {path: path.read_bytes() for path in old[0].rglob("*") if path.is_file()}
    config, space, state, (evaluator, further) = extended(old, tmp_path / "new")
    assert {path: path.read_bytes() for path in old[0].rglob("*") if path.is_file()} == before
    theirs, ours = (Journal(path / "history.jsonl", read_only=True) for path in (old[0], tmp_path / "new"))
    elites, count = elites_of(old[0]), 3 + 3 * FIRST
    assert elites
    assert (evaluator.calls, further.calls) == (1 + 3 * (ALL - FIRST), 3 + len(elites))  # the new expert, and new children
    assert ours.ids() == list(range(4 + 3 * ALL))
    for one in (theirs[i] for i in range(count)):
        mine = ours[one.id if one.id < 3 else one.id + 1]
        assert (mine.generation, mine.expert, mine.active, mine.omega, mine.key) == (
            one.generation, one.expert, one.active, one.omega, one.key
        )  # fmt: skip
        assert mine.parents == tuple(p if p < 3 else p + 1 for p in one.parents)
        if one.id >= 3 and one.id not in elites:
            assert (mine.scores, mine.items, mine.error) == (None, {}, one.error)
        elif mine.error is None:
            assert {task: mine.scores[task] for task in OLD} == one.scores
            assert {task: mine.items[task] for task in OLD} == one.items
            assert mine.scores.keys() == {*OLD, NEW}
    # An old elite has the coefficients that it had, and zero of the new expert.
    names = config.expert_names
    genomes = rebuild(space, ours, names, [i + 1 for i in elites])
    for identity, genome in rebuild(space_of(OLD, old[1]), theirs, OLD, elites).items():
        if not old[1]:
            mine = genomes[identity + 1]
            np.testing.assert_array_equal(mine.mixing, [*np.asarray(genome.mixing), 0.0])
            for path, d in genome.mutation.items():
                np.testing.assert_array_equal(mine.mutation[path][:3], d)
                assert not np.asarray(mine.mutation[path][3]).any()
        # The sum over directions has further zeros, so the last bits of a weight may differ.
        assert_close(space.express(genomes[identity + 1]), space_of(OLD, old[1]).express(genome), tol=1e-6)
    assert int(state.generation) == ALL
    found = verify_run(tmp_path / "new")
    assert found.problems == []
    assert f"the individuals of {old[0]}" in found.checked
    status = read_status(tmp_path / "new")
    assert status.individuals == status.total == 4 + 3 * ALL
    assert all(one["error"] == "the logits are not finite" for one in status.quarantined)
    costs = [one["individuals"] for one in open_run(tmp_path / "new").generation_costs if one["stage"] == "express"]
    assert len(costs) == 1 + ALL
    assert sum(costs) == 4 + len(elites) + 3 * (ALL - FIRST)  # those that were evaluated in this run


@as_for_users
def test_killed_and_resumed_it_is_the_same(old, tmp_path, assert_identical):
    _, _, state, calls = extended(old, tmp_path / "whole")
    digest = run_digest(tmp_path / "whole")
    journal = (tmp_path / "whole" / "history.jsonl").read_bytes()
    children, further = (one.calls for one in calls)
    for name, at in [("further", 1), ("further", further - 1), ("evaluator", 0), ("evaluator", 1), ("evaluator", children - 1)]:
        folder = tmp_path / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        first = {"further": Scores((NEW,)), "evaluator": Scores((*OLD, NEW))}
        first[name].dies_at = at
        with pytest.raises(Killed):
            extended(old, folder, **first)
        assert verify_run(folder).problems == []  # with a part of the old individuals
        if (folder / "grid.json").exists():  # the experts are evaluated
            kept = Journal(folder / "history.jsonl", read_only=True).ids()
            assert kept == list(range(len(kept)))
            assert open_run(folder).lineage(kept[-1])
        _, _, again, rest = extended(old, folder)
        assert first["evaluator"].calls + rest[0].calls == children  # nothing is evaluated twice
        assert first["further"].calls + rest[1].calls == further
        assert_identical(again, state)
        assert run_digest(folder) == digest
        assert (folder / "history.jsonl").read_bytes() == journal
    shutil.rmtree(folder / "checkpoints")  # the journal suffices
    _, _, again, rest = extended(old, folder)
    assert (rest[0].calls, rest[1].calls) == (0, 0)
    assert_identical(again, state)


@as_for_users
def test_a_task_is_removed_and_the_result_extended_again(old, tmp_path, assert_close):
    tasks = ("mbpp", "os_interaction")
    config, space, _, calls = extended(old, tmp_path / "two", tasks, others=("dbbench",))
    assert calls[1].calls == 0
    assert calls[0].calls == 3 * (ALL - FIRST)  # no individual of the old run is evaluated again
    assert config.expert_names == ("mbpp", "os_interaction", "dbbench")
    theirs, ours = (Journal(path / "history.jsonl", read_only=True) for path in (old[0], tmp_path / "two"))
    elites = elites_of(old[0])
    assert [ours[k].expert for k in range(3)] == list(config.expert_names)
    for identity in elites:
        assert ours[identity].scores == {task: theirs[identity].scores[task] for task in tasks}
    rebuilt, before = rebuild(space, ours, config.expert_names, elites), rebuild(space_of(OLD, old[1]), theirs, OLD, elites)
    for identity in elites:
        assert_close(space.express(rebuilt[identity]), space_of(OLD, old[1]).express(before[identity]), tol=1e-6)
    assert verify_run(tmp_path / "two").problems == []
    children = [ours[i] for i in ours.ids() if ours[i].generation >= FIRST]
    assert {one.active for one in children} == set(tasks)
    # The run of two tasks goes on with another task: the expert of the removed one stays.
    again = (tmp_path / "two", *old[1:])
    config, *_ = extended(again, tmp_path / "three", (*tasks, NEW), others=("dbbench",), generations=ALL + 2)
    assert config.expert_names == (*tasks, NEW, "dbbench")
    assert verify_run(tmp_path / "three").problems == []
    assert read_status(tmp_path / "three").total == 4 + 3 * (ALL + 2)


@pytest.fixture
def copied(old, tmp_path):
    return shutil.copytree(old[0], tmp_path / "copied"), *old[1:]


def change_config(folder, change):
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    change(tree)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def cut_journal(folder):
    lines = (folder / "history.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "history.jsonl").write_bytes(b"".join(lines[:-1]))


def use_dns(folder):
    change_config(folder, lambda tree: (tree["search"].update(method="dns"), tree["export"].update(method="soup")))


REFUSED = {
    "another version": (
        lambda folder: change_config(folder, lambda tree: tree["versions"].update(cycleqd_jax="0.0.1")),
        "expected a run of cycleqd_jax .*, got version 0.0.1 and schema 1 in",
    ),
    "a newer schema": (
        lambda folder: change_config(folder, lambda tree: tree.update(schema=99)),
        "expected a file of schema 1 or older, got schema 99",
    ),
    "not finished": (cut_journal, "expected a finished search of 18 individuals, got 17 in .*history.jsonl; finish it first"),
    "no run": (lambda folder: (folder / "config.yaml").unlink(), "expected the folder of a finished run with config.yaml"),
    "another method": (
        use_dns,
        "expected a run with search.method cycleqd or qd, whose archives are carried over, got dns",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_cannot_be_extended_is_refused(copied, tmp_path, case):
    damage, message = REFUSED[case]
    damage(copied[0])
    with pytest.raises(InputError, match=message):
        open_origin(config_of((*OLD, NEW), ALL, **copied[2], origin=str(copied[0])), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_differs_is_named(old, tmp_path):
    folder, _, genome = old

    def opened(names=(*OLD, NEW), generations=ALL, **changes):
        return open_origin(config_of(names, generations, **{**genome, **changes}, origin=str(folder)), tmp_path / "new")

    with pytest.raises(InputError, match=r"expected seed 0, as in the run in .* got 1; use the old value"):
        opened(seed=1)
    with pytest.raises(InputError, match=r"expected search.generations above the 5 of the run in .*, got 5"):
        opened(generations=FIRST)
    with pytest.raises(InputError, match=r"expected all experts of the run in .*, got none for 'dbbench'"):
        opened(("mbpp", "os_interaction", NEW))
    for key, value in {"engine.max_len": 4096, "engine.overflow": "truncate", "sandbox.cpu_s": 9.0}.items():
        section, name = key.split(".")
        with pytest.raises(InputError, match=rf"expected {key} .*, as in the run in .* got {value}; use the old value"):
            opened(**{section: {name: value}})
    assert opened(sandbox={"workers": 7}) is not None
    model = {"base": "hub/base", "experts": {name: f"hub/{name}" for name in (*OLD, NEW)}, "tokenizer": "hub/other"}
    with pytest.raises(InputError, match=r"expected model.tokenizer None, .* got hub/other; use the old value"):
        opened(model=model)
    search = {"generations": ALL, "batch_size": 3, "bins": 4}
    carried = 4 + 3 * FIRST
    with pytest.raises(
        InputError, match=rf"expected search.budget above {carried}, the experts and the children .* got {carried}"
    ):
        opened(search={**search, "budget": carried})
    assert opened(search={**search, "budget": carried + 1}) is not None
    config = config_of((NEW, "bigcodebench"), ALL, **genome, origin=str(folder))
    model = dataclasses.replace(config.model, others={name: f"hub/{name}" for name in OLD})
    with pytest.raises(InputError, match="expected a task of the run in"):
        open_origin(dataclasses.replace(config, model=model), tmp_path / "new")
    sizes = [{"name": t, "train_size": 8 if t == "mbpp" else 32} for t in (*OLD, NEW)]
    with pytest.raises(InputError, match=r"expected tasks.mbpp .*'train_size': 32.* got .*'train_size': 8"):
        opened(tasks=sizes)
    origin = opened()
    for name in ("base", "expert/dbbench", "mbpp/train", "tokenizer"):
        with pytest.raises(InputError, match=f"expected {name} with digest .* got other; restore it"):
            compare_origin(origin, INPUTS | {name: "other"})


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
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
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
