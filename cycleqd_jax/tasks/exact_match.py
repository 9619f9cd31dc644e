"""Tasks whose replies are compared with one answer: GSM8K and BIG-Bench Hard."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from cycleqd_jax.tasks.base import RecordTask, Solution, clean_text, fixed_replies
from cycleqd_jax.tasks.memo import Environment
from cycleqd_jax.tasks.one_reply import OneReplyEpisode
from cycleqd_jax.tasks.options import TaskOptions
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.tasks.shots import preamble
from cycleqd_jax.types import Score

__all__ = ["Bbh", "ExactMatchRecord", "ExactMatchTask", "Gsm8k", "last_number", "marked_number", "stated_answer"]


@dataclasses.dataclass(frozen=True)
class ExactMatchRecord:
    """One problem.

    Attributes:
        prompt: the question.
        solution: a reply that is right.
        answer: the answer.
    """

    prompt: str
    solution: str
    answer: str


class ExactMatchTask(RecordTask[ExactMatchRecord]):
    """A task whose replies hold one answer. A subclass gives :meth:`parse`, :meth:`extract` and :meth:`settings`."""

    def __init__(self, options: TaskOptions, *, shots: int | None = None, shots_file: str | Path | None = None) -> None:
        """Reads and checks all records.

        Args:
            options: the options that all tasks share.
            shots: the number of solved problems before each problem.
            shots_file: the file of which they are the first records.

        Raises:
            InputError: a file is missing or empty, a record is malformed, or a solved problem is a problem of the task.
        """
        super().__init__(options)
        self.preamble = preamble(self, shots, shots_file, _solved)

    @abc.abstractmethod
    def extract(self, record: ExactMatchRecord, reply: str) -> str | None:
        """The answer in a reply, in the form of the record's; None if there is none."""

    def settings(self) -> dict[str, Any]:
        """Everything besides the records that affects prompts or verdicts."""
        return {"preamble": self.preamble}

    def environment(self, record: ExactMatchRecord) -> Environment:
        """A fresh episode of a problem."""
        return ExactMatchEpisode(self, record)

    def solutions(self, record: ExactMatchRecord) -> Iterable[Solution]:
        """The solution of the record."""
        yield fixed_replies(record.solution)


class ExactMatchEpisode(OneReplyEpisode):
    """One problem: a question, a reply, a comparison."""

    def __init__(self, task: ExactMatchTask, record: ExactMatchRecord) -> None:
        super().__init__()
        self._task = task
        self._record = record

    def question(self) -> str:
        """The question, after the solved ones."""
        return self._task.preamble + self._record.prompt

    def step(self, reply: str) -> Score:
        """Compares the answer in the reply with the record's."""
        found = self._task.extract(self._record, clean_text(reply))
        if found is None:
            return Score(0.0, "no answer")
        return Score(1.0, "right") if found == self._record.answer else Score(0.0, f"another answer: {found[:80]}")


class Gsm8k(ExactMatchTask):
    """GSM8K (https://arxiv.org/abs/2110.14168): word problems whose answers are numbers.

    The numbers are found as in lm-evaluation-harness, and compared as texts, without commas, dollar signs and a last period.
    """

    def __init__(self, options: TaskOptions, *, extraction: Literal["flexible", "strict"] = "flexible", **shots: Any) -> None:
        """Reads and checks all records.

        Args:
            options: the options that all tasks share.
            extraction: ``"strict"`` takes the number after the first ``####``, ``"flexible"`` the last number of the reply.
            **shots: see :class:`ExactMatchTask`.

        Raises:
            InputError: see :class:`ExactMatchTask`.
        """
        self.extraction = extraction
        super().__init__(options, **shots)

    def settings(self) -> dict[str, Any]:
        """Everything besides the records that affects prompts or verdicts."""
        return {**super().settings(), "extraction": self.extraction}

    def parse(self, row: Row) -> ExactMatchRecord:
        """Parses a record of OpenAI's files: ``question``, and ``answer`` that ends with ``#### number``."""
        solution = row.text("answer")
        answer = marked_number(solution)
        if answer is None or not re.search("[0-9]", answer):
            raise row.error("an answer that ends with '#### number'", repr(solution[-40:]))
        return ExactMatchRecord(f"Question: {row.text('question')}\nAnswer:", solution, answer)

    def extract(self, record: ExactMatchRecord, reply: str) -> str | None:
        """The number in a reply, up to the next ``Question:``, where lm-evaluation-harness stops."""
        reply = reply.partition("Question:")[0]
        return marked_number(reply) if self.extraction == "strict" else last_number(reply)


class Bbh(ExactMatchTask):
    """BIG-Bench Hard (https://arxiv.org/abs/2210.09261): 27 kinds of problems with short answers.

    The answer of a reply is what follows the last ``answer is``, or else its last line. Case, spaces, a last period and marks
    of emphasis do not count. For an answer in the form ``(A)`` the letter counts.
    """

    def parse(self, row: Row) -> ExactMatchRecord:
        """Parses a record: ``input`` and ``target``."""
        target = row.text("target")
        if not _plain(target):
            raise row.error("a target that is not blank", repr(target))
        answer = _plain(target)  # of a letter, with its brackets
        return ExactMatchRecord(f"Q: {row.text('input')}\nA:", f"So the answer is {target.strip()}.", answer)

    def extract(self, record: ExactMatchRecord, reply: str) -> str | None:
        """The answer in a reply, up to a line that begins with ``Q:``: there a model without a chat template asks on."""
        found = stated_answer(_NEXT_QUESTION.split(reply, maxsplit=1)[0])
        if found is None:
            return None
        return (_letter(found) or _plain(found)) if _LETTER_TARGET.fullmatch(record.answer) else _plain(found)


_NEXT_QUESTION = re.compile(r"^Q:", re.MULTILINE)
_LETTER_TARGET = re.compile(r"\([a-z]\)")


def marked_number(text: str) -> str | None:
    """The number after the first ``####``; None if there is none.

    >>> from cycleqd_jax.tasks.exact_match import marked_number
    >>> marked_number("So it is 4. #### 1,004.")
    '1004'
    """
    found = re.search(r"#### (-?[0-9.,]+)", text)
    return None if found is None else _number(found[1])


def last_number(text: str) -> str | None:
    """The last number of a text; None if there is none.

    >>> from cycleqd_jax.tasks.exact_match import last_number
    >>> last_number("It costs $1,200. Or -3?")
    '-3'
    """
    found = [*re.finditer(r"-?[$0-9.,]{2,}|-?[0-9]+", text)]
    return _number(found[-1][0]) if found else None


def stated_answer(text: str) -> str | None:
    """What follows the last ``answer is`` of a reply, up to the end of its line, or else the last line that is not blank.

    >>> from cycleqd_jax.tasks.exact_match import stated_answer
    >>> stated_answer("False or True. So the answer is True.")
    'True.'
    """
    last = re.split(r"answer is:?", text, flags=re.IGNORECASE)[1:][-1:]
    if last and last[0].strip():
        return last[0].strip().splitlines()[0].strip()
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else None


def _number(text: str) -> str:
    return text.replace(",", "").replace("$", "").removesuffix(".")


def _plain(text: str) -> str:
    return " ".join(text.strip().strip("*`\"'").removesuffix(".").strip("*`\"'").split()).casefold()


def _letter(text: str) -> str | None:
    """The letter of an answer such as ``(A)``, ``A``, ``A)`` or ``(A) text``, in the form ``(a)``."""
    found = re.match(r"[*\s]*(?:\(([A-Za-z])\)|([A-Za-z])(?:\)|\.?[*\s]*$))", text)
    return None if found is None else f"({(found[1] or found[2]).casefold()})"


def _solved(record: ExactMatchRecord) -> str:
    return f"{record.prompt} {record.solution}"
