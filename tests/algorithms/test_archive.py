"""Archives against Algorithm 1 in plain Python, over thousands of random cases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import Archives
from cycleqd_jax.algorithms.cells import cell_winners, cvt_centroids, expert_bounds
from cycleqd_jax.types import InputError

WIDTH = 3  # of a genotype
add = jax.jit(Archives.add)


def random_scores(rng, bounds, bins, shape):
    """Difficult scores: many equal, many exactly on edges, some outside the axes, some NaN or infinite."""
    tasks = len(bounds)
    scores = np.empty((*shape, tasks), np.float32)
    for k, (low, high) in enumerate(bounds):
        edges = np.linspace(low, high, bins + 1).astype(np.float32)
        on_edge = rng.choice(edges, size=shape)
        near = np.nextafter(on_edge, rng.choice([-np.inf, np.inf], size=shape).astype(np.float32))
        coarse = rng.integers(0, 6, size=shape) / 5  # few values: ties
        anywhere = rng.uniform(low - 0.3, high + 0.3, size=shape)
        near[np.abs(near) < 1e-30] = 0  # XLA on CPU flushes subnormal numbers to zero
        kind = rng.integers(0, 4, size=shape)
        scores[..., k] = np.choose(kind, [on_edge, near, coarse, anywhere])
    broken = rng.uniform(size=shape) < 0.08
    scores[broken, rng.integers(tasks)] = rng.choice([np.nan, np.inf, -np.inf])
    return scores


CASES = 220
GENERATIONS = 5


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("tasks", "bins", "batch"),
    [
        pytest.param(2, 1, 3, marks=pytest.mark.exhaustive),
        pytest.param(2, 15, 1, marks=pytest.mark.exhaustive),
        (3, 5, 16),
        pytest.param(3, 15, 4, marks=pytest.mark.exhaustive),
        pytest.param(4, 3, 5, marks=pytest.mark.exhaustive),
    ],
)
def test_random_cases_equal_algorithm_1(plain, tasks, bins, batch):
    rng = np.random.default_rng([tasks, bins, batch])
    genome = jnp.zeros(WIDTH)
    add_to_all = jax.jit(jax.vmap(Archives.add))
    for ends in (
        [(0.0, 1.0)] * tasks,
        [(round(rng.uniform(0, 0.4), 2), round(rng.uniform(0.5, 1.2), 2)) for _ in range(tasks)],
    ):
        bounds = np.asarray(ends, np.float32)
        empty = Archives.create(genome, bounds, bins)
        archives = jax.tree.map(lambda x: jnp.broadcast_to(x, (CASES, *x.shape)), empty)
        references = [plain.Archives(bounds, bins) for _ in range(CASES)]
        for generation in range(GENERATIONS):
            scores = random_scores(rng, bounds, bins, (CASES, batch))
            genomes = rng.normal(size=(CASES, batch, WIDTH)).astype(np.float32)
            ids = generation * batch + np.broadcast_to(np.arange(batch), (CASES, batch))
            archives = add_to_all(archives, genomes, scores, ids)
            for reference, g, f, i in zip(references, genomes.tolist(), scores.tolist(), ids.tolist(), strict=True):
                for row in zip(g, f, i, strict=True):
                    reference.insert(dict(zip(("genome", "scores", "id"), row, strict=True)))
        archives = jax.device_get(archives)
        for case, reference in enumerate(references):
            plain.compare(archives, reference, case)


@pytest.mark.exhaustive
def test_a_batch_equals_inserting_one_by_one(assert_identical):
    rng = np.random.default_rng(0)
    bounds = np.asarray([(0, 1)] * 3, np.float32)
    scores = random_scores(rng, bounds, 4, (40,))
    genomes, ids = {"w": jnp.asarray(rng.normal(size=(40, 2, 2)), jnp.float32)}, jnp.arange(40)
    empty = Archives.create({"w": jnp.zeros((2, 2))}, bounds, 4)
    at_once = add(empty, genomes, scores, ids)
    for size in (1, 8):
        archives = empty
        for start in range(0, 40, size):
            part = slice(start, start + size)
            archives = add(archives, jax.tree.map(lambda x, p=part: x[p], genomes), scores[part], ids[part])
        assert_identical(archives, at_once)


@pytest.mark.exhaustive
def test_the_first_of_equals_enters_and_elites_stay():
    archives = Archives.create(jnp.zeros(1), np.asarray([(0, 1)] * 2), 2)
    genomes = jnp.arange(4.0)[:, None]
    scores = np.asarray([[0.5, 0.2], [0.7, 0.2], [0.7, 0.3], [0.7, 0.1]], np.float32)
    archives = add(archives, genomes, scores, jnp.arange(4))
    assert archives[0].extra_scores["id"][0] == 1
    archives = add(archives, genomes, scores, 10 + jnp.arange(4))
    assert archives[0].extra_scores["id"][0] == 1
    assert archives[0].genotypes[0, 0] == 1


def test_cell_winners():
    cells = jnp.asarray([0, 0, 1, 0, 1, 2])
    fitness = jnp.asarray([0.1, 0.5, 0.3, 0.5, 0.2, -jnp.inf])
    assert cell_winners(cells, fitness).tolist() == [False, True, True, False, False, True]


@pytest.mark.exhaustive
def test_cells_are_those_of_the_nearest_centroid():
    """Away from the edges, QDax finds the same cells from the true descriptors: the order of the cells is that of QDax."""
    from qdax.core.containers.mapelites_repertoire import get_cells_indices

    rng = np.random.default_rng(0)
    bounds = np.asarray([(0.1, 0.9), (0.0, 0.5), (0.3, 1.15), (0.0, 1.0)], np.float32)
    bins = 6
    archives = Archives.create(jnp.zeros(1), bounds, bins)
    position = rng.integers(0, bins, size=(200, 4)) + rng.uniform(0.02, 0.98, size=(200, 4))
    scores = (bounds[:, 0] + position / bins * (bounds[:, 1] - bounds[:, 0])).astype(np.float32)
    assert np.array_equal(archives.bin_indices(jnp.asarray(scores)), position.astype(int))
    alone = jax.jit(jax.vmap(lambda row: archives.add(jnp.zeros((1, 1)), row[None], jnp.zeros(1, int)).occupied()))(scores)
    assert np.all(np.sum(alone, axis=-1) == 1)
    for k in range(4):
        with jax.numpy_rank_promotion("allow"):
            expected = get_cells_indices(jnp.asarray(np.delete(scores, k, axis=1)), archives[k].centroids)
        assert np.argmax(alone[:, k], axis=-1).tolist() == expected.tolist()


def test_edges_and_clipping():
    archives = Archives.create(jnp.zeros(1), np.asarray([(0, 1), (0.25, 0.75)]), 4)
    scores = np.asarray([[-1, 0.25], [0, 0.2], [0.25, 0.375], [0.2499999, 0.5], [0.99, 0.75], [1, 0.625], [7, 9]], np.float32)
    assert archives.bin_indices(jnp.asarray(scores)).tolist() == [[0, 0], [0, 0], [1, 1], [0, 2], [3, 3], [3, 3], [3, 3]]


def test_expert_bounds_are_the_papers():
    scores = np.asarray([[0.7, 0.2, 0.2], [0.65, 0.42, 0.3], [0.66, 0.01, 0.3], [np.nan, 9, 9]])
    want = [[0.85 * 0.65, 1.15 * 0.7], [0.85 * 0.01, 1.15 * 0.42], [0.85 * 0.2, 1.15 * 0.3]]
    np.testing.assert_allclose(expert_bounds(scores), want, rtol=1e-6)
    # axes without length
    np.testing.assert_array_equal(expert_bounds(np.zeros((2, 2))), [[0, 1], [0, 1]])
    np.testing.assert_allclose(expert_bounds(np.full((2, 2), 0.5)), [[0.425, 0.575]] * 2, rtol=1e-6)


def test_best_is_the_elite_of_each_archive():
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=(50, 3)).astype(np.float32)
    archives = Archives.create(jnp.zeros(1), np.asarray([(0, 1)] * 3), 5)
    archives = add(archives, jnp.arange(50.0)[:, None], scores, jnp.arange(50))
    genomes, best, ids = archives.best()
    assert ids.tolist() == scores.argmax(axis=0).tolist()
    np.testing.assert_array_equal(best, scores[scores.argmax(axis=0)])
    assert genomes[:, 0].tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("bounds", "bins", "message"),
    [
        ([(0, 1)], 5, "at least two tasks"),
        ([(0, 1), (1, 0)], 5, "lower bound below"),
        ([(0, 1), (0.5, 0.5)], 5, "lower bound below"),
        ([(0, 1), (0, float("nan"))], 5, "finite"),
        ([(0, 1), (0, float("inf"))], 5, "finite"),
        ([(0, 1), (0, 1)], 0, "archive of 0 bins"),
        ([(0, 1)] * 8, 15, "170859375 cells"),
        ([0, 1], 5, "shape"),
    ],
)
def test_bad_grids(bounds, bins, message):
    with pytest.raises(InputError, match=message):
        Archives.create(jnp.zeros(1), np.asarray(bounds), bins)


def test_no_recompilation(compilations):
    archives = Archives.create(jnp.zeros(1), np.asarray([(0, 1)] * 2), 5)
    batch = jnp.zeros((2, 1)), jnp.zeros((2, 2)), jnp.arange(2)
    archives = add(archives, *batch)
    assert compilations(lambda: add(archives, *batch)) == 0


@pytest.mark.exhaustive
def test_the_leading_elites_are_distinct_and_sorted():
    scores = np.array([[0.2, 0.9], [0.8, 0.4], [0.5, 0.5], [np.nan, 0.9], [0.7, 0.7], [0.1, 0.3]], np.float32)
    genomes = {"x": jnp.repeat(jnp.arange(6.0)[:, None], WIDTH, axis=1)}
    archives = Archives.create({"x": jnp.zeros(WIDTH)}, np.array([[0.0, 1.0]] * 2), 5).add(genomes, scores, 10 + np.arange(6))
    held = set(np.asarray(archives.ids)[np.asarray(archives.occupied())].tolist())
    expected = sorted(held, key=lambda identity: -scores[identity - 10].mean())
    found, table, ids = archives.leading(99)
    assert ids.tolist() == expected
    np.testing.assert_array_equal(table, scores[np.asarray(ids) - 10])
    np.testing.assert_array_equal(found["x"][:, 0], np.asarray(ids) - 10)
    assert archives.leading(2)[2].tolist() == expected[:2]


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(5))
def test_of_equal_elites_the_smallest_id_leads(seed):
    scores = np.random.default_rng(seed).integers(0, 3, (30, 3)).astype(np.float32) / 4  # many ties
    archives = Archives.create(jnp.zeros(WIDTH), np.array([[0.0, 1.0]] * 3), 4)
    archives = archives.add(jnp.zeros((30, WIDTH)), scores, np.arange(30))
    held = np.unique(np.asarray(archives.ids)[np.asarray(archives.occupied())])
    means = scores.mean(axis=1)
    _, table, ids = archives.leading(30)
    assert ids.tolist() == sorted(held.tolist(), key=lambda identity: (-means[identity], identity))
    np.testing.assert_array_equal(table, scores[np.asarray(ids)])


# ------------------------------------------------------------------------------------------------------------------- CVT


def nearest(point, bounds, centroids):
    unit = np.clip((point - bounds[:, 0]) / (bounds[:, 1] - bounds[:, 0]), 0, 1)
    return int(np.argmin(np.square(unit - centroids).sum(axis=1)))


@pytest.mark.exhaustive
def test_five_tasks_with_the_cells_of_a_cvt():
    """Algorithm 1 with 60 cells an archive, where a grid of 15 bins has 50,625."""
    tasks, cells, rng = 5, 60, np.random.default_rng(5)
    bounds = np.stack([rng.uniform(0, 0.3, tasks), rng.uniform(0.6, 1.1, tasks)], axis=1)
    archives = Archives.create(jnp.zeros(WIDTH), bounds, cells=cells)
    assert archives.is_cvt
    assert archives.repertoires.genotypes.shape == (tasks, cells, WIDTH)
    unit, plain, count = np.float64(cvt_centroids(cells, tasks - 1)), [{} for _ in range(tasks)], 0
    for size in (40, 1, 59):
        scores = (rng.integers(0, 33, (size, tasks)) / 32).astype(np.float32)
        scores[rng.uniform(size=size) < 0.1] = np.nan
        ids = np.arange(count, count + size)
        archives = add(archives, jnp.repeat(ids[:, None].astype(np.float32), WIDTH, 1), scores, ids)
        count += size
        for identity, row in zip(ids, np.float64(scores), strict=True):
            for k in range(tasks) if np.isfinite(row).all() else ():
                others = [j for j in range(tasks) if j != k]
                cell = nearest(row[others], bounds[others], unit)
                if cell not in plain[k] or row[k] > plain[k][cell][1]:
                    plain[k][cell] = (int(identity), row[k])
    occupied, found = np.asarray(archives.occupied()), np.asarray(archives.ids)
    assert occupied.sum() > 100
    for k in range(tasks):
        assert {int(c): int(found[k, c]) for c in np.flatnonzero(occupied[k])} == {c: one[0] for c, one in plain[k].items()}
    genotypes = np.asarray(archives.repertoires.genotypes)
    np.testing.assert_array_equal(genotypes[occupied], np.repeat(found[occupied][:, None], WIDTH, 1))
    others = np.asarray(archives.repertoires.descriptors)[occupied]
    assert np.isfinite(others).all()
    assert {row[0] for row in np.asarray(archives.best()[0]).tolist()} <= {float(i) for i in range(count)}


def test_the_centroids_are_the_same_in_every_run():
    first = cvt_centroids(60, 4)
    cvt_centroids.cache_clear()
    np.testing.assert_array_equal(first, cvt_centroids(60, 4))
    assert len(np.unique(first, axis=0)) == 60
    assert ((first > 0) & (first < 1)).all()
    # Random points of the cube are about as often nearest to one as to another.
    points = np.random.default_rng(0).uniform(size=(6000, 4))
    share = np.bincount(np.argmin(np.square(points[:, None] - first).sum(-1), axis=1), minlength=60) / 6000
    assert share.min() > 0.3 / 60
    assert share.max() < 3 / 60


@pytest.mark.parametrize("cells", [1, 1_000_001])
def test_numbers_of_cells_that_no_archive_has(cells):
    with pytest.raises(InputError, match=f"expected 2 to 1000000 cells per archive, got {cells}"):
        Archives.create(jnp.zeros(WIDTH), np.tile([0.0, 1.0], (3, 1)), cells=cells)


@pytest.mark.parametrize(
    ("tasks", "bins", "cells"),
    [
        (3, 5, None),
        *(pytest.param(*sizes, marks=pytest.mark.exhaustive) for sizes in [(2, 9, None), (4, 4, None), (5, 15, 40)]),
    ],
)
def test_archives_admit_what_they_take(tasks, bins, cells):
    """An individual is admitted if and only if it changes an archive."""
    rng = np.random.default_rng(tasks)
    bounds, count = np.asarray([(0.1, 0.9)] * tasks), 2 * 3 ** (tasks - 1)
    archives = Archives.create(jnp.zeros(WIDTH), bounds, bins, cells)
    archives = add(archives, jnp.zeros((count, WIDTH)), rng.integers(0, 7, (count, tasks)) / 6, np.arange(count))
    scores = np.where(rng.random((60, 1)) < 0.5, rng.integers(0, 7, (60, tasks)) / 6, rng.integers(1, 4, (60, tasks)) / 6)
    scores = scores.astype(np.float32)
    each = jax.vmap(lambda row: add(archives, jnp.zeros((1, WIDTH)), row[None], np.asarray([999])).ids)(scores)
    expected = np.any(np.asarray(each) == 999, axis=(1, 2))
    assert 0 < expected.sum() < len(expected)
    np.testing.assert_array_equal(archives.admits(scores), expected)
