"""The base class of multiple-choice tasks: the choice with the largest log-likelihood is the answer."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from cycleqd_jax.tasks.base import RecordTask, Solution, clean_text, fixed_replies
from cycleqd_jax.tasks.memo import Environment
from cycleqd_jax.tasks.one_reply import OneReplyEpisode
from cycleqd_jax.tasks.options import TaskOptions
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.tasks.shots import preamble
from cycleqd_jax.types import Likelihood, Message, Outcome, Question, Score, Split

__all__ = ["ChoiceTask", "chosen", "question"]


class ChoiceTask(RecordTask[Question]):
    """A :class:`~cycleqd_jax.types.LikelihoodTask`: a model is scored by the log-likelihoods of the choices.

    The model generates nothing. ``acc`` is 1 where the right choice has the largest log-likelihood, and ``acc_norm`` where it
    has the largest log-likelihood per character, without the space before it. Of equal ones the first is chosen. Both are in
    the reason of the score.

    The episodes ask the same question in a conversation, and expect the right choice as the reply. Demonstrations for
    fine-tuning are made of them.

    A subclass gives :meth:`parse`.
    """

    def __init__(
        self,
        options: TaskOptions,
        *,
        metric: Literal["acc", "acc_norm"] = "acc",
        shots: int | None = None,
        shots_file: str | Path | None = None,
    ) -> None:
        """Reads and checks all records.

        Args:
            options: the options that all tasks share.
            metric: the score of a question.
            shots: the number of solved questions before each question.
            shots_file: the file of which they are the first records.

        Raises:
            InputError: a file is missing or empty, a record is malformed, or a solved question is a question of the task.
        """
        self.metric = metric
        super().__init__(options)
        self.preamble = preamble(self, shots, shots_file, _solved)

    @abc.abstractmethod
    def parse(self, row: Row) -> Question:
        """Parses a row into a question without solved ones before it; :func:`question` checks it."""

    def settings(self) -> dict[str, Any]:
        """Everything besides the records that affects prompts or verdicts."""
        return {"metric": self.metric, "preamble": self.preamble}

    def questions(self, split: Split) -> Sequence[Question]:
        """A question for each problem of the split, with the solved ones before it."""
        return [Question(self.preamble + one.context, one.choices, one.answer) for one in self.records[split]]

    def outcome(self, question: Question, likelihoods: Sequence[Likelihood]) -> Outcome:
        """The score of a question."""
        plain, per_character = chosen(question, likelihoods)
        values = {"acc": float(plain == question.answer), "acc_norm": float(per_character == question.answer)}
        best = plain if self.metric == "acc" else per_character
        reason = f"acc {values['acc']:.0f}, acc_norm {values['acc_norm']:.0f}"
        messages: tuple[Message, ...] = (
            {"role": "user", "content": question.context},
            {"role": "assistant", "content": question.choices[best].strip()},
        )
        dropped = max(one.dropped for one in likelihoods)
        return Outcome(Score(values[self.metric], reason), messages, tokens=0, rounds=1, dropped=dropped)

    def environment(self, record: Question) -> Environment:
        """A fresh episode of a question."""
        return ChoiceEpisode(self.preamble, record)

    def solutions(self, record: Question) -> Iterable[Solution]:
        """The right choice."""
        yield fixed_replies(record.choices[record.answer].strip())


class ChoiceEpisode(OneReplyEpisode):
    """A question in a conversation: the reply must be the right choice."""

    def __init__(self, before: str, record: Question) -> None:
        super().__init__()
        self._before = before
        self._record = record

    def question(self) -> str:
        """The question, after the solved ones."""
        return self._before + self._record.context

    def step(self, reply: str) -> Score:
        """Compares the reply with the right choice."""
        wanted = self._record.choices[self._record.answer].strip()
        return Score(1.0, "right") if clean_text(reply).strip() == wanted else Score(0.0, "another answer")


def chosen(question: Question, likelihoods: Sequence[Likelihood]) -> tuple[int, int]:
    """The choices with the largest log-likelihood, and with the largest per character; of equal ones the first."""
    plain = [one.logprob for one in likelihoods]
    lengths = [len(choice.removeprefix(" ")) for choice in question.choices]
    per_character = [value / length for value, length in zip(plain, lengths, strict=True)]
    return plain.index(max(plain)), per_character.index(max(per_character))


def question(row: Row, context: str, choices: Sequence[str], answer: object, labels: Sequence[object]) -> Question:
    """A question, checked.

    Args:
        row: the record.
        context: the text of the question.
        choices: the choices.
        answer: the label of the right choice.
        labels: the labels of all choices.

    Raises:
        InputError: there are fewer than two choices, two have the same label, a choice is blank, or the answer is not a label.
    """
    if len(choices) < 2 or len(labels) != len(choices):
        raise row.error("at least two choices, and a label for each", f"{len(choices)} choices and {len(labels)} labels")
    if len({*labels}) < len(labels):
        raise row.error("a label of its own for each choice", ", ".join(map(str, labels)))
    if not all(choice.strip() for choice in choices):
        raise row.error("choices that are not blank", repr(list(choices)))
    if isinstance(answer, bool) or answer not in labels:  # true equals 1 in Python
        raise row.error(f"one of the labels {', '.join(map(str, labels))} as the answer", repr(answer))
    return Question(context, tuple(f" {choice}" for choice in choices), list(labels).index(answer))


def _solved(one: Question) -> str:
    return one.context + one.choices[one.answer]
