"""Racing: stages, orders, predictions on finite populations, and searches that stop children."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.stats import betabinom

from cycleqd_jax.algorithms import CycleQD, DominatedNovelty, PlainQD
from cycleqd_jax.evaluation import Evaluation, FaultPolicy, GuardedWorker, PopulationWorker, SerialWorker, WorkerPool
from cycleqd_jax.search import Journal, Racing, Transcripts, generation_ids
from cycleqd_jax.search.racing import entry_probability, item_order, mean_distribution, stage_sizes, strata_of
from cycleqd_jax.types import InputError, Outcome, Score

from .conftest import TASKS, Killed

ITEMS = 24


def test_the_sizes_of_stages():
    assert stage_sizes(32, 0.25) == (8, 16, 32)
    assert stage_sizes(30, 0.1, least=8) == (8, 16, 30)
    assert stage_sizes(7, 1.0) == (7,)
    for first, least, message in ((0.0, 1, "above 0"), (1.1, 1, "at most 1"), (0.5, 8, "1 to 7 problems, got 8")):
        with pytest.raises(InputError, match=message):
            stage_sizes(7, first, least)


@pytest.mark.parametrize("count", [0, 1, 5, 20, 32])
def test_the_order_of_problems(count):
    disputed = np.arange(32) % 32 < count
    orders = [item_order(disputed, 8, generation, "run/task") for generation in range(12)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(32))
        for n in range(1, 33):
            assert disputed[order[:n]].sum() >= min(count, max(n / 2, n * count / 32))
    np.testing.assert_array_equal(orders[3], item_order(disputed, 8, 3, "run/task"))
    assert orders[3].tolist() != item_order(disputed, 8, 3, "run/other").tolist()
    assert {*np.concatenate([order[:8] for order in orders])} == {*range(32)}  # first subsets reach all problems
    if count == 0:  # a turn uses every problem once
        assert len({*np.concatenate([order[:8] for order in orders[:4]])}) == 32


def test_the_distribution_of_a_mean():
    experts = np.asarray([[1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1]], np.float64)
    strata, means = strata_of(experts, experts)
    assert len(means) == 3
    assert strata[0] == strata[4] != strata[1] == strata[5] != strata[2]
    everything = {i: value for i, value in enumerate((1.0, 0.5, 0.0, 0.0, 1.0, 1.0))}
    values, probabilities = mean_distribution(everything, strata, means)
    assert (values.tolist(), probabilities.tolist()) == ([3.5 / 6], [1.0])
    # one stratum: the remaining problems are beta-binomial, here with Beta(½, ½) before 2 of 3
    found = mean_distribution({3: 1.0, 4: 1.0, 7: 0.0}, np.zeros(10, np.int64), np.asarray([0.5]))
    np.testing.assert_allclose(found.probabilities, betabinom.pmf(range(8), 7, 2.5, 1.5), rtol=1e-12)
    np.testing.assert_allclose(found.values, (2 + np.arange(8)) / 10)


def test_the_probability_of_entry():
    strata, means = np.zeros(20, np.int64), np.asarray([0.5])
    first = mean_distribution({i: float(i % 3 == 0) for i in range(9)}, strata, means)
    second = mean_distribution({i: float(i % 2) for i in range(5)}, strata, means)
    joint = first.probabilities[:, None] * second.probabilities[None]
    admitted = (first.values[:, None] > 0.4) & (second.values[None] <= 0.5) | (first.values[:, None] > 0.6)
    found = entry_probability([first, second], lambda s: (s[:, 0] > 0.4) & (s[:, 1] <= 0.5) | (s[:, 0] > np.float32(0.6)))
    assert found == pytest.approx(joint[admitted].sum(), abs=0.005)


def test_intervals_cover_the_means_of_finite_populations():
    """For fixed rates of children that repeat their parents but for a share of flips, over stages and strata."""
    rng = np.random.default_rng(0)
    rates = []
    for flips in (0.02, 0.1, 0.3, 0.5):
        covered = []
        for trial in range(300):
            experts = (rng.random((3, 48)) < 0.6).astype(np.float64)
            parents = experts[:2]
            child = np.where(rng.random(48) < flips, rng.random(48) < 0.5, parents[trial % 2]).astype(np.float64)
            order = item_order(experts.max(0) != experts.min(0), 12, trial, f"{flips}")
            n = (12, 24)[trial % 2]
            values, probabilities = mean_distribution(
                {int(i): float(child[i]) for i in order[:n]}, *strata_of(experts, parents)
            )
            ends = np.cumsum(probabilities)
            low, high = values[np.searchsorted(ends, 0.025)], values[np.searchsorted(ends, 0.975)]
            covered.append(low <= child.mean() <= high)
        rates.append(np.mean(covered))
    assert np.mean(rates) >= 0.95
    assert min(rates) >= 0.93


class Items:
    """Scores problems by the weights: one of task k is solved where a projection of matrix k exceeds a threshold."""

    def __init__(self, dies_at=None):
        self.evaluated, self.dies_at, self.loads, self.weights = 0, dies_at, 0, None

    def unload(self): ...

    def shrink(self): ...

    def only(self, names): ...

    def population(self, params, count, split="train", **options):
        self.load(params)
        return [*self.score(dict.fromkeys(range(count), dict.fromkeys(TASKS, range(ITEMS)))).values()]

    def sizes(self, split):
        return dict.fromkeys(TASKS, ITEMS)

    def load(self, params, *, donate=False):
        if self.loads == self.dies_at:
            raise Killed
        self.loads += 1
        weights = np.asarray(params["w"], np.float64)
        self.weights = weights.reshape(-1, *weights.shape[-3:])  # of one model or of several

    def score(self, items, split="train", *, stop=None, relatives=()):
        return {i: self.scored(self.weights[i], chosen) for i, chosen in items.items()}

    def scored(self, weights, items):
        outcomes = {}
        for task, places in items.items():
            k = TASKS.index(task)
            rng = np.random.default_rng(k)
            planes, thresholds = rng.normal(size=(ITEMS, 12)), rng.normal(size=ITEMS)
            solved = planes @ weights[k].ravel() > thresholds
            self.evaluated += len(places)
            outcomes[task] = [Outcome(Score(float(solved[place])), (), 1, 1, replies=((place,),)) for place in places]
        return Evaluation(outcomes, None, {"evaluate": 0.001})

    def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()):
        self.load(params)
        return self.score({0: dict.fromkeys(TASKS, range(ITEMS))})[0]


class Cluster:
    size = 1

    def __call__(self, groups, on_result, relatives=()): ...


@pytest.fixture
def race(new_run, space):
    def race(name, items=None, racing: Racing | None = Racing(confidence=0.5), searcher=None, workers=None, **more):
        run, items = new_run(name), items or Items()
        searcher = searcher or CycleQD(space, bins=2)
        options = {"generations": 10, "batch_size": 3, **more}
        pool = WorkerPool(workers or [SerialWorker(space.express, items)])
        state = run.evolve(workers=pool, searcher=searcher, racing=racing, **options)
        return state, run.lines(), items, run

    return race


def test_children_that_can_not_enter_stop_and_elites_have_all_items(race):
    state, lines, items, run = race("raced")
    stopped = [line for line in lines if "evaluated" in line]
    whole = [line for line in lines if "evaluated" not in line]
    assert stopped
    assert len(whole) > 3
    for line in stopped:
        assert (line["scores"], line["error"]) == (None, None)
        for task, places in line["evaluated"].items():
            assert places == sorted(set(places))
            assert len(line["items"][task]) == len(places) in (6, 12)
    assert any(len(line["evaluated"]["db"]) == 6 for line in stopped)
    assert items.evaluated == sum(len(scores) for line in lines for scores in line["items"].values())
    occupied = np.asarray(state.archives.occupied())
    elites = {*np.asarray(state.archives.ids)[occupied].tolist()}
    assert elites <= {line["id"] for line in whole}
    for line in whole:
        assert [len(line["items"][task]) for task in TASKS] == [ITEMS] * 3
        assert line["scores"] == {task: np.mean(line["items"][task]) for task in TASKS}
    assert not {line["id"] for line in stopped} & {parent for line in lines for parent in line["parents"]}
    # A child that stops has the scores that it has without racing, as far as it was evaluated.
    again = Items()
    again.load(run.space.express(run.space.expert(0)))
    full = again.score({0: dict.fromkeys(TASKS, range(ITEMS))})[0].items
    assert full == lines[0]["items"]
    # The same search without racing evaluates more.
    unraced = race("unraced", racing=None)
    assert unraced[2].evaluated == len(lines) * 3 * ITEMS > 1.2 * items.evaluated
    # A first stage of all items is no racing.
    assert race("all", racing=Racing(first=1.0))[1] == unraced[1]


def test_a_race_that_is_killed_and_resumed_is_the_same(race, assert_identical):
    state, lines, items, _ = race("whole", every=3)
    with pytest.raises(Killed):
        race("killed", Items(dies_at=11), every=3)  # within a generation
    rest = Items()
    resumed, found, _, _ = race("killed", rest, every=3)
    assert found == lines
    assert rest.loads == items.loads - 11
    assert_identical(resumed, state)


def test_races_on_several_workers_and_of_populations_are_the_same(race, space, tmp_path):
    _, lines, items, _ = race("one", generations=5)
    several = [GuardedWorker(SerialWorker(space.express, Items()), FaultPolicy()) for _ in range(3)]
    assert race("several", workers=several, generations=5)[1] == lines
    # Populations of two, with transcripts: replies are at the positions of the problems that were evaluated.
    together, transcripts = Items(), Transcripts(tmp_path / "replies", "tokenizer")
    workers = [PopulationWorker(jax.vmap(space.express), together, 2)]
    assert race("together", workers=workers, transcripts=transcripts, generations=5)[1] == lines
    assert together.evaluated == items.evaluated
    assert any("evaluated" in line for line in lines)
    for line in lines:
        found = transcripts.read(line["id"])
        for task in TASKS:
            places = line["evaluated"][task] if "evaluated" in line else range(ITEMS)
            assert {i: replies for i, replies in enumerate(found[task]) if replies} == {place: [[place]] for place in places}


def test_plain_qd_races_too(race, space):
    state, lines, _, _ = race("plain", searcher=PlainQD(space, bins=2))
    stopped = {line["id"] for line in lines if "evaluated" in line}
    held = np.asarray(state.repertoire.fitnesses[:, 0]) > -np.inf
    assert stopped
    assert not stopped & {*np.asarray(state.repertoire.extra_scores["id"])[held].tolist()}


def test_the_budget_of_problems_counts_what_was_evaluated(race):
    each, items = 3 * ITEMS, 12 * 3 * ITEMS
    racing = Racing(confidence=0.5, items=items)
    state, lines, used, run = race("budget", racing=racing, every=2)
    assert len(lines) > items // each
    assert used.evaluated <= items - each  # the smaller generation is the last, although its children left a part
    assert [line["id"] for line in lines] == [*range(int(state.next_id))]
    path = run.folder / "history.jsonl"
    ids = [*generation_ids(Journal(path), 3, 3, 33, items)]
    assert [len(one) for one in ids[:-1]] == [3] * (len(ids) - 1)
    assert len(ids[-1]) < 3
    assert ids[-1].stop == len(lines)
    # Nothing is evaluated after the end, and a checkpoint whose last individual is gone is refused.
    seen = []
    options = {"racing": racing, "progress": lambda stage, done, total, figures: seen.append((done, total))}
    assert race("budget", Items(dies_at=0), every=2, **options)[1] == lines
    assert seen[-1] == (len(lines), len(lines))
    seen.clear()
    assert race("reported", every=2, **options)[1] == lines
    assert seen[-1] == (len(lines), len(lines))
    assert all(done < total <= 33 for done, total in seen[:-1])
    assert seen[0][1] == items // each  # as if no child stopped
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=f"expected at least {len(lines)} individuals for the checkpoint"):
        race("budget", racing=racing, every=2)


def test_errors(race, new_run, space):
    for options, message in (
        ({"first": 0.0}, "first to be above 0 and at most 1, got 0.0"),
        ({"first": 1.5}, "first to be above 0 and at most 1, got 1.5"),
        ({"confidence": 0.0}, "confidence to be above 0 and below 1, got 0.0"),
        ({"confidence": 1.0}, "confidence to be above 0 and below 1, got 1.0"),
        ({"least": 0}, "least to be at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=message):
            Racing(**options)
    with pytest.raises(InputError, match=f"first subset of 1 to {ITEMS} problems, got 25"):
        race("least", racing=Racing(least=25))
    with pytest.raises(InputError, match=r"expected a WorkerPool with racing, .* got Cluster"):
        new_run("ray").evolve(workers=Cluster(), racing=Racing())
    searcher = DominatedNovelty(space, 6, "items", 3)
    with pytest.raises(InputError, match="searcher with archives for racing, got a DominatedNoveltyState"):
        race("no archives", searcher=searcher)
