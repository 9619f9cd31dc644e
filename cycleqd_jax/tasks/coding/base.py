"""The base classes of tasks whose replies are Python programs: question, program, verdict."""

from __future__ import annotations

import abc
import ast
import dataclasses
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from cycleqd_jax.tasks.base import RecordTask, Solution, clean_text, fixed_replies
from cycleqd_jax.tasks.coding.extraction import LONGEST_PROGRAM, extract_code, may_vary, only_program
from cycleqd_jax.tasks.memo import Environment
from cycleqd_jax.tasks.one_reply import OneReplyEpisode
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.tasks.syntax import parse
from cycleqd_jax.types import Score

__all__ = [
    "CONSTANTS",
    "INSTRUCTION",
    "CodingEpisode",
    "CodingTask",
    "FunctionRecord",
    "FunctionTask",
    "fenced",
    "program_tree",
]

INSTRUCTION = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
"""The prompt of EvalPlus and BigCodeBench for chat models; the problem follows."""

CONSTANTS = ("None", "0")
"""The results of the stubs of coding tasks."""

R = TypeVar("R")


class CodingTask(RecordTask[R], Generic[R]):
    """A task whose replies are Python programs: every episode has one reply."""

    @abc.abstractmethod
    def question(self, record: R) -> str:
        """The user message."""

    @abc.abstractmethod
    def program(self, record: R, reply: str) -> str:
        """The program in a reply; blank if there is none."""

    @abc.abstractmethod
    def judge(self, record: R, code: str) -> tuple[Score, bool]:
        """The score of a program, and whether the same program would get the same score again."""

    def environment(self, record: R) -> Environment:
        """A fresh episode of a record."""
        return CodingEpisode(self, record)


@dataclasses.dataclass(frozen=True)
class FunctionRecord:
    """A problem that asks for one function.

    Attributes:
        id: the id in the file.
        prompt: the text of the problem.
        name: name of the function.
        gold: the whole gold program.
    """

    id: str
    prompt: str
    name: str
    gold: str


F = TypeVar("F", bound=FunctionRecord)


class FunctionTask(CodingTask[F], Generic[F]):
    """A coding task whose problems ask for one function."""

    def program(self, record: F, reply: str) -> str:
        """The program in a reply, without examples of its use; blank if there is none."""
        return only_program(extract_code(reply, (record.name,)), record.name)

    def solutions(self, record: F) -> Iterable[Solution]:
        """The gold program in a code block."""
        yield fixed_replies(fenced(record.gold))

    def stubs(self, record: F) -> Iterable[Solution]:
        """An empty reply, and functions that return a constant."""
        yield fixed_replies("")
        for constant in CONSTANTS:
            yield fixed_replies(fenced(f"def {record.name}(*args, **kwargs):\n    return {constant}"))


class CodingEpisode(OneReplyEpisode):
    """One problem: a question, a reply, a verdict."""

    def __init__(self, task: CodingTask[Any], record: Any) -> None:
        super().__init__()
        self._task = task
        self._record = record

    def question(self) -> str:
        """The question of the problem."""
        return self._task.question(self._record)

    def step(self, reply: str) -> Score:
        """Judges the program in the reply."""
        code = self._task.program(self._record, clean_text(reply))
        if not code.strip():
            return Score(0.0, "no code")
        if len(code) > LONGEST_PROGRAM:
            return Score(0.0, "the program is too long")
        score, repeatable = self._task.judge(self._record, code)
        self.repeatable = self.repeatable and repeatable and not may_vary(code)
        return score


def fenced(code: str) -> str:
    """A program as a Markdown code block, the way chat models write it."""
    return f"```python\n{code.strip(chr(10))}\n```"


def program_tree(row: Row, field: str, code: str) -> ast.Module:
    """The syntax tree of a program in a record.

    Raises:
        InputError: the program is not Python; the message names the record and the field.
    """
    try:
        return parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise row.error(f"valid Python in field {field!r}", str(error)) from error
