"""Plain QD and Dominated Novelty Search: what their archives keep, against loops over the individuals."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import DominatedNovelty, PlainQD
from cycleqd_jax.algorithms.cells import expert_bounds
from cycleqd_jax.algorithms.dns import dominated_novelty
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.types import InputError

K, BINS = 3, 4
EXPERT_SCORES = np.float32([[0.8, 0.1, 0.2], [0.2, 0.7, 0.1], [0.1, 0.2, 0.6]])


@pytest.fixture(scope="module")
def space():
    return ExpertSpace.from_experts({"w": jnp.eye(3)}, [{"w": (k + 2) * jnp.eye(3)} for k in range(K)])


def state_with(searcher, space, scores, items=(None, ())):
    """The state after children with these scores, some batches of equal size; every genome has its id as a coefficient.

    ``items`` are those of the experts and of every batch.
    """
    state = searcher.init(jax.vmap(space.expert)(jnp.arange(K)), EXPERT_SCORES, items[0])
    for batch, of_batch in itertools.zip_longest(scores, items[1]):
        genomes, lineage, state = searcher.ask(state, jax.random.key(0), len(batch))
        ids = state.next_id + jnp.arange(len(batch))
        genomes = genomes._replace(mixing=jnp.broadcast_to(ids[:, None], genomes.mixing.shape).astype(jnp.float32))
        state = searcher.tell(state, genomes, batch, lineage, of_batch)
    return state


def batches(seed, count=6, size=8):
    scores = np.random.default_rng(seed).integers(0, 9, size=(count, size, K)).astype(np.float32) / 8
    scores[:, 2, 1] = np.nan
    return scores


@pytest.mark.exhaustive
def test_plain_qd_admits_what_it_takes(space):
    searcher = PlainQD(space, bins=BINS)
    state = state_with(searcher, space, batches(0))
    scores = batches(1)[:4, 3:].reshape(-1, K)
    genomes, lineage, _ = searcher.ask(state, jax.random.key(0), 1)
    after = [searcher.tell(state, genomes, row[None], lineage).repertoire.extra_scores["id"] for row in scores]
    expected = (np.stack(after) == int(state.next_id)).any(axis=1)
    assert 0 < expected.sum() < len(expected)
    np.testing.assert_array_equal(state.admits(scores), expected)


@pytest.mark.exhaustive
def test_the_archive_of_plain_qd(space):
    scores = batches(0)
    state = state_with(PlainQD(space, bins=BINS), space, scores)
    low, high = expert_bounds(EXPERT_SCORES).T
    edges = np.linspace(low, high, BINS + 1, axis=1, dtype=np.float64).astype(np.float32)
    elites: dict[tuple[int, ...], int] = {}
    rows = np.concatenate([EXPERT_SCORES, scores.reshape(-1, K)])
    for identity, row in enumerate(rows):
        if np.isnan(row).any():
            continue
        cell = tuple(np.clip((row[:, None] >= edges).sum(1) - 1, 0, BINS - 1).tolist())
        if cell not in elites or np.float32(row.mean()) > np.float32(rows[elites[cell]].mean()):
            elites[cell] = identity
    held = np.asarray(state.repertoire.fitnesses[:, 0]) > -np.inf
    ids = np.asarray(state.repertoire.extra_scores["id"])[held]
    assert sorted(ids.tolist()) == sorted(elites.values())
    np.testing.assert_array_equal(np.asarray(state.repertoire.descriptors)[held], rows[ids])
    np.testing.assert_array_equal(np.asarray(state.repertoire.extra_scores["scores"])[held], rows[ids])
    mixing = np.asarray(state.repertoire.genotypes.mixing)[held]
    children = ids >= K
    np.testing.assert_array_equal(mixing[children], np.repeat(ids[children, None], K, 1))


def test_every_expert_mutates_children_of_plain_qd(space):
    search = PlainQD(space, bins=BINS)
    state = search.init(jax.vmap(space.expert)(jnp.arange(K)), EXPERT_SCORES)
    genomes, lineage, _ = search.ask(state, jax.random.key(0), 60)
    changed = np.abs(np.asarray(genomes.mutation["w"])).sum(axis=-1) > 0
    np.testing.assert_array_equal(changed, np.eye(K, dtype=bool)[np.asarray(lineage.active)])
    assert set(np.asarray(lineage.active).tolist()) == {0, 1, 2}


def novelty_by_loop(fitness, descriptors, neighbours):
    found = []
    for i, own in enumerate(fitness):
        fitter = [j for j, f in enumerate(fitness) if f > -np.inf and (f > own or (f == own and j < i))]
        distances = sorted(np.linalg.norm(descriptors[j] - descriptors[i]) for j in fitter)[:neighbours]
        found.append(-np.inf if own == -np.inf else np.mean(distances) if distances else np.inf)
    return np.asarray(found)


def test_dominated_novelty():
    rng = np.random.default_rng(0)
    for neighbours in (1, 3, 50):
        fitness = rng.integers(0, 5, size=20).astype(np.float32)
        fitness[[3, 7]] = -np.inf
        descriptors = rng.uniform(size=(20, K)).astype(np.float32)
        np.testing.assert_allclose(
            dominated_novelty(jnp.asarray(fitness), jnp.asarray(descriptors), neighbours),
            novelty_by_loop(fitness, descriptors, neighbours),
            rtol=1e-5,
        )


@pytest.mark.exhaustive
@pytest.mark.parametrize("descriptors", [pytest.param("scores", marks=pytest.mark.exhaustive), "items"])
def test_the_members_of_dominated_novelty_search(space, descriptors):
    scores, members = batches(1), 10
    problems = np.random.default_rng(2).integers(0, 2, size=(K + scores.shape[0] * scores.shape[1], 7)).astype(np.float32)
    items = problems[:K], problems[K:].reshape(*scores.shape[:2], 7)
    state = state_with(DominatedNovelty(space, population=members, descriptors=descriptors), space, scores, items)
    kept, rows = list(range(K)), np.concatenate([EXPERT_SCORES, scores.reshape(-1, K)])
    places = rows if descriptors == "scores" else problems
    for t in range(len(scores)):
        kept += [K + 8 * t + j for j in range(8) if not np.isnan(rows[K + 8 * t + j]).any()]
        fitness = rows[kept].mean(axis=1)
        novelty = novelty_by_loop(fitness, places[kept], 3)
        kept = sorted(np.asarray(kept)[np.lexsort((-fitness, -novelty))[:members]].tolist())
    assert np.asarray(state.repertoire.extra_scores["id"]).tolist() == kept
    np.testing.assert_array_equal(state.repertoire.extra_scores["scores"], rows[kept])


@pytest.mark.exhaustive
def test_copies_of_the_fittest_do_not_fill_the_population(space):
    scores = np.concatenate([np.ones((1, 6, K)), np.random.default_rng(0).uniform(size=(1, 6, K))]).astype(np.float32)
    state = state_with(DominatedNovelty(space, population=6, descriptors="scores"), space, scores)
    assert (np.asarray(state.repertoire.fitnesses) == 1).sum() == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize(("experts", "children"), [(None, None), ((K, 4), None), ((K, 4), (8, 5)), ((K - 1, 4), None)])
def test_items_that_are_missing_or_do_not_fit(space, experts, children):
    searcher = DominatedNovelty(space)

    def play():
        state = searcher.init(jax.vmap(space.expert)(jnp.arange(K)), EXPERT_SCORES, zeros(experts))
        genomes, lineage, state = searcher.ask(state, jax.random.key(0), 8)
        searcher.tell(state, genomes, np.zeros((8, K)), lineage, zeros(children))

    def zeros(shape):
        return None if shape is None else np.zeros(shape, np.float32)

    where = "init" if experts != (K, 4) else "tell"
    with pytest.raises(InputError, match=rf"expected the scores of all problems, of shape .* in DominatedNovelty.{where}; p"):
        play()


@pytest.mark.parametrize(
    ("searcher", "message"),
    [
        (lambda space: PlainQD(space, bins=0), r"expected 1 to 1000000 cells in the archive, got 0 of 0 bins on 3 axes in Pla"),
        (lambda space: PlainQD(space, bins=101), "expected 1 to 1000000 cells in the archive, got 1030301 of 101 bins"),
        (lambda space: PlainQD(space, bounds=((0.0, 1.0),)), r"expected a \(low, high\) pair for each of 3 tasks, got 1"),
        (lambda space: DominatedNovelty(space, population=2), "expected a population of at least 3 and one or more neighbours"),
        (lambda space: DominatedNovelty(space, neighbours=0), "expected a population of at least 3 and one or more neighbours"),
    ],
)
def test_options_that_make_no_sense(space, searcher, message):
    with pytest.raises(InputError, match=message):
        searcher(space).init(jax.vmap(space.expert)(jnp.arange(K)), EXPERT_SCORES)
