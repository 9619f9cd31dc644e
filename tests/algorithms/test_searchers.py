"""One contract for all searchers: purity, ties and NaN scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.types import InputError, Searcher, SearchState

from .all_searchers import (
    BATCH,
    EXPERT_SCORES,
    K,
    experts_of,
    final,
    items_of,
    played,
    populations_too,
    scores_of,
    tell,
)

# ------------------------------------------------------------------------------------------------------------ the contract


@pytest.mark.exhaustive
def test_it_is_a_pure_searcher(made, assert_identical):
    searcher, space = made
    assert isinstance(searcher, Searcher)
    for state, genomes, lineage, asked, scores in played(searcher, space):
        if genomes is None:
            continue
        key = jax.random.key(int(state.generation))
        assert_identical(searcher.ask(state, key, BATCH), (genomes, lineage, asked))
        once, twice = (tell(searcher, asked, genomes, scores, lineage) for _ in range(2))
        assert_identical(once, twice)
    assert int(state.generation) == 3
    assert int(state.next_id) == K + 3 * BATCH


def test_children_are_finite_genomes_of_the_space(made):
    searcher, space = made
    like = space.expert(0)
    for _, genomes, lineage, _, _ in played(searcher, space):
        if genomes is None:
            continue
        assert jax.tree.structure(genomes) == jax.tree.structure(like)
        for leaf, one in zip(jax.tree.leaves(genomes), jax.tree.leaves(like), strict=True):
            assert leaf.shape == (BATCH, *one.shape)
            assert leaf.dtype == one.dtype
            assert bool(jnp.isfinite(leaf).all())
        weights = jax.vmap(space.express)(genomes)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(weights))
        assert lineage.parents.shape == (BATCH, 2)
        assert len({tuple(row) for row in np.asarray(lineage.key).tolist()}) == BATCH


@pytest.mark.exhaustive
def test_children_do_not_depend_on_their_number(made, assert_identical):
    searcher, space = made
    for state, genomes, lineage, _, _ in played(searcher, space):
        if genomes is not None:
            key = jax.random.key(int(state.generation))
            fewer, their_lineage, _ = searcher.ask(state, key, 2)
            assert_identical(fewer, jax.tree.map(lambda leaf: leaf[:2], genomes))
            assert_identical(their_lineage, jax.tree.map(lambda leaf: leaf[:2], lineage))


def test_the_second_call_compiles_nothing(made, compilations):
    searcher, space = made
    final(searcher, space)
    states = list(played(searcher, space))
    assert compilations(lambda: [tell(searcher, s[3], s[1], s[4], s[2]) for s in states[:-1]]) == 0
    assert compilations(lambda: searcher.ask(states[0][0], jax.random.key(9), BATCH)) == 0


def best_of(state):
    return jax.tree.map(lambda leaf: leaf[0], state.leading(1))


@pytest.mark.exhaustive
def test_the_leading_individuals(made):
    """Distinct ids, the highest average first, of equal averages the smallest id; genomes, scores and ids belong together."""
    searcher, space = made
    told = list(played(searcher, space, 4))[:-1]
    everyone = [experts_of(space), *(one[1] for one in told)]
    genomes = jax.tree.map(lambda *leaves: np.concatenate(leaves), *everyone)
    scores = np.concatenate([EXPERT_SCORES, *(one[4] for one in told)])
    state = final(searcher, space, 4)
    assert isinstance(state, SearchState)
    found, table, ids = (jax.tree.map(np.asarray, part) for part in state.leading(99))
    assert len(set(ids.tolist())) == len(ids) > 3
    np.testing.assert_array_equal(table, scores[ids])
    jax.tree.map(lambda got, all_of_them: np.testing.assert_array_equal(got, all_of_them[ids]), found, genomes)
    means = np.asarray(jnp.mean(jnp.asarray(scores), axis=1))
    assert ids.tolist() == sorted(ids.tolist(), key=lambda identity: (-means[identity], identity))
    if hasattr(state, "leaders"):  # every individual counts, not only what an archive holds
        best = sorted(range(len(means)), key=lambda identity: (-means[identity], identity))
        assert ids.tolist() == best[: searcher.leaders]
    for count in (1, 2, 3):
        fewer = state.leading(count)
        assert fewer[2].tolist() == ids[:count].tolist()
        assert jax.tree.leaves(fewer[0])[0].shape[0] == len(fewer[1]) == count
    with pytest.raises(InputError, match="expected to ask for at least one leading individual, got 0; correct the count"):
        state.leading(0)


def test_the_experts_lead_before_the_first_generation(made):
    searcher, space = made
    state = searcher.init(experts_of(space), EXPERT_SCORES, items_of(EXPERT_SCORES))
    _, table, ids = state.leading(5)
    assert ids.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(table, EXPERT_SCORES)


def test_the_best_is_the_first_of_the_highest_average(name, made):
    searcher, space = made

    def scores(t):
        return scores_of(t).at[2].set(jnp.float32([1.0, 1.0, 0.9])).at[3].set(jnp.float32([1.0, 1.0, 0.9]))

    genome, best, identity = best_of(final(searcher, space, scores=scores))
    first = next(iter(played(searcher, space, scores=scores)))[1]
    np.testing.assert_array_equal(best, np.float32([1.0, 1.0, 0.9]))
    assert int(identity) == K + 2
    for leaf, all_of_them in zip(jax.tree.leaves(genome), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(leaf, all_of_them[2])


def test_an_expert_may_remain_the_best(made, assert_identical):
    searcher, space = made
    genome, best, identity = best_of(final(searcher, space, scores=lambda t: jnp.zeros((BATCH, K))))
    assert int(identity) == 0
    np.testing.assert_array_equal(best, EXPERT_SCORES[0])
    assert_identical(genome, space.expert(0))


# ------------------------------------------------------------------------------------------------------------- bad scores


@pytest.mark.exhaustive
@populations_too
def test_quarantined_children_are_never_scores(made):
    searcher, space = made

    def scores(t):
        return scores_of(t).at[0].set(jnp.nan).at[1, 2].set(jnp.nan)

    state = final(searcher, space, scores=scores)
    broken = {K + t * BATCH + j for t in range(3) for j in (0, 1)}
    genome, best, identity = best_of(state)
    assert int(identity) not in broken
    assert not set(state.leading(99)[2].tolist()) & broken
    assert np.isfinite(best).all()
    for leaf in jax.tree.leaves((genome, searcher.ask(state, jax.random.key(5), BATCH)[0])):
        assert np.isfinite(leaf).all()
    archive = state.archives.repertoires if hasattr(state, "archives") else getattr(state, "repertoire", None)
    if archive is not None:
        occupied = np.all(np.asarray(archive.fitnesses) > -np.inf, axis=-1)
        assert not set(np.asarray(archive.extra_scores["id"])[occupied].tolist()) & broken
    assert int(state.next_id) == K + 3 * BATCH


def test_a_generation_without_scores_changes_only_the_count(made, assert_identical):
    searcher, space = made
    state = final(searcher, space)
    genomes, lineage, asked = searcher.ask(state, jax.random.key(7), BATCH)
    told = tell(searcher, asked, genomes, jnp.full((BATCH, K), jnp.nan), lineage)
    assert_identical(told.replace(generation=asked.generation, next_id=asked.next_id), asked)


@pytest.mark.parametrize("shape", [(BATCH - 1, K), (BATCH, K + 1), (BATCH,)])
def test_scores_of_another_shape(made, shape):
    searcher, space = made
    state = searcher.init(experts_of(space), EXPERT_SCORES, items_of(EXPERT_SCORES))
    genomes, lineage, state = searcher.ask(state, jax.random.key(0), BATCH)
    with pytest.raises(InputError, match=r"expected scores of shape \(4, 3\) \(children, tasks\), got .* in \w+\.tell; pass"):
        searcher.tell(state, genomes, jnp.zeros(shape), lineage)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (EXPERT_SCORES[:, :1], "expected scores of at least two tasks"),
        (EXPERT_SCORES[:2], "expected an expert for each of 3 tasks"),
        (np.concatenate([EXPERT_SCORES] * 2), "expected one row of scores for each of 3 genomes"),
        (EXPERT_SCORES * np.nan, r"expected finite scores of every expert, got NaN or infinity for \[0, 1, 2\]"),
    ],
)
def test_experts_that_do_not_fit(made, scores, message):
    searcher, space = made
    with pytest.raises(InputError, match=rf"{message}.* in \w+\.init; "):
        searcher.init(experts_of(space), scores)


def test_raw_keys_are_refused(made):
    searcher, space = made
    with pytest.raises(InputError, match=r"expected a typed PRNG key, got dtype uint32 in \w+\.ask"):
        # the annotations do not allow raw keys either
        searcher.ask.__wrapped__.__wrapped__(searcher, final(searcher, space), jnp.zeros(2, jnp.uint32), 1)
