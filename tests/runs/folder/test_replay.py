"""What a journal determines alone: every genome, bit by bit, and the state of the search, for every searcher."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.individual import Individual
from cycleqd_jax.runs.folder.replay import ancestors_of, rebuild, replay, total_individuals
from cycleqd_jax.search import Journal, tree_digest
from cycleqd_jax.types import InputError

from ..searched import TASKS, config_of, edit, searched, space_of

METHODS = ("cycleqd", "qd", "dns", "random", "cmaes", "nsga2")
QUICK = {"cycleqd"}


@pytest.fixture(params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive) for name in METHODS])
def method(request):
    return request.param


@pytest.mark.exhaustive
@pytest.mark.parametrize("budget", [10, pytest.param(None, marks=pytest.mark.as_users)])
def test_the_journal_determines_genomes_and_state(tmp_path, method, budget, assert_identical):
    config = config_of(method, budget=budget)
    space = space_of(config)
    journal, state, genomes = searched(tmp_path, config, space)
    assert len(journal) == total_individuals(config, journal) == (budget or 3 + 4 * config.search.batch_size)
    rebuilt = rebuild(space, journal, TASKS, journal.ids())
    for identity, genome in enumerate(genomes):
        assert_identical(rebuilt[identity], genome)
    found = replay(config, journal)
    assert (found.generations, found.exact) == (int(state.generation), config.search.coefficients)
    assert found.state.leading(4)[2].tolist() == state.leading(4)[2].tolist()
    if method == "cycleqd":
        assert found.state.archives.best()[2].tolist() == state.archives.best()[2].tolist()
    if config.search.coefficients:
        assert_identical(found.state, state)


@pytest.mark.parametrize("method", ["cycleqd", pytest.param("qd", marks=pytest.mark.exhaustive)])
def test_the_journal_determines_a_steady_search_too(tmp_path, method, assert_identical):
    config = config_of(method, steady=True, batch_size=1, generations=14)
    space = space_of(config)
    journal, state, genomes = searched(tmp_path, config, space)
    assert len(journal) == total_individuals(config, journal) == 17
    asked = [journal[identity].asked for identity in journal.ids()[3:]]
    assert any(inserted > after for inserted, (after, _) in enumerate(asked))
    rebuilt = rebuild(space, journal, TASKS, journal.ids())
    for identity, genome in enumerate(genomes):
        assert_identical(rebuilt[identity], genome)
    found = replay(config, journal)
    assert found.generations == int(state.generation) == 14
    assert found.state.leading(4)[2].tolist() == state.leading(4)[2].tolist()


@pytest.mark.exhaustive
@pytest.mark.parametrize("dense", ["svd", "gaussian"])
def test_dense_genomes_are_rebuilt_too(tmp_path, dense, assert_identical):
    config = config_of(generations=3)
    space = space_of(config, dense=dense)
    journal, _, genomes = searched(tmp_path, config, space)
    rebuilt = rebuild(space, journal, TASKS, journal.ids())
    for identity, genome in enumerate(genomes):
        assert_identical(rebuilt[identity], genome)


@pytest.mark.as_users
@pytest.mark.parametrize("size", [(1, 3, 2), (5, 257, 129)])
def test_other_sizes(tmp_path, size, assert_identical):
    """The compiler splits loops by size."""
    config = config_of()
    space = space_of(config, size=size)
    journal, _, genomes = searched(tmp_path, config, space)
    last = len(genomes) - 1
    assert_identical(rebuild(space, journal, TASKS, [last])[last], genomes[last])


def edited(tmp_path, change):
    edit(tmp_path, change)
    return Journal(tmp_path / "history.jsonl", read_only=True)


def test_what_was_changed_is_named(tmp_path):
    config = config_of(generations=3)
    space = space_of(config)
    journal, _, _ = searched(tmp_path, config, space)
    last = journal.ids()[-1]
    parent = journal.get(last).parents[0]
    ancestors = ancestors_of(journal, [last])
    assert ancestors[-1] == last
    assert parent in ancestors
    with pytest.raises(InputError, match="expected individual 99, got 12 others"):
        rebuild(space, journal, TASKS, [99])

    def other_weights(lines):
        lines[last]["omega"][0] += 1e-3
        return lines

    with pytest.raises(InputError, match=rf"expected the genome of individual {last} to have digest \w+, as in .*, got"):
        rebuild(space, edited(tmp_path, other_weights), TASKS, [last])
    with pytest.raises(InputError, match=rf"expected individual {parent}, a parent of individual \d+, got 11 others"):
        rebuild(space, edited(tmp_path, lambda lines: [one for one in lines if one["id"] != parent]), TASKS, [last])
    (tmp_path / "history.jsonl").unlink()
    younger = [journal.get(i) for i in journal.ids()]
    younger[4] = dataclasses.replace(younger[4], parents=(last, 0))
    for one in younger:
        Journal(tmp_path / "history.jsonl").append(one)
    with pytest.raises(InputError, match="expected parents older than individual 4, got parent 11"):
        rebuild(space, Journal(tmp_path / "history.jsonl"), TASKS, [4])


@pytest.mark.exhaustive
def test_experts_that_were_changed_are_noticed_where_genomes_hold_them(tmp_path):
    config = config_of(generations=2)
    space = space_of(config, dense="none")
    journal, _, _ = searched(tmp_path, config, space)
    other = space.replace(task_vectors=jax.tree.map(lambda leaf: leaf * 1.001, space.task_vectors))
    with pytest.raises(InputError, match="expected the genome of individual 0 to have digest"):
        rebuild(other, journal, TASKS, [0])


def test_a_journal_without_digests_is_rebuilt_unchecked(tmp_path, assert_identical):
    config = config_of(generations=2)
    space = space_of(config)
    _, _, genomes = searched(tmp_path, config, space)
    old = edited(tmp_path, lambda lines: [{k: v for k, v in line.items() if k != "digest"} for line in lines])
    assert_identical(rebuild(space, old, TASKS, [8])[8], genomes[8])


def test_a_genome_of_a_version_with_bases_of_frozen_matrices(tmp_path):
    """Such a version kept d = 0 of matrices that no expert changes; the message of the differing digest says so."""
    base = {"frozen": jnp.eye(3), "w": jnp.eye(3)}
    space = ExpertSpace.from_experts(base, [base | {"w": scale * jnp.eye(3)} for scale in (2.0, 3.0)])
    new = space.expert(0)
    old = new._replace(mutation=new.mutation | {"frozen": jnp.zeros((2, 3))})
    for name, genome in (("new", new), ("old", old)):
        journal = Journal(tmp_path / name)
        journal.append(Individual(0, -1, TASKS[0], None, (-1, -1), None, None, digest=tree_digest(genome)))
    assert rebuild(space, Journal(tmp_path / "new"), TASKS, [0])[0].mutation.keys() == {"w"}
    with pytest.raises(InputError, match=r"use the experts, the version .* \(older versions also kept"):
        rebuild(space, Journal(tmp_path / "old"), TASKS, [0])


def test_only_complete_generations_are_replayed(tmp_path):
    config = config_of(generations=3)
    searched(tmp_path, config, space_of(config))
    journal = edited(tmp_path, lambda lines: lines[:-1])
    assert replay(config, journal).generations == 2
    assert replay(config, journal, 1).generations == 1
    with pytest.raises(InputError, match="expected the scores of 3 experts"):
        replay(config, edited(tmp_path, lambda lines: lines[1:]))


def test_a_journal_with_a_gap_is_not_taken_for_a_shorter_search(tmp_path):
    config = config_of(generations=3)
    searched(tmp_path, config, space_of(config))
    journal = edited(tmp_path, lambda lines: lines[:-3] + lines[-2:])  # as an interrupt leaves the last generation
    assert replay(config, journal).generations == 2
    journal = edited(tmp_path, lambda lines: lines[:4] + lines[5:])
    with pytest.raises(InputError, match=r"expected every individual before the last generation, got none of \[4\] in"):
        replay(config, journal)


def test_a_read_only_journal_leaves_the_file_alone(tmp_path):
    path = tmp_path / "history.jsonl"
    Journal(path).append(Individual(0, -1, "mbpp", None, (-1, -1), None, None))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id":1,')
    journal = Journal(path, read_only=True)
    assert (len(journal), journal.torn) == (1, True)
    assert path.read_bytes() == whole + b'{"id":1,'
    assert Journal(path).torn
    assert path.read_bytes() == whole
