"""The evaluator of masks: the same contract as that of replies, populations, models that are not finite, and stopping."""

from __future__ import annotations

import dataclasses
import inspect
import threading
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.evaluation import (
    EvaluationCancelled,
    Evaluator,
    PopulationWorker,
    SegmentationEvaluator,
    SerialWorker,
    WorkerPool,
)
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.models.sam import predictor as predictor_module
from cycleqd_jax.models.sam.predictor import SamPredictor
from cycleqd_jax.types import InputError, ModelEvaluator, PredictedMasks, TokenCounts

from ..shapes import CONFIGS, CountedItems, ShapeTask, iou, random_params


class FakePredictor:
    """Masks of the first columns of an image: the individual's weight is their share; that of None is not finite."""

    def __init__(self):
        self.weights: Any = None
        self.donated, self.predicted, self.unloaded = [], 0, 0

    def load(self, params, *, donate):
        self.weights = params
        self.donated.append(donate)

    def unload(self):
        self.unloaded += 1

    def predict(self, items, count):
        for item in items:
            self.predicted += 1
            height, width = item.mask.shape
            weights = [self.weights[i] for i in range(count)]
            masks = [np.arange(width) < (0 if w is None else w) * width for w in weights]
            yield PredictedMasks(
                np.stack([np.broadcast_to(mask[None], (height, width)) for mask in masks]),
                np.asarray([w is not None for w in weights]),
            )


class SilentGenerator:
    """A generator of language models that has no replies."""

    def submit(self, conversation, messages, max_new_tokens, *, individual=0, drafts=()):
        pass

    def advance(self):
        return []

    def release(self, conversation):
        pass


def model(*weights):
    return [None if weight is None else np.asarray(weight) for weight in weights]


@pytest.fixture
def predictor():
    return FakePredictor()


@pytest.fixture
def tasks():
    return [ShapeTask("polyp", 5), ShapeTask("skin", 3, seed=9)]


@pytest.fixture
def evaluator(predictor, tasks):
    return SegmentationEvaluator(predictor, tasks)


def test_both_evaluators_have_one_contract(evaluator):
    language = Evaluator(lambda params, *, donate: None, SilentGenerator(), [])
    for one in (evaluator, language):
        assert isinstance(one, ModelEvaluator)
        for name in ("__call__", "population"):
            wanted = inspect.signature(getattr(ModelEvaluator, name)).parameters
            found = inspect.signature(getattr(type(one), name)).parameters
            assert [(p.name, p.kind, p.default) for p in found.values()] == [
                (p.name, p.kind, p.default) for p in wanted.values()
            ]


def test_items_and_their_means_are_the_scores(evaluator, tasks, predictor):
    evaluation = evaluator(model(0.6))
    for task in tasks:
        want = [iou(np.broadcast_to(np.arange(32) < 0.6 * 32, (24, 32)), item) for item in task.items("train")]
        assert evaluation.items[task.name] == pytest.approx(want)
        assert evaluation.scores[task.name] == pytest.approx(np.mean(want))
        assert [outcome.score.reason for outcome in evaluation.outcomes[task.name]] == [i.name for i in task.items("train")]
    assert (evaluation.error, evaluation.tokens, list(evaluation.seconds)) == (None, None, ["evaluate"])
    assert evaluation.transcript == {"polyp": [()] * 5, "skin": [()] * 3}
    assert evaluator(model(0.6), "test").items != evaluation.items
    assert evaluator(model(0.6), donate=True).scores == evaluation.scores
    assert predictor.donated == [False, False, True]
    evaluator.unload()
    assert predictor.unloaded == 1


def test_sizes(predictor, tasks):
    evaluator = SegmentationEvaluator(predictor, tasks, sizes={"polyp": {"train": 2, "test": None}})
    assert {name: len(items) for name, items in evaluator(model(0.5)).items.items()} == {"polyp": 2, "skin": 3}
    assert {name: len(items) for name, items in evaluator(model(0.5), "test").items.items()} == {"polyp": 5, "skin": 3}


def test_a_split_without_items_is_refused(predictor, tasks):
    evaluator = SegmentationEvaluator(predictor, tasks, sizes={"skin": {"validation": 0}})
    with pytest.raises(InputError, match="at least one item to evaluate, got none in split 'validation' of task 'skin'"):
        evaluator(model(0.5), "validation")


class DiskTask(ShapeTask):
    """A task whose items are counted when they are read."""

    def __init__(self, name, count):
        super().__init__(name, count)
        self.train = CountedItems(super().items("train"))
        self.reads = self.train.reads

    def items(self, split):
        return self.train


@pytest.mark.parametrize(("kept", "again"), [(5, 0), (3, 2), (0, 5)])
def test_items_are_kept_up_to_a_limit(predictor, kept, again):
    task = DiskTask("polyp", 5)
    evaluator = SegmentationEvaluator(predictor, [task], cache_bytes=kept * 24 * 32 * 4)
    first = evaluator(model(0.6))
    assert task.reads == [f"polyp train {i}" for i in range(5)]
    assert evaluator(model(0.6)).items == first.items
    assert len(task.reads) == 5 + again


def test_an_evaluator_of_some_tasks_shares_the_limit(predictor):
    tasks = [DiskTask("polyp", 5), DiskTask("skin", 5)]
    whole = SegmentationEvaluator(predictor, tasks, cache_bytes=3 * 24 * 32 * 4)
    part = whole.only(["skin"])
    for evaluator in (part, whole, part, whole):
        evaluator(model(0.6))
    assert [len(task.reads) for task in tasks] == [2 * 5, 4 * 5 - 3 * 3]  # three items of skin are kept, and no others


def test_items_are_read_when_the_predictor_needs_them(predictor, monkeypatch):
    stop, task = threading.Event(), DiskTask("polyp", 300)
    monkeypatch.setattr(task, "score", lambda mask, item: stop.set() or iou(mask, item))
    evaluator = SegmentationEvaluator(predictor, [task])
    with pytest.raises(EvaluationCancelled):
        evaluator(model(0.5), stop=stop)
    assert len(task.reads) < 100


def test_a_population_equals_its_individuals(evaluator):
    weights = [0.2, 0.9, 0.5]
    together = evaluator.population(model(*weights), 3)
    assert [evaluation.items for evaluation in together] == [evaluator(model(w)).items for w in weights]
    assert [evaluation.items for evaluation in evaluator.population(model(*weights), 2)] == [e.items for e in together[:2]]


@pytest.mark.parametrize("broken", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_broken_individuals_are_quarantined(evaluator, predictor, broken):
    weights = [None if i in broken else 0.3 * i for i in range(3)]
    for i, evaluation in enumerate(evaluator.population(model(*weights), 3)):
        if i in broken:
            assert (evaluation.scores, evaluation.items) == (None, {})
            assert evaluation.error == "the weights or the logits for 'polyp train 0' of task 'polyp' are not finite"
        else:
            assert evaluation.items == evaluator(model(weights[i])).items
    if broken == (0, 1, 2):
        assert predictor.predicted == 1


def test_stop_abandons_the_model(evaluator, predictor, tasks, monkeypatch):
    stop = threading.Event()
    stop.set()
    with pytest.raises(EvaluationCancelled):
        evaluator(model(0.5), stop=stop)
    stop.clear()
    score = tasks[0].score
    monkeypatch.setattr(tasks[0], "score", lambda mask, item: stop.set() or score(mask, item))
    with pytest.raises(EvaluationCancelled):
        SegmentationEvaluator(predictor, [ShapeTask("other", 2), tasks[0], ShapeTask("many", 300)])(model(0.5), stop=stop)
    stop.clear()
    assert evaluator(model(0.5)).error is None  # ready for the next


def test_an_error_of_a_task_is_raised(evaluator, tasks, monkeypatch):
    def fail(mask, item):
        raise OSError("disk")

    monkeypatch.setattr(tasks[1], "score", fail)
    with pytest.raises(OSError, match="disk"):
        evaluator(model(0.5))


@pytest.mark.exhaustive
def test_workers_evaluate_genomes_of_segment_anything(tasks, monkeypatch):
    """One by one and together, with the encoder of the base, which no expert changes."""
    config = CONFIGS["tiny_vit"]
    base = random_params("tiny_vit")
    experts = [{**base, "decoder": random_params("tiny_vit", seed)["decoder"]} for seed in (1, 2)]
    calls, encode = [], predictor_module._encode
    monkeypatch.setattr(predictor_module, "_encode", lambda *args: calls.append(0) or encode(*args))
    space = ExpertSpace.from_experts(base, experts, rank=2)
    predictor = SamPredictor(config, encoder=base["vision"])
    evaluator = SegmentationEvaluator(predictor, tasks)
    child = space.crossover(space.expert(0), space.expert(1), jnp.ones(2))
    broken = child._replace(mixing=child.mixing * jnp.nan)
    genomes = [space.expert(0), child, broken]
    results: dict[int, Any] = {}
    serial = WorkerPool([SerialWorker(space.express, evaluator)])
    serial([[genome] for genome in genomes], lambda i, found: results.update({i: found[0]}))
    population = PopulationWorker(lambda stacked: space.express_population(stacked, share=True), evaluator, 4)
    together = population(genomes, threading.Event())
    for i, one in enumerate(together[:2]):
        assert one.scores == pytest.approx(results[i].scores, abs=1e-3)
        assert set(one.seconds) == {"express", "evaluate"}
    assert all(abs(together[0].scores[task.name] - together[1].scores[task.name]) > 0.01 for task in tasks)
    assert len(calls) == 2  # eight images in batches of four, once for all
    assert together[2].error is not None
    assert together[2].error == results[2].error


def test_masks_of_any_items_without_scores(evaluator, tasks):
    items = tasks[0].items("test")
    found = evaluator.masks(model(0.5), items)
    assert [mask.mean() for mask in found] == [0.5] * len(items)


def test_what_the_predictor_counts_is_in_the_evaluations(predictor, tasks):
    counts = [TokenCounts(computed=8, attended=8), TokenCounts(computed=8)]
    evaluator = SegmentationEvaluator(predictor, tasks, usage=lambda: counts)
    found = evaluator.population(model(0.1, 0.2), 2)
    assert [one.tokens for one in found] == [dataclasses.asdict(one) for one in counts]


def test_the_predictor_is_shrunk_where_memory_runs_out(predictor, tasks):
    shrunk = []
    evaluator = SegmentationEvaluator(predictor, tasks, shrink=lambda: shrunk.append(1) is None)
    assert evaluator.shrink()
    assert shrunk == [1]
    assert not SegmentationEvaluator(predictor, tasks).shrink()
