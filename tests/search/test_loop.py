"""The search loop: what it writes, and that a run killed anywhere and resumed ends bit-identical."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.algorithms import CycleQD, DominatedNovelty, PlainQD, UniformSelector, aggregate
from cycleqd_jax.genome import DenseSpace, ExpertSpace
from cycleqd_jax.search import Transcripts
from cycleqd_jax.types import InputError

from ..journals import lines_without_checksums

GENERATIONS, BATCH = 4, 2
INDIVIDUALS = 3 + GENERATIONS * BATCH


@pytest.fixture
def uninterrupted(new_run):
    run = new_run("uninterrupted")
    return run.evolve(), run.lines()


def test_the_journal_of_a_search(new_run, uninterrupted):
    state, lines = uninterrupted
    assert [line["id"] for line in lines] == list(range(INDIVIDUALS))
    for k, line in enumerate(lines[:3]):
        assert (line["generation"], line["expert"], line["active"], line["parents"]) == (-1, new_run.tasks[k], None, [-1, -1])
    for i, line in enumerate(lines[3:]):
        t = i // BATCH
        assert (line["generation"], line["expert"], line["active"]) == (t, None, new_run.tasks[t % 3])
        assert all(0 <= parent < 3 + t * BATCH for parent in line["parents"])
        assert len(line["key"]) == len(line["omega"]) == 2
        assert line["error"] is None
        assert set(line["scores"]) == set(line["items"]) == set(new_run.tasks)
        for task in new_run.tasks:
            assert line["scores"][task] == pytest.approx(np.mean(line["items"][task]), abs=1e-12)
    assert int(state.generation) == GENERATIONS
    assert int(state.next_id) == INDIVIDUALS


def test_the_archives_have_the_scores_of_the_journal(new_run, uninterrupted):
    state, lines = uninterrupted
    scores, ids = (np.asarray(state.archives.repertoires.extra_scores[name]) for name in ("scores", "id"))
    occupied = np.asarray(state.archives.occupied())
    assert occupied.any(axis=1).all()
    for k, c in zip(*np.nonzero(occupied), strict=True):
        expected = [lines[ids[k, c]]["scores"][task] for task in new_run.tasks]
        np.testing.assert_array_equal(scores[k, c], np.float32(expected))


def test_a_repeated_run_is_identical(new_run, uninterrupted, assert_identical):
    run = new_run("again")
    assert_identical(run.evolve(every=2), uninterrupted[0])
    assert run.lines() == uninterrupted[1]
    other = new_run("other seed")
    other.evolve(seed=1)
    assert other.lines() != uninterrupted[1]


@pytest.mark.parametrize(
    "every", [2 if every == 2 else pytest.param(every, marks=pytest.mark.exhaustive) for every in (1, 2, 3, None)]
)
def test_killed_at_any_individual_and_resumed(new_run, uninterrupted, assert_identical, every):
    for s in range(INDIVIDUALS):
        run = new_run(f"killed at {s}")
        with pytest.raises(new_run.Killed):
            run.evolve(new_run.Evaluator(dies_at=s), every=every)
        assert len(run.lines()) == s
        rest = new_run.Evaluator()
        state = run.evolve(rest, every=every)
        assert rest.calls == INDIVIDUALS - s  # no individual is evaluated twice
        assert run.lines() == uninterrupted[1]
        assert_identical(state, uninterrupted[0])


@pytest.mark.exhaustive
def test_killed_after_every_individual(new_run, uninterrupted, assert_identical):
    run = new_run()
    for _ in range(INDIVIDUALS - 1):
        with pytest.raises(new_run.Killed):
            run.evolve(new_run.Evaluator(dies_at=1), every=2)
    assert_identical(run.evolve(new_run.Evaluator(dies_at=1), every=2), uninterrupted[0])
    assert run.lines() == uninterrupted[1]


def test_killed_while_writing_the_journal(new_run, uninterrupted, assert_identical):
    run = new_run()
    with pytest.raises(new_run.Killed):
        run.evolve(new_run.Evaluator(dies_at=8), every=2)
    path = run.folder / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert_identical(run.evolve(every=2), uninterrupted[0])
    assert run.lines() == uninterrupted[1]


def test_without_checkpoints_the_journal_is_replayed(new_run, uninterrupted, assert_identical):
    run = new_run()
    run.evolve()
    unused = new_run.Evaluator(dies_at=0)
    assert_identical(run.evolve(unused, every=1), uninterrupted[0])


def test_more_generations_continue_a_finished_search(new_run, uninterrupted, assert_identical):
    run = new_run()
    run.evolve(generations=2, every=2)
    assert_identical(run.evolve(every=2), uninterrupted[0])
    assert run.lines() == uninterrupted[1]


def test_quarantined_individuals_are_recorded_and_enter_no_archive(new_run, uninterrupted):
    by_weights = uninterrupted[1]
    run, seen = new_run(), []

    def broken(weights):
        seen.append(weights)
        return len(seen) in (5, 8)  # individuals 4 and 7

    state = run.evolve(new_run.Evaluator(broken=broken))
    lines = run.lines()
    assert [line["id"] for line in lines if line["scores"] is None] == [4, 7]
    for i in (4, 7):
        assert (lines[i]["error"], lines[i]["items"]) == ("the logits are not finite", {})
    assert lines[:4] == by_weights[:4]
    occupied, ids = np.asarray(state.archives.occupied()), np.asarray(state.archives.repertoires.extra_scores["id"])
    assert not set(ids[occupied].tolist()) & {4, 7}
    assert np.isfinite(np.asarray(state.archives.repertoires.extra_scores["scores"])).all()
    assert int(state.next_id) == INDIVIDUALS
    assert not {4, 7} & {parent for line in lines for parent in line["parents"]}


def test_resuming_with_quarantined_children(new_run, space, assert_identical):
    def residue(weights):
        return int(np.abs(weights).sum() * 1e4) % 4

    experts = {residue(np.asarray(space.express(space.expert(k))["w"], np.float64)) for k in range(3)}

    def broken(weights):
        return residue(weights) == min(set(range(4)) - experts)

    whole = new_run("whole")
    state = whole.evolve(new_run.Evaluator(broken=broken), generations=6)
    lines = whole.lines()
    assert any(line["scores"] is None for line in lines[3:])
    run = new_run("killed")
    with pytest.raises(new_run.Killed):
        run.evolve(new_run.Evaluator(dies_at=11, broken=broken), generations=6, every=2)
    assert_identical(run.evolve(new_run.Evaluator(broken=broken), generations=6, every=2), state)
    assert run.lines() == lines


def test_an_expert_that_cannot_be_evaluated(new_run):
    run = new_run()
    for _ in range(2):  # also from the journal
        with pytest.raises(
            InputError, match=r"^expected finite scores of expert 'coding', got: the logits are not finite in .*jsonl; "
        ):
            run.evolve(new_run.Evaluator(broken=lambda weights: True))


def test_progress_counts_every_individual(new_run):
    seen = []
    run = new_run()
    run.evolve(progress=lambda *args: seen.append(args))
    assert [done for _, done, _, _ in seen] == list(range(1, INDIVIDUALS + 1))
    assert {(stage, total) for stage, _, total, _ in seen} == {("evolve", INDIVIDUALS)}
    best = [figures["best average"] for *_, figures in seen]
    averages = [np.mean([line["scores"][task] for task in new_run.tasks]) for line in run.lines()]
    np.testing.assert_allclose(best, np.maximum.accumulate(averages))


def test_progress_after_a_restart_includes_earlier_scores(new_run):
    run = new_run()
    run.evolve(generations=3, every=1)
    before = max(np.mean(list(line["scores"].values())) for line in run.lines())
    seen = []
    run.evolve(every=1, progress=lambda stage, done, total, figures: seen.append(figures["best average"]))
    assert seen[-1] >= before - 1e-12


def test_progress_after_a_checkpoint_is_that_of_a_search_without_a_restart(new_run, space):
    """Individuals that a checkpoint covers are not reported again, and count."""
    searcher = CycleQD(space, bins=5, mu=1.0, sigma=2.0)
    seen, again = [], []
    new_run("whole").evolve(generations=5, searcher=searcher, progress=lambda *args: seen.append(args))
    run = new_run()
    run.evolve(generations=4, every=2, searcher=searcher)
    run.evolve(generations=5, every=2, searcher=searcher, progress=lambda *args: again.append(args))
    assert len(again) < len(seen)
    assert again == [*seen[:3], *seen[-2:]]
    again.clear()
    run.evolve(generations=5, every=2, searcher=searcher, progress=lambda *args: again.append(args))
    assert again == [*seen[:3], seen[-1]]  # a finished search, whose stage ends too


# ------------------------------------------------------------------------------------------------ folders of other runs


def killed(new_run, **options):
    """A run that was killed in its third generation."""
    run = new_run("copy")
    with pytest.raises(new_run.Killed):
        run.evolve(new_run.Evaluator(dies_at=8), **options)
    return run


@pytest.mark.parametrize("every", [1, None])
@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"batch_size": 3},
        {"tasks": ("coding", "db", "shell")},
        {"tasks": ("db", "coding", "os")},
    ],
)
def test_a_folder_of_another_run_is_refused(new_run, every, other):
    run = killed(new_run, every=every)
    before = run.lines()
    with pytest.raises(InputError, match=r"^expected .*, got .* in .*(history\.jsonl|checkpoints); (use|restore) "):
        run.evolve(every=every, **other)
    assert run.lines() == before


@pytest.mark.parametrize("options", [pytest.param({"mu": 2.0}, marks=pytest.mark.exhaustive), {"sigma": 0.5}])
def test_a_journal_of_other_crossover_weights_is_refused(new_run, space, options):
    run = killed(new_run)
    with pytest.raises(InputError, match=r"expected omega = .*history\.jsonl; use "):
        run.evolve(searcher=CycleQD(space, bins=5, **options))


@pytest.mark.exhaustive
def test_a_journal_of_another_selection_is_refused(new_run, space):
    run = killed(new_run)
    path = run.folder / "history.jsonl"
    lines = lines_without_checksums(run.folder / "history.jsonl")
    lines[4]["parents"] = lines[4]["parents"][::-1]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"expected parents.*individual 4"):
        run.evolve(searcher=CycleQD(space, bins=5, selector=UniformSelector()))


def test_a_checkpoint_without_its_journal_is_refused(new_run):
    run = killed(new_run, every=1)
    (run.folder / "history.jsonl").unlink()
    with pytest.raises(InputError, match=r"for the checkpoint of generation 2, got 0 in .*history\.jsonl"):
        run.evolve(every=1)


@pytest.mark.parametrize("bins", [4, pytest.param(6, marks=pytest.mark.exhaustive)])
def test_a_checkpoint_of_other_archives_is_refused(new_run, space, bins):
    run = killed(new_run, every=1)
    with pytest.raises(InputError, match="expected a checkpoint with the leaves and shapes of this run"):
        run.evolve(every=1, searcher=CycleQD(space, bins=bins))


def test_a_checkpoint_of_another_space_is_refused(new_run, space):
    run = killed(new_run, every=1)
    taus = jax.tree.map(lambda leaf: jnp.zeros((space.num_experts, *leaf.shape)), space.base)
    run.space = DenseSpace(base=space.base, task_vectors=taus)
    with pytest.raises(InputError, match=r"leaves and shapes of this run.* the version of that run \(older versions"):
        run.evolve(every=1)


def test_a_checkpoint_of_another_schema_is_refused(new_run, monkeypatch):
    run = killed(new_run, every=1)
    import cycleqd_jax.search.checkpoint as module

    monkeypatch.setattr(module, "SCHEMA", module.SCHEMA + 1)
    with pytest.raises(InputError, match=rf"schema {module.SCHEMA}, got schema {module.SCHEMA - 1} in"):
        run.evolve(every=1)


# ----------------------------------------------------------------------------------------------------------- checkpoints


def test_old_checkpoints_are_removed_and_the_last_generation_is_kept(new_run):
    run = new_run()
    run.evolve(every=3, generations=4)
    steps = sorted(int(path.name) for path in (run.folder / "checkpoints").iterdir() if path.name.isdigit())
    assert steps == [3, 4]
    run.evolve(every=1, generations=6)
    steps = sorted(int(path.name) for path in (run.folder / "checkpoints").iterdir() if path.name.isdigit())
    assert steps == [5, 6]


def test_elites_score_what_the_journal_records(new_run, space):
    """The weights of an elite, expressed from the archive, have the scores of the journal."""
    run = new_run()
    state = run.evolve()
    lines = run.lines()
    genomes, _, ids = state.archives.best()
    evaluator = new_run.Evaluator()
    for k, identity in enumerate(ids.tolist()):
        genome = jax.tree.map(lambda x, k=k: jnp.asarray(x[k]), genomes)
        assert evaluator(space.express(genome), donate=True).scores == lines[identity]["scores"]


def test_the_aggregate_of_genomes_equals_that_of_task_vectors(space, new_run, assert_close):
    """Expressing the aggregated coefficients equals averaging the expressed weights with β, which sums to one."""
    state = new_run().evolve()
    genome, beta, _ = aggregate(state.archives)
    elites = state.archives.best()[0]
    models = [space.express(jax.tree.map(lambda x, k=k: x[k], elites)) for k in range(3)]
    b = np.asarray(beta, np.float64)
    want = jax.tree.map(lambda *x: sum(w * np.asarray(m, np.float64) for w, m in zip(b, x, strict=True)), *models)
    assert_close(space.express(genome), want, 2e-6)


def test_a_genome_that_is_not_the_recorded_one_is_refused(new_run, uninterrupted, assert_identical):
    run = new_run()
    run.evolve()
    path = run.folder / "history.jsonl"
    lines = lines_without_checksums(run.folder / "history.jsonl")
    assert len({line["digest"] for line in lines}) == INDIVIDUALS
    for identity in (0, 5):
        changed = [{**line, "digest": "0" * 16} if line["id"] == identity else line for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
        with pytest.raises(InputError, match=rf"expected the genome of individual {identity} to have digest \w+, got 0{{16}}"):
            run.evolve()
    old = [{name: value for name, value in line.items() if name != "digest"} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert_identical(run.evolve(), uninterrupted[0])  # a journal of a version without digests continues


# before any child, after two generations, and within the last one
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "at", [at if at in (3, 7, 10) else pytest.param(at, marks=pytest.mark.exhaustive) for at in range(3, INDIVIDUALS)]
)
def test_an_interrupt_writes_a_checkpoint_of_the_last_complete_generation(new_run, uninterrupted, assert_identical, at):
    seen = []

    def interrupt(weights):
        seen.append(weights)
        if len(seen) == at + 1:
            raise KeyboardInterrupt
        return False

    run = new_run()
    with pytest.raises(KeyboardInterrupt):
        run.evolve(new_run.Evaluator(broken=interrupt), every=100)
    steps = sorted(int(path.name) for path in (run.folder / "checkpoints").iterdir() if path.name.isdigit())
    assert steps == ([(at - 3) // BATCH] if at >= 3 + BATCH else [])
    assert len(run.lines()) == at
    rest = new_run.Evaluator()
    assert_identical(run.evolve(rest, every=100), uninterrupted[0])
    assert rest.calls == INDIVIDUALS - at
    assert run.lines() == uninterrupted[1]


def talking(new_run):
    """An evaluator whose replies are numbered by evaluation; it records the transcripts of relatives."""
    task = new_run.tasks[0]

    class Talks(new_run.Evaluator):
        def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()):
            seen.append([one[task][0][0][0] for one in relatives])
            found = super().__call__(params, split)
            outcomes = [dataclasses.replace(one, replies=((len(seen) - 1, 5),)) for one in found.outcomes[task]]
            return dataclasses.replace(found, outcomes={**found.outcomes, task: outcomes})

    seen = []
    return Talks(), seen


def test_children_get_the_transcripts_of_their_parents(new_run):
    run, without, tasks = new_run(), new_run("without"), new_run.tasks
    evaluator, seen = talking(new_run)
    transcripts = Transcripts(run.folder / "transcripts", "t")
    run.evolve(evaluator, transcripts=transcripts)
    lines = run.lines()
    for line, found in zip(lines, seen, strict=True):
        wanted = [] if line["expert"] else [*line["parents"], tasks.index(line["active"])]
        assert found == list(dict.fromkeys(wanted))
        assert transcripts.read(line["id"])[tasks[0]] == [[[line["id"], 5]]] * 2
    without.evolve(talking(new_run)[0])
    assert without.lines() == lines
    assert not (without.folder / "transcripts").exists()


@pytest.mark.parametrize("method", [PlainQD, lambda space: DominatedNovelty(space, population=4)], ids=["qd", "dns"])
def test_children_mutate_along_the_directions_of_experts_without_a_task(new_run, method):
    rng = np.random.default_rng(1)
    models = [{"w": jnp.asarray(rng.normal(size=(3, 4, 3)) * 0.5, jnp.float32)} for _ in range(5)]
    run = new_run(space=ExpertSpace.from_experts(models[0], models[1:]))
    evaluator, seen = talking(new_run)
    options = {"names": (*new_run.tasks, "other"), "transcripts": Transcripts(run.folder / "transcripts", "t")}
    run.evolve(evaluator, searcher=method(run.space), generations=8, **options)
    lines = run.lines()
    assert [line["expert"] for line in lines[:4]] == [*new_run.tasks, "other"]
    assert "other" in {line["active"] for line in lines[4:]}
    for line, found in zip(lines[4:], seen[4:], strict=True):
        assert found == list(dict.fromkeys([*line["parents"], options["names"].index(line["active"])]))


def test_transcripts_that_are_missing_change_nothing(new_run):
    run, whole = new_run(), new_run("whole")
    transcripts = Transcripts(run.folder / "transcripts", "t")
    run.evolve(talking(new_run)[0], generations=2, transcripts=transcripts)
    for path in (run.folder / "transcripts").iterdir():
        path.unlink()
    run.evolve(talking(new_run)[0], transcripts=transcripts)
    whole.evolve(talking(new_run)[0], transcripts=Transcripts(whole.folder / "transcripts", "t"))
    assert run.lines() == whole.lines()
