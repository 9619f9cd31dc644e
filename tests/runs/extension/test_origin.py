"""A run that begins with the individuals of a finished one: genomes, old scores, resume, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import yaml

from cycleqd_jax.report import open_run
from cycleqd_jax.report.status import read_status
from cycleqd_jax.runs.audit import run_digest, verify_run
from cycleqd_jax.runs.extension.origin import compare_origin, open_origin
from cycleqd_jax.runs.folder.replay import rebuild
from cycleqd_jax.search import Journal
from cycleqd_jax.types import InputError

from .carried import (
    ALL,
    FIRST,
    INPUTS,
    NEW,
    OLD,
    Killed,
    Scores,
    as_for_users,
    config_of,
    elites_of,
    extended,
    space_of,
)


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


@pytest.mark.exhaustive
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
