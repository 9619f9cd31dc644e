"""One contract for all searchers: purity, ties, NaN scores, journals, budgets, and resuming from checkpoints."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import CMAES, NSGA2, CycleQD, DominatedNovelty, PlainQD, RandomSearch
from cycleqd_jax.algorithms.common import rebuild_child
from cycleqd_jax.evaluation import Evaluation, Evaluator, SerialWorker, WorkerPool
from cycleqd_jax.genome import CoefficientGenome, CoefficientSpace, ExpertSpace
from cycleqd_jax.individual import Individual
from cycleqd_jax.search import Checkpoints, Journal, evolve, individuals_within, tree_digest
from cycleqd_jax.types import InputError, Outcome, Score, Searcher, SearchState

TASKS = ("coding", "db", "os")
K, BATCH, GENERATIONS = 3, 4, 5


def models():
    rng = np.random.default_rng(0)
    return [
        {"layers": {"w": jnp.asarray(0.5 * rng.normal(size=(2, 4, 3)), jnp.float32)}, "norm": jnp.ones(3) + 0.1 * k}
        for k in range(K + 1)
    ]


@pytest.fixture(scope="module")
def spaces():
    base, *experts = models()
    return ExpertSpace.from_experts(base, experts), CoefficientSpace.from_experts(base, experts, groups=2)


SEARCHERS = {
    "cycleqd": lambda whole, coefficients: (CycleQD(whole, bins=5), whole),
    "qd": lambda whole, coefficients: (PlainQD(whole, bins=5), whole),
    "dns": lambda whole, coefficients: (DominatedNovelty(whole, population=6), whole),
    "dns of scores": lambda whole, coefficients: (DominatedNovelty(whole, population=6, descriptors="scores"), whole),
    "random": lambda whole, coefficients: (RandomSearch(), coefficients),
    "cmaes": lambda whole, coefficients: (CMAES(population=BATCH), coefficients),
    "nsga2": lambda whole, coefficients: (NSGA2(population=6), coefficients),
    "cycleqd of coefficients": lambda whole, coefficients: (CycleQD(coefficients, bins=5), coefficients),
}
WITH_COEFFICIENTS = {"random", "cmaes", "nsga2"}


def searchers(*quick):
    """All searchers as parameters. Searchers without a name here run with ``--all`` only."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.exhaustive) for name in SEARCHERS]


@pytest.fixture(params=searchers("cycleqd", "cmaes"))
def name(request):
    """One archive and one distribution, where a test names no others."""
    return request.param


populations_too = pytest.mark.parametrize("name", searchers("cycleqd", "cmaes", "nsga2"), indirect=True)
loop = pytest.mark.parametrize("name", searchers("cycleqd"), indirect=True)
"""Of tests of the search loop that concern no state of a searcher."""


@pytest.fixture
def made(name, spaces):
    return SEARCHERS[name](*spaces)


def experts_of(space):
    return jax.vmap(space.expert)(jnp.arange(K))


EXPERT_SCORES = np.float32([[0.8, 0.1, 0.2], [0.2, 0.7, 0.1], [0.1, 0.2, 0.6]])


def scores_of(t, n=BATCH):
    return jnp.asarray(np.random.default_rng(t).integers(0, 11, size=(n, K)) / 10, jnp.float32)


def items_of(scores):
    """Two problems of every task, whose mean is the score of the task."""
    return jnp.concatenate([scores / 2, 1.5 * scores], axis=1)


def played(searcher, space, steps=3, scores=scores_of):
    """The states of a short search, with what every ``ask`` gave."""
    state = searcher.init(experts_of(space), EXPERT_SCORES, items_of(EXPERT_SCORES))
    for t in range(steps):
        genomes, lineage, asked = searcher.ask(state, jax.random.key(t), BATCH)
        yield state, genomes, lineage, asked, scores(t)
        state = tell(searcher, asked, genomes, scores(t), lineage)
    yield state, None, None, None, None


def tell(searcher, state, genomes, scores, lineage):
    return searcher.tell(state, genomes, scores, lineage, items_of(scores))


def final(*args, **options):
    return list(played(*args, **options))[-1][0]


# ------------------------------------------------------------------------------------------------------------ the contract


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


# ------------------------------------------------------------------------------------------------------- in the search loop


class Killed(BaseException):
    """Stands for a killed process."""


@dataclasses.dataclass
class FromWeights(Evaluator):
    """Scores computed from the weights, two items for each task; the call number ``dies_at`` raises."""

    dies_at: int | None = None
    broken_at: int | None = None
    calls: int = 0

    def unload(self) -> None:
        pass

    def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()) -> Evaluation:
        if self.calls == self.dies_at:
            raise Killed
        self.calls += 1
        if self.calls - 1 == self.broken_at:
            return Evaluation({}, "the logits are not finite", {})
        sums = np.asarray(params["layers"]["w"], np.float64).sum(axis=(0, 1))
        values = [float(np.round(1 / (1 + np.exp(-one)), 1)) for one in sums]  # coarse, so that there are ties
        outcomes = {
            task: [Outcome(Score(value), (), 1, 1), Outcome(Score(1 - value / 2), (), 1, 1)]
            for task, value in zip(TASKS, values, strict=True)
        }
        return Evaluation(outcomes, None, {"evaluate": 0.001})


def run(made, folder, evaluator=None, *, every=1, **options):
    searcher, space = made
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", every=every)
    try:
        return evolve(
            searcher,
            experts_of(space),
            WorkerPool([SerialWorker(space.express, evaluator or FromWeights())]),
            tasks=TASKS,
            key=jax.random.key(1),
            batch_size=BATCH,
            journal=Journal(folder / "history.jsonl"),
            checkpoints=checkpoints,
            **{"generations": GENERATIONS} | options,
        )
    finally:
        checkpoints.close()


def lines(folder):
    found = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.exhaustive)])
@loop
def test_resumed_at_any_generation_it_ends_the_same(made, tmp_path, assert_identical, every):
    state = run(made, tmp_path / "whole", every=9)
    for generation in range(GENERATIONS):
        folder = tmp_path / f"{generation}"
        with pytest.raises(Killed):
            run(made, folder, FromWeights(dies_at=K + generation * BATCH + 1), every=every)
        assert_identical(run(made, folder, every=every), state)
        assert lines(folder) == lines(tmp_path / "whole")


def test_quarantined_children_resume(made, tmp_path, assert_identical):
    state = run(made, tmp_path / "whole", FromWeights(broken_at=6))
    assert [line["id"] for line in lines(tmp_path / "whole") if line["scores"] is None] == [6]
    with pytest.raises(Killed):
        run(made, tmp_path / "killed", FromWeights(broken_at=6, dies_at=9), every=3)
    assert_identical(run(made, tmp_path / "killed", every=3), state)


@pytest.mark.as_users
def test_the_journal_rebuilds_every_child(name, made, tmp_path, assert_close):
    """From the experts and the journal alone: parents, active task and key, or the recorded coefficients."""
    _searcher, space = made
    run(made, tmp_path)
    journal = Journal(tmp_path / "history.jsonl")
    genomes = {k: space.expert(k) for k in range(K)}
    for identity in range(K, K + GENERATIONS * BATCH):
        one = journal.get(identity)
        assert one is not None
        assert (one.coefficients is not None) == (name in WITH_COEFFICIENTS)
        if one.coefficients is not None:
            assert one.omega is None
            assert one.active is None
            genomes[identity] = CoefficientGenome(jnp.asarray(one.coefficients, jnp.float32))
            continue
        assert one.key is not None
        assert one.omega is not None
        assert one.active is not None
        first, second = (genomes[parent] for parent in one.parents)
        omega, key = jnp.asarray(one.omega, jnp.float32), jnp.asarray(one.key, jnp.uint32)
        genomes[identity] = rebuild_child(space, first, second, omega, key, jnp.int32(TASKS.index(one.active)))
    for identity, genome in genomes.items():
        recorded = journal.get(identity)
        again = FromWeights()(space.express(genome))
        assert recorded is not None
        assert again.scores == recorded.scores, identity
        assert tree_digest(genome) == recorded.digest, identity


@pytest.mark.parametrize(
    "budget", [K + 2 * BATCH + 1, *(pytest.param(K + n, marks=pytest.mark.exhaustive) for n in (BATCH, 2 * BATCH, 11))]
)
@loop
def test_the_budget_is_spent_and_not_exceeded(made, tmp_path, budget, assert_identical):
    evaluator = FromWeights()
    state = run(made, tmp_path / "whole", evaluator, budget=budget)
    assert evaluator.calls == budget == len(lines(tmp_path / "whole")) == int(state.next_id)
    again = FromWeights()
    assert_identical(run(made, tmp_path / "whole", again, budget=budget), state)
    assert again.calls == 0
    with pytest.raises(Killed):
        run(made, tmp_path / "killed", FromWeights(dies_at=budget - 1), budget=budget, every=2)
    assert_identical(run(made, tmp_path / "killed", budget=budget, every=2), state)


@loop
def test_a_budget_of_items(made, tmp_path):
    assert individuals_within(None, None, 6) is None
    assert individuals_within(9, None, 6) == 9
    budget = individuals_within(100, 6 * 10 + 5, 6)
    assert budget == 10
    run(made, tmp_path, budget=budget)
    items = sum(len(items) for line in lines(tmp_path) for items in line["items"].values())
    assert items == 60


@loop
def test_a_budget_below_one_generation_is_refused_before_any_evaluation(made, tmp_path):
    evaluator = FromWeights()
    with pytest.raises(InputError, match=r"expected a budget of at least 7 individuals, 3 experts and .*, got 6; increase"):
        run(made, tmp_path, evaluator, budget=6)
    assert evaluator.calls == 0


def test_a_record_with_coefficients(tmp_path):
    one = Individual(3, 0, None, None, (-1, -1), None, (0, 1), coefficients=([0.25, 0.5], [1.0, -0.125]))
    assert Individual.from_json(one.to_json(), "here") == one
    assert "coefficients" not in dataclasses.replace(one, coefficients=None).to_json()
    damaged = one.to_json().replace("[0.25,0.5]", "0.25")
    with pytest.raises(InputError, match="expected coefficients to be lists of finite numbers or null, got"):
        Individual.from_json(damaged, "line 1")
