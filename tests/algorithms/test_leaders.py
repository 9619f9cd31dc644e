"""The leaderboard against sorting all individuals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import Leaders
from cycleqd_jax.types import InputError

TASKS, PLACES, BATCH = 3, 5, 4
update = jax.jit(Leaders.update)


def filled(scores):
    leaders = Leaders.empty({"x": jnp.zeros(2)}, TASKS, PLACES)
    for start in range(0, len(scores), BATCH):
        ids = jnp.arange(start, start + BATCH)
        genomes = {"x": jnp.stack([ids, -ids], axis=1).astype(jnp.float32)}
        leaders = update(leaders, genomes, jnp.asarray(scores[start : start + BATCH]), ids)
    return leaders


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_head_of_the_sorted_individuals(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (6 * BATCH, TASKS)).astype(np.float32) / 4  # many ties
    scores[rng.random(len(scores)) < (0.9 if seed == 0 else 0.3), rng.integers(TASKS)] = rng.choice([np.nan, np.inf])
    leaders = filled(scores)
    finite = [i for i in range(len(scores)) if np.isfinite(scores[i]).all()]
    expected = sorted(finite, key=lambda i: (-scores[i].mean(), i))[:PLACES]
    genomes, table, ids = leaders.leading(99)
    assert ids.tolist() == expected
    np.testing.assert_array_equal(table, scores[expected])
    np.testing.assert_array_equal(genomes["x"], np.stack([expected, -np.asarray(expected)], axis=1))
    assert leaders.leading(2)[2].tolist() == expected[:2]
    empty = np.asarray(leaders.ids) < 0
    assert empty.sum() == PLACES - len(expected)
    assert (np.asarray(leaders.scores)[empty] == -np.inf).all()
    assert (np.asarray(leaders.genomes["x"])[empty] == 0).all()


def test_a_batch_without_scores_changes_nothing(assert_identical):
    leaders = filled(np.full((BATCH, TASKS), 0.5, np.float32))
    again = update(leaders, {"x": jnp.ones((BATCH, 2))}, jnp.full((BATCH, TASKS), jnp.nan), jnp.arange(BATCH, 2 * BATCH))
    assert_identical(again, leaders)


def test_no_place_is_refused():
    with pytest.raises(InputError, match="expected at least one place for leading individuals, got 0; increase leaders"):
        Leaders.empty(jnp.zeros(1), TASKS, 0)
