"""The evaluator: scores, populations, models without finite logits, and stopping."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from cycleqd_jax.evaluation import EvaluationCancelled, Evaluator
from cycleqd_jax.types import InputError, NonFiniteError, Reply, Score, TokenCounts


class Guess:
    """An episode of ``turns`` turns whose score is the last reply; its problem is a number."""

    def __init__(self, task, number):
        self.task, self.number, self.left = task, number, task.turns
        self.closed = 0

    def start(self):
        return [{"role": "user", "content": f"{self.task.name} {self.number}"}]

    def step(self, reply):
        self.left -= 1
        return [{"role": "user", "content": "again"}] if self.left else Score(float(reply))

    def close(self):
        self.closed += 1


class GuessTask:
    def __init__(self, name, turns=1, count=3):
        self.name, self.turns, self.count, self.max_new_tokens = name, turns, count, 7
        self.made = []

    def episodes(self, split):
        self.made = [Guess(self, i + 10 * (split == "test")) for i in range(self.count)]
        return self.made

    def demonstrations(self, split):
        return []


def model(*weights):
    """One weight for each individual; the logits of None are not finite."""
    return [None if weight is None else np.asarray(weight) for weight in weights]


class FakeGenerator:
    """Replies ``weights[individual] + number / 100``: one reply per call of ``advance``, or none while it ``hangs``."""

    def __init__(self, hangs=False):
        self.weights, self.queue, self.calls, self.hangs, self.refuses = None, {}, 0, hangs, None
        self.donated = []

    def load(self, params, *, donate):
        self.weights = params
        self.queue = {}
        self.donated.append(donate)

    def submit(self, conversation, messages, max_new_tokens, *, individual=0):
        assert max_new_tokens == 7
        self.queue[conversation] = (individual, messages)

    def advance(self):
        self.calls += 1
        if self.hangs:
            time.sleep(0.001)
            return []
        key = next(iter(self.queue))
        individual, messages = self.queue.pop(key)
        if self.weights[individual] is None:
            self.queue = {}
            raise NonFiniteError(f"individual {individual} overflows", individual)
        number = int(messages[0]["content"].split()[1])
        finish = "refused" if messages[0]["content"] == self.refuses else "stop"
        return [(key, Reply(str(self.weights[individual] + number / 100), 1, finish))]

    def release(self, conversation):
        self.queue.pop(conversation, None)


@pytest.fixture
def generator():
    return FakeGenerator()


@pytest.fixture
def evaluator(generator):
    return Evaluator(generator.load, generator, [GuessTask("short"), GuessTask("long", turns=2)])


def test_scores_of_one_model(evaluator, generator):
    evaluation = evaluator(model(0.25))
    assert evaluation.items == {"short": [0.25, 0.26, 0.27], "long": [0.25, 0.26, 0.27]}
    assert evaluation.scores == pytest.approx({"short": 0.26, "long": 0.26})
    assert [outcome.rounds for outcome in evaluation.outcomes["long"]] == [2, 2, 2]
    assert evaluation.error is None
    assert evaluator(model(0.25), "test").items["short"] == [0.35, 0.36, 0.37]
    assert evaluator(model(0.25), donate=True).scores == evaluation.scores
    assert generator.donated == [False, False, True]


def test_tokens_are_those_of_the_weights(generator):
    usage = [TokenCounts(7, 2, 8, 30), TokenCounts(9, 3, 11, 60)]
    evaluator = Evaluator(generator.load, generator, [GuessTask("short")], usage=lambda: usage)
    one, quarantined = evaluator.population(model(0.25, None), 2)
    assert one.tokens == {"prompt": 7, "generated": 2, "computed": 8, "attended": 30}
    assert quarantined.tokens == {"prompt": 9, "generated": 3, "computed": 11, "attended": 60}
    assert evaluator(model(0.25)).tokens == one.tokens


def test_sizes(generator):
    tasks = [GuessTask("short"), GuessTask("long")]
    evaluator = Evaluator(generator.load, generator, tasks, sizes={"short": {"train": 1, "test": None}})
    assert {name: len(items) for name, items in evaluator(model(0.5)).items.items()} == {"short": 1, "long": 3}
    assert {name: len(items) for name, items in evaluator(model(0.5), "test").items.items()} == {"short": 3, "long": 3}


def test_a_population_equals_its_individuals(evaluator):
    weights = [0.1, 0.5, 0.3]
    together = evaluator.population(model(*weights), 3)
    assert [evaluation.items for evaluation in together] == [evaluator(model(w)).items for w in weights]
    assert len({id(evaluation.seconds) for evaluation in together}) == 1
    assert [evaluation.items for evaluation in evaluator.population(model(*weights), 2)] == [e.items for e in together[:2]]


@pytest.mark.parametrize("broken", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_broken_individuals_of_a_population_are_quarantined(evaluator, broken):
    weights = [None if i in broken else 0.1 * i for i in range(3)]
    for i, evaluation in enumerate(evaluator.population(model(*weights), 3)):
        if i in broken:
            assert (evaluation.scores, evaluation.items, evaluation.error) == (None, {}, f"individual {i} overflows")
        else:
            assert evaluation.items == evaluator(model(weights[i])).items


def test_a_model_without_finite_logits_is_quarantined(evaluator):
    evaluation = evaluator(model(None))
    assert (evaluation.scores, evaluation.items, evaluation.error) == (None, {}, "individual 0 overflows")


def test_the_error_names_prompts_that_do_not_fit(evaluator, generator):
    generator.refuses = "long 2"
    with pytest.raises(InputError, match=r"got 1 longer prompts, the first in task 'long'; raise engine\.max_len$"):
        evaluator(model(0.5))


@pytest.mark.parametrize("early", [False, True])
def test_stop_abandons_the_model(early):
    generator, task, stop = FakeGenerator(hangs=True), GuessTask("short"), threading.Event()
    evaluator = Evaluator(generator.load, generator, [task])
    if early:
        stop.set()
    else:
        threading.Timer(0.05, stop.set).start()
    with pytest.raises(EvaluationCancelled):
        evaluator(model(0.5), stop=stop)
    assert (generator.calls > 0) is not early
    assert all(episode.closed for episode in task.made)
    generator.hangs = False
    assert evaluator(model(0.5)).error is None  # ready for the next


def test_replies_of_relatives_reach_the_generator_by_task_and_episode(generator):
    submit, given = generator.submit, []

    def record(conversation, messages, max_new_tokens, *, individual=0, drafts=()):
        given.append((individual, messages[0]["content"], drafts))
        submit(conversation, messages, max_new_tokens, individual=individual)

    generator.submit = record
    evaluator = Evaluator(generator.load, generator, [GuessTask("short")])
    transcript = {"short": [[[1, 2]], [], [[3]]], "other": [[[9]]]}
    first, second = evaluator.population(model(0.25, 0.5), 2, relatives=[[transcript, {}], []])
    assert first.transcript == {"short": [(), (), ()]}
    assert [second.error, first.error] == [None, None]
    assert [drafts for individual, _, drafts in given if individual == 0] == [[[1, 2]], (), [[3]]]
    assert [drafts for individual, _, drafts in given if individual == 1] == [(), (), ()]
