"""Some problems of a split, with the engine: their scores are those of an evaluation of all problems."""

from __future__ import annotations

import zlib

import jax
import pytest

from cycleqd_jax.engine import ChatGenerator, Engine, TextScorer
from cycleqd_jax.evaluation import Evaluator
from cycleqd_jax.models import llama
from cycleqd_jax.types import ItemEvaluator, Outcome, Question, Score

from ..engine.conftest import few_programs, tokenizer
from .test_evaluator import Guess, GuessTask

__all__ = ["few_programs", "tokenizer"]


class Replied(Guess):
    """The score is a number that the last reply determines."""

    def step(self, reply):
        self.left -= 1
        text = [{"role": "assistant", "content": reply}, {"role": "user", "content": "again"}]
        return text if self.left else Score(zlib.crc32(reply.encode()) / 2**32)


class RepliedTask(GuessTask):
    def episodes(self, split):
        return [Replied(self, i + 10 * (split == "test")) for i in range(self.count)]


class ChoiceTask(RepliedTask):
    """The score is the probability of the first choice."""

    def questions(self, split):
        return [Question(f"{split} {i}", (" a", " b"), 0) for i in range(self.count)]

    def outcome(self, question, likelihoods):
        first, second = (one.logprob for one in likelihoods)
        return Outcome(Score(round(1 / (1 + 2.718 ** (second - first)), 3)), (), 0, 1)


@pytest.mark.usefixtures("few_programs")
def test_the_scores_of_some_problems_and_of_the_rest_are_those_of_all(tokenizer):
    config = llama.LlamaConfig(tokenizer.vocab_size, 32, 64, 1, 2, 1, 16, max_position_embeddings=64, initializer_range=0.4)
    engine = Engine(config, slots=4, max_len=64, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    tasks = [RepliedTask("short", count=6), RepliedTask("long", turns=2, count=5), ChoiceTask("chosen", count=4)]
    evaluator = Evaluator(
        engine.load,
        ChatGenerator(engine, tokenizer),
        tasks,
        scorer=TextScorer(engine, tokenizer.transformers_tokenizer),
        usage=engine.usage,
        sizes={"short": {"train": 5, "test": None}},
    )
    assert isinstance(evaluator, ItemEvaluator)
    assert evaluator.sizes("train") == {"short": 5, "long": 5, "chosen": 4}
    assert evaluator.sizes("test")["short"] == 6
    params = llama.init_params(config, jax.random.key(0))
    whole = evaluator(params)
    assert len({*whole.items["short"]}) > 2  # the replies differ
    evaluator.load(params)
    spent = 0
    for chosen in (
        {"short": [3, 0], "long": [4], "chosen": [2, 1]},
        {"short": [1, 2, 4], "long": [0, 1, 2, 3], "chosen": [0, 3]},
    ):
        found = evaluator.score({0: chosen})[0]
        assert found.error is None
        for task, places in chosen.items():
            assert found.items[task] == [whole.items[task][place] for place in places]
            assert [one.replies for one in found.outcomes[task]] == [whole.outcomes[task][place].replies for place in places]
        assert found.tokens["generated"] > spent
        spent = found.tokens["generated"]
    assert spent == whole.tokens["generated"]
    assert evaluator.score({0: {"long": [2]}})[0].items == {"short": [], "long": [whole.items["long"][2]], "chosen": []}
