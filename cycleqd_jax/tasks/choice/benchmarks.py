"""Multiple-choice benchmarks, in the formats of their authors and of the hub."""

from __future__ import annotations

from collections.abc import Sequence

from cycleqd_jax.tasks.choice.base import ChoiceTask, question
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.types import Question

__all__ = ["Arc", "BoolQ", "CommonsenseQA", "HellaSwag", "Mmlu"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Arc(ChoiceTask):
    """ARC (https://arxiv.org/abs/1803.05457): the choices are the texts of the answers. Labels may be letters or numbers."""

    def parse(self, row: Row) -> Question:
        """Parses a record of AI2's files (``question.stem``, ``question.choices``) or of the hub."""
        stem, texts, labels = _stem_and_choices(row)
        return question(row, f"Question: {stem}\nAnswer:", texts, row.text("answerKey"), labels)


class CommonsenseQA(ChoiceTask):
    """CommonsenseQA (https://arxiv.org/abs/1811.00937): the question lists the answers, and the choices are their letters."""

    def parse(self, row: Row) -> Question:
        """Parses a record of the authors' files or of the hub."""
        stem, texts, labels = _stem_and_choices(row)
        return _lettered(row, f"Question: {stem.strip()}", texts, row.text("answerKey"), labels)


class Mmlu(ChoiceTask):
    """MMLU (https://arxiv.org/abs/2009.03300): the question lists the answers, and the choices are their letters.

    Unlike lm-evaluation-harness, no sentence about the subject stands before the questions: one file may have many subjects.
    """

    def parse(self, row: Row) -> Question:
        """Parses a record of the hub: ``question``, ``choices`` and the index or the letter ``answer``."""
        texts = row.texts("choices")
        answer: object = row.fields.get("answer")
        letters = list(LETTERS[: len(texts)])
        if isinstance(answer, int) and not isinstance(answer, bool):
            answer = letters[answer] if 0 <= answer < len(letters) else answer
        return _lettered(row, row.text("question").strip(), texts, answer, letters)


class BoolQ(ChoiceTask):
    """BoolQ (https://arxiv.org/abs/1905.10044): a passage, a question, and the choices no and yes."""

    def parse(self, row: Row) -> Question:
        """Parses a record with the ``label`` true or false, as a text or not, or with the hub's ``answer``."""
        given: object = row.fields.get("label", row.fields.get("answer"))
        label = str(given).lower() if isinstance(given, str | bool) else {"0": "false", "1": "true"}.get(repr(given), given)
        context = f"{row.text('passage')}\nQuestion: {row.text('question')}?\nAnswer:"
        return question(row, context, ("no", "yes"), label, ("false", "true"))


class HellaSwag(ChoiceTask):
    """HellaSwag (https://arxiv.org/abs/1905.07830): the choices are the ends of a story. ``acc_norm`` is the usual metric."""

    def parse(self, row: Row) -> Question:
        """Parses a record with ``context``, ``endings`` and the index ``label`` (a number, or its digits).

        The text is taken as it is: the marks of the raw WikiHow records, such as ``[title]``, must be removed before.
        """
        endings = row.texts("endings")
        given: object = row.fields.get("label")
        label = int(given) if isinstance(given, str) and given.isdecimal() else given
        return question(row, row.text("context"), endings, label, range(len(endings)))


def _stem_and_choices(row: Row) -> tuple[str, tuple[str, ...], list[str]]:
    """The question, the texts and the labels of the choices of ARC and CommonsenseQA."""
    if isinstance(row.fields.get("question"), str):  # of the hub
        labels = row.get("choices/label", list)
        return row.text("question"), row.texts("choices/text"), [str(label) for label in labels]
    choices = row.get("question/choices", list)
    for choice in choices:
        if not (isinstance(choice, dict) and isinstance(choice.get("text"), str) and isinstance(choice.get("label"), str)):
            raise row.error("choices with a text and a label", repr(choice))
    return row.text("question/stem"), tuple(choice["text"] for choice in choices), [choice["label"] for choice in choices]


def _lettered(row: Row, stem: str, texts: Sequence[str], answer: object, labels: Sequence[str]) -> Question:
    """A question that lists its choices, whose answers are letters."""
    checked = question(row, stem, texts, answer, labels)
    if len(texts) > len(LETTERS):
        raise row.error(f"at most {len(LETTERS)} choices, one for each letter", f"{len(texts)} choices")
    letters = LETTERS[: len(texts)]
    lines = "\n".join(f"{letter}. {text.strip()}" for letter, text in zip(letters, texts, strict=True))
    return Question(f"{stem}\n{lines}\nAnswer:", tuple(f" {letter}" for letter in letters), checked.answer)
