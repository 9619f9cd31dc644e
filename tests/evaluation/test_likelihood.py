"""Tasks that are scored by log-likelihoods, beside tasks that are played."""

from __future__ import annotations

import threading

import pytest

from cycleqd_jax.evaluation import EvaluationCancelled, Evaluator
from cycleqd_jax.evaluation import evaluator as module
from cycleqd_jax.types import InputError, Likelihood, NonFiniteError, Outcome, Question, Score

from .test_evaluator import FakeGenerator, GuessTask, model


class ChoiceOfTwo(GuessTask):
    """Question n is right with weights above n / 10."""

    def questions(self, split):
        return [Question(f"{split} {n}", (" a", " b"), 0) for n in range(self.count)]

    def outcome(self, question, likelihoods):
        first, second = likelihoods
        return Outcome(Score(float(first.logprob > second.logprob)), (), 0, 1)


class FakeScorer:
    """The first choice has the weight of the individual as log-likelihood, the second a tenth of the question's number."""

    def __init__(self, generator):
        self.generator, self.calls = generator, []

    def score(self, pairs, *, individual=0):
        self.calls.append(len(pairs))
        weight = self.generator.weights[individual]
        if weight is None:
            raise NonFiniteError(f"individual {individual} overflows", individual)
        if weight > 5:
            raise InputError("expected a continuation of at most 4 tokens, got 9; shorten it")
        return [Likelihood(float(weight) if c == " a" else int(q.split()[1]) / 10, 1, True) for q, c in pairs]


@pytest.fixture
def parts():
    generator = FakeGenerator()
    return generator, FakeScorer(generator), [GuessTask("played"), ChoiceOfTwo("chosen", count=4)]


def test_both_kinds_of_tasks(parts):
    generator, scorer, tasks = parts
    evaluator = Evaluator(generator.load, generator, tasks, scorer=scorer, sizes={"chosen": {"train": 3, "test": None}})
    first, broken, third = evaluator.population(model(0.15, None, 0.05), 3)
    assert first.items["played"] == pytest.approx([0.15, 0.16, 0.17])
    assert first.items["chosen"] == [1.0, 1.0, 0.0]
    assert third.items["chosen"] == [1.0, 0.0, 0.0]
    assert broken.error is not None
    assert evaluator(model(0.15), "test").items["chosen"] == [1.0, 1.0, 0.0, 0.0]


def test_likelihood_tasks_alone(parts, monkeypatch):
    generator, scorer, tasks = parts
    monkeypatch.setattr(module, "QUESTIONS", 3)
    evaluator = Evaluator(generator.load, generator, tasks, scorer=scorer).only(["chosen"])
    assert evaluator(model(0.15)).scores == {"chosen": 0.5}
    assert scorer.calls == [6, 2]
    assert evaluator(model(None)).error == "individual 0 overflows"
    with pytest.raises(InputError, match=r"^expected a continuation of at most 4 tokens.* in task 'chosen'; "):
        evaluator(model(9.0))
    stop = threading.Event()
    stop.set()
    with pytest.raises(EvaluationCancelled):
        evaluator(model(0.15), stop=stop)
    with pytest.raises(InputError, match="a scorer for task 'chosen', which is scored by log-likelihoods, got none"):
        Evaluator(generator.load, generator, tasks).only(["chosen"])(model(0.15))
