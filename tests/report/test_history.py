import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import Archives
from cycleqd_jax.algorithms.cells import expert_bounds
from cycleqd_jax.individual import Individual
from cycleqd_jax.report.history import Grid, History, load_history, load_individuals
from cycleqd_jax.report.metrics import compute_metrics, milestones
from cycleqd_jax.search import Journal
from cycleqd_jax.types import InputError

from ..journals import lines_without_checksums

TASKS = ("mbpp", "dbbench", "os_interaction", "vqa")


def naive_archives(folder, generation):
    """Algorithm 1's insertion, one individual after another, into a dict per task."""
    grid = json.loads((folder / "grid.json").read_text())
    archives = {task: {} for task in grid["tasks"]}
    for line in (folder / "history.jsonl").read_text().splitlines():
        one = json.loads(line)
        if one["scores"] is None or one["generation"] > generation:
            continue
        for task in grid["tasks"]:
            cell = []
            for other in grid["tasks"]:
                if other != task:
                    low, high = grid["bounds"][other]
                    index = math.floor((one["scores"][other] - low) / (high - low) * grid["bins"])
                    cell.append(min(max(index, 0), grid["bins"] - 1))
            elite = archives[task].get(tuple(cell))
            if elite is None or one["scores"][task] > elite["scores"][task]:
                archives[task][tuple(cell)] = one
    return archives


@pytest.mark.exhaustive
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_replay_equals_a_naive_rendering_of_algorithm_1(make_run, k, seed):
    folder = make_run(tasks=TASKS[:k], generations=60, batch=3, seed=seed, items=23, bins=6)
    history = load_history(folder)
    for generation in (-1, 0, 7, 59, None):
        expected = naive_archives(folder, math.inf if generation is None else generation)
        for archive in history.archives(generation):
            elites = expected[TASKS[archive.task]]
            assert {cell: history.individuals[row].id for cell, row in archive.cells.items()} == {
                cell: one["id"] for cell, one in elites.items()
            }
            assert archive.quality == {cell: one["scores"][TASKS[archive.task]] for cell, one in elites.items()}


@pytest.mark.parametrize("k", [2, 3, 4])
def test_metrics_equal_those_of_the_naive_archives(make_run, k):
    folder = make_run(tasks=TASKS[:k], generations=40, batch=2, bins=5, quarantine=0.2)
    history = load_history(folder)
    metrics = compute_metrics(history)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert metrics.generations.tolist() == list(range(-1, 40))
    for g, generation in enumerate(metrics.generations):
        archives = naive_archives(folder, generation)
        residents = {one["id"]: one for cells in archives.values() for one in cells.values()}
        seen = [one for one in lines if one["generation"] <= generation]
        alive = [one for one in seen if one["scores"] is not None]
        averages = {one["id"]: np.mean(list(one["scores"].values())) for one in alive}
        for t, task in enumerate(TASKS[:k]):
            quality = [one["scores"][task] for one in archives[task].values()]
            assert metrics.best[g, t] == max(quality)
            assert metrics.coverage[g, t] == len(quality) / 5 ** (k - 1)
            assert metrics.qd_score[g, t] == pytest.approx(sum(quality))
        assert metrics.best_average[g] == pytest.approx(max(averages.values()))
        assert averages[metrics.best_average_id[g]] == pytest.approx(max(averages.values()))
        assert metrics.elites_average[g] == pytest.approx(np.mean([averages[i] for i in residents]))
        assert metrics.evaluated[g] == len(seen)
        assert metrics.quarantined[g] == len(seen) - len(alive)
        spent = sum(one["seconds"]["evaluate"] for one in seen)
        assert metrics.seconds["evaluate"][: g + 1].sum() == pytest.approx(spent)
    assert metrics.quarantined[-1] > 0


def write(folder, tasks, bounds, rows, bins=4):
    folder.mkdir(exist_ok=True)
    grid = {"tasks": tasks, "bins": bins, "bounds": dict(zip(tasks, bounds))}
    (folder / "grid.json").write_text(json.dumps(grid))
    lines = []
    for index, scores in enumerate(rows):
        record = {"id": index, "generation": index - 1, "expert": None, "active": None, "parents": [-1, -1], "omega": None}
        record |= {"key": None, "scores": scores and dict(zip(tasks, scores)), "error": None, "items": {}, "seconds": {}}
        lines.append(json.dumps(record))
    (folder / "history.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_first_of_equals_stays_and_better_replaces(tmp_path):
    rows = [(0.5, 0.5), (0.5, 0.5), (0.6, 0.5), (0.6, 0.55), None, (0.1, 0.5)]
    history = load_history(write(tmp_path / "run", ("a", "b"), [(0, 1), (0, 1)], rows))
    a, b = history.archives()
    assert a.cells == {(2,): 2}
    assert b.cells == {(2,): 3, (0,): 5}
    assert [(i.task, i.row, i.replaced) for i in history.insertions] == [
        (0, 0, -1),
        (1, 0, -1),
        (0, 2, 0),
        (1, 3, 0),
        (1, 5, -1),
    ]


def test_bins_are_clipped_per_axis_and_an_edge_belongs_above():
    grid = Grid.of_bounds(("a", "b"), 4, np.array([[0.2, 0.6], [0.0, 1.0]]))
    assert grid.bin(np.array([[0.0, -1.0], [0.2, 0.25], [0.31, 0.5], [0.6, 1.0], [9.0, 9.0]])).tolist() == [
        [0, 0], [0, 1], [1, 2], [3, 3], [3, 3],
    ]  # fmt: skip


def test_children_that_racing_stopped_count_as_evaluated(make_run):
    folder = make_run(generations=3)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    lines[-1] |= {"scores": None, "error": None, "evaluated": {"mbpp": [0, 1]}}
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compute_metrics(load_history(folder)).evaluated[-1] == len(lines)


def test_an_axis_of_zero_width_has_two_bins():
    grid = Grid.of_bounds(("a", "b"), 3, np.array([[0.0, 0.0], [0.0, 1.0]]))
    low, high = grid.bin(np.array([[-0.1, 0.0], [0.5, 0.0]]))[:, 0].tolist()
    assert (low, high) == (0, 2)


def test_bins_agree_with_the_searchers_archives():
    rng = np.random.default_rng(0)
    bounds = expert_bounds(jnp.asarray(rng.integers(0, 41, (3, 3)) / 40, jnp.float32))
    ours = Grid.of_bounds(("a", "b", "c"), 15, np.array(json.loads(json.dumps(bounds.tolist()))))
    edges = np.linspace(bounds[:, 0], bounds[:, 1], 16).astype(np.float64)
    scores = np.concatenate([rng.uniform(0, 1, (2000, 3)), rng.integers(0, 41, (2000, 3)) / 40, edges])
    empty = Archives.create({"x": jnp.zeros(1)}, jnp.asarray(bounds), 15)
    theirs = empty.bin_indices(jnp.asarray(scores, jnp.float32))
    np.testing.assert_array_equal(ours.bin(scores), theirs)


def test_frames_of_experts_are_around_the_cells_that_have_them():
    """With centroids, an elite is drawn at the bin of the centroid that is nearest to its scores."""
    grid = Grid.of_bounds(("a", "b", "c"), 5, np.array([[0, 1.0]] * 3))
    for one in (grid, dataclasses.replace(grid, centroids=np.array([[0.3, 0.5], [0.7, 0.7]], np.float32))):
        expert = Individual(0, -1, "a", None, (-1, -1), None, None, scores={"a": 0.5, "b": 0.05, "c": 0.25})
        history = History(one, (expert,))
        for archive in history.archives():
            rows = archive.project((0, 1))
            assert list(history.expert_cells(archive, (0, 1))) == [(int(y), int(x)) for y, x in np.argwhere(rows == 0)]


def test_edges_of_the_searcher_are_used(make_run):
    folder = make_run(generations=5, bins=2, tasks=TASKS[:2])
    grid = json.loads((folder / "grid.json").read_text())
    edges = {task: [grid["bounds"][task][0], grid["bounds"][task][1] * 0.99, grid["bounds"][task][1]] for task in grid["tasks"]}
    (folder / "grid.json").write_text(json.dumps(grid | {"edges": edges}))
    history = load_history(folder)
    assert history.grid.bin(history.scores[0])[0] == 0  # best at its task, and still below the shifted edge
    (folder / "grid.json").write_text(json.dumps(grid | {"edges": {"mbpp": [0, 1]}}))
    with pytest.raises(InputError, match="expected 3 finite edges"):
        load_history(folder)


@pytest.mark.exhaustive
def test_projection_takes_the_best_over_the_other_axes(make_run):
    history = load_history(make_run(tasks=TASKS, generations=80, bins=4))
    for archive in history.archives():
        assert archive.pairs() == [(0, 1), (0, 2), (1, 2)]
        for x, y in archive.pairs():
            rows = archive.project((x, y))
            for (v, h), row in np.ndenumerate(rows):
                here = [q for cell, q in archive.quality.items() if cell[x] == h and cell[y] == v]
                assert (row < 0) == (not here)
                assert not here or history.scores[row, archive.task] == max(here)


def test_mixture_follows_crossover(tmp_path):
    folder = write(tmp_path / "run", ("a", "b"), [(0, 1), (0, 1)], [(0.5, 0.1), (0.1, 0.5), (0.4, 0.4), (0.3, 0.3)])
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    lines[0] |= {"expert": "a"}
    lines[1] |= {"expert": "b", "generation": -1}
    lines[2] |= {"parents": [0, 1], "omega": [3.0, 1.0]}
    lines[3] |= {"parents": [2, 1], "omega": None}
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mixture = load_history(folder).mixture
    np.testing.assert_allclose(mixture[:3], [[1, 0], [0, 1], [0.75, 0.25]])
    assert np.isnan(mixture[3]).all()


@pytest.mark.parametrize(
    "tail", ['{"id": 99, "gener', '{"id": 99, "generation": 3}', "\x00\x00\x00", '{"id": 99, "scores": {"mbpp": 0.5']
)
def test_torn_last_line_is_left_out(make_run, tail):
    folder = make_run(generations=5)
    whole = load_history(folder)
    with (folder / "history.jsonl").open("a") as file:
        file.write(tail)
    torn = load_history(folder)
    assert torn.torn
    assert not whole.torn
    assert torn.individuals == whole.individuals


@pytest.mark.parametrize("content", ["not a journal", "[1, 2]", "\x00{", '{"name": "another file"}'])
@pytest.mark.parametrize("whole", [True, False])
def test_an_end_that_is_no_beginning_of_a_line_is_an_error(make_run, content, whole):
    path = make_run(generations=5) / "history.jsonl"
    before = path.read_bytes() if whole else b""
    path.write_bytes(before + content.encode())
    for read in (lambda: load_history(path.parent), lambda: Journal(path), lambda: Journal(path, read_only=True)):
        with pytest.raises(InputError, match=rf"expected a line of a journal, got .* in line {9 if whole else 1} of"):
            read()
    assert path.read_bytes() == before + content.encode()


def test_a_damaged_last_line_with_its_newline_is_an_error(make_run):
    folder = make_run(generations=5)
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"id": 99, "generation": 3}\n')
    with pytest.raises(InputError, match=r"got none of .* in line 9 of .*history\.jsonl"):
        load_history(folder)


def test_a_whole_last_line_without_its_newline_is_incomplete(make_run):
    folder = make_run(generations=5)
    path = folder / "history.jsonl"
    whole = load_history(folder)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # the journal removes such a line, and evaluates it again
    torn = load_history(folder)
    assert torn.torn
    assert torn.individuals == whole.individuals[:-1]


def test_damage_before_the_last_line_is_an_error_with_its_line(make_run):
    folder = make_run(generations=5)
    lines = (folder / "history.jsonl").read_text().splitlines()
    (folder / "history.jsonl").write_text("\n".join([*lines[:2], lines[2][:40], *lines[3:]]) + "\n")
    with pytest.raises(InputError, match=r"line 3 of .*history\.jsonl"):
        load_history(folder)


def test_a_line_whose_checksum_was_removed_is_an_error(tmp_path):
    journal = Journal(tmp_path / "history.jsonl")
    for identity, score in enumerate((0.25, 0.5, 0.75)):
        journal.append(Individual(identity, -1, "a", None, (-1, -1), None, None, scores={"a": score}))
    lines = lines_without_checksums(journal.path)
    whole = journal.path.read_text().splitlines()
    edited = json.dumps({**lines[1], "scores": {"a": 1.0}}, separators=(",", ":"))
    journal.path.write_text("\n".join([whole[0], edited, whole[2], ""]))
    with pytest.raises(InputError, match="expected a checksum, as in the line before, got none in line 2 of"):
        load_individuals(tmp_path, ("a",))
    journal.path.write_text("".join(json.dumps(line) + "\n" for line in lines))  # of an older version
    assert len(load_individuals(tmp_path, ("a",))[0]) == 3


def test_repeated_id_is_an_error(make_run):
    folder = make_run(generations=5)
    text = (folder / "history.jsonl").read_text()
    (folder / "history.jsonl").write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(InputError, match="got id 1 of line 2 again in line 9 of"):
        load_history(folder)


@pytest.mark.parametrize(
    "grid",
    [
        "{",
        "[]",
        '{"tasks": ["a"], "bins": 3, "bounds": {"a": [0, 1]}}',
        '{"tasks": ["a", "b"], "bins": 3, "bounds": {}}',
        '{"tasks": ["a", "b"], "bins": Infinity, "bounds": {"a": [0, 1], "b": [0, 1]}}',
        '{"tasks": ["a", "b"], "bins": 1, "bounds": {"a": [0, 1], "b": [0, 1]}, "edges": {"a": [0, 1], "b": [0, NaN]}}',
        '{"tasks": ["a", "b"], "bins": 3, "bounds": {"a": [0, 1], "b": [0, 1]}, "centroids": []}',
        '{"tasks": ["a", "b"], "bins": 3, "bounds": {"a": [0, 1], "b": [0, 1]}, "centroids": [[0.5], [Infinity]]}',
    ],
)
def test_damaged_grid_is_an_error(make_run, grid):
    folder = make_run(generations=1)
    (folder / "grid.json").write_text(grid)
    with pytest.raises(InputError, match=r"grid\.json"):
        load_history(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_scores_are_an_error_with_their_line(tmp_path, value):
    folder = write(tmp_path / "run", ("a", "b"), [(0, 1), (0, 1)], [(0.2, 0.3), (0.5, value)])
    with pytest.raises(InputError, match=r"scores to be a finite number for each task.* in line 2 of .*history\.jsonl"):
        load_history(folder)


def test_missing_files_are_no_history(make_run, tmp_path):
    assert load_history(tmp_path) is None
    folder = make_run(generations=1)
    (folder / "grid.json").unlink()
    assert load_history(folder) is None


def test_milestones_are_every_100_for_the_paper():
    assert milestones(1199) == [-1, *range(99, 1200, 100)]
    assert milestones(-1) == [-1]
    assert milestones(0) == [-1, 0]
    for last in range(400):
        marks = milestones(last)
        assert marks[0] == -1
        assert marks[-1] == last
        assert len(marks) <= 13
        assert marks == sorted(set(marks))
