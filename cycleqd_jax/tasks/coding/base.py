"""What the tasks share whose replies are Python functions: options, prompts, and the way from a reply to a verdict."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from cycleqd_jax.tasks.base import RecordTask, Solution, clean, fixed
from cycleqd_jax.tasks.coding.extraction import LONGEST_PROGRAM, extract_code, is_chancy, only_program
from cycleqd_jax.tasks.memo import Environment
from cycleqd_jax.types import Message, Score

__all__ = ["CONSTANTS", "INSTRUCTION", "CodingEpisode", "CodingTask", "FunctionRecord", "fenced"]

INSTRUCTION = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
"""What EvalPlus and BigCodeBench ask of chat models; the problem follows."""

CONSTANTS = ("None", "0")
"""What the stubs of coding tasks return."""


@dataclasses.dataclass(frozen=True)
class FunctionRecord:
    """What the records of all these benchmarks have.

    Attributes:
        id: as in the file.
        prompt: the problem as it is put.
        name: of the function that is asked for.
        gold: the gold program, whole.
    """

    id: str
    prompt: str
    name: str
    gold: str


R = TypeVar("R", bound=FunctionRecord)


class CodingTask(RecordTask[R], Generic[R]):
    """A task whose replies are functions, asked for and judged one by one."""

    @abc.abstractmethod
    def question(self, record: R) -> str:
        """The user's message."""

    @abc.abstractmethod
    def judge(self, record: R, code: str) -> tuple[Score, bool]:
        """The score of a program, and whether the same program would get it again."""

    def program(self, record: R, reply: str) -> str:
        """The program in a reply; blank where there is none."""
        return only_program(extract_code(reply, (record.name,)), record.name)

    def environment(self, record: R) -> Environment:
        """A fresh episode of a record."""
        return CodingEpisode(self, record)

    def solutions(self, record: R) -> Iterable[Solution]:
        """The gold program in a fence."""
        yield fixed(fenced(record.gold))

    def stubs(self, record: R) -> Iterable[Solution]:
        """No code, and functions that return a constant."""
        yield fixed("")
        for constant in CONSTANTS:
            yield fixed(fenced(f"def {record.name}(*args, **kwargs):\n    return {constant}"))


class CodingEpisode:
    """One problem: a question, a reply, a verdict."""

    single_turn = True

    def __init__(self, task: CodingTask[Any], record: FunctionRecord) -> None:
        self.repeatable = True
        self._task = task
        self._record = record

    def opening(self) -> list[Message]:
        """The question."""
        return [{"role": "user", "content": self._task.question(self._record)}]

    def start(self) -> list[Message]:
        """The question; a program's box is made when there is a program."""
        return self.opening()

    def step(self, reply: str) -> Score:
        """Judges the reply's program."""
        code = self._task.program(self._record, clean(reply))
        if not code.strip():
            return Score(0.0, "no code")
        if len(code) > LONGEST_PROGRAM:
            return Score(0.0, "the program is too long")
        score, repeatable = self._task.judge(self._record, code)
        self.repeatable = self.repeatable and repeatable and not is_chancy(code)
        return score

    def close(self) -> None:
        """Nothing is held between steps."""


def fenced(code: str) -> str:
    """A program as a chat model says it."""
    return f"```python\n{code.strip(chr(10))}\n```"
