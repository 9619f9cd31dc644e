"""HumanEval: Python functions to complete, judged by the benchmark's test functions."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from cycleqd_jax.tasks.coding.base import INSTRUCTION, FunctionRecord, FunctionTask, program_tree
from cycleqd_jax.tasks.coding.extraction import extract_code, only_program
from cycleqd_jax.tasks.judges import run_judge
from cycleqd_jax.tasks.options import TaskOptions
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.types import Score

__all__ = ["HumanEval", "HumanEvalRecord"]


@dataclasses.dataclass(frozen=True)
class HumanEvalRecord(FunctionRecord):
    """One problem.

    Attributes:
        test: source code of the function ``check``.
    """

    test: str


class HumanEval(FunctionTask[HumanEvalRecord]):
    """Single-turn coding: the function must pass the benchmark's ``check``.

    As in the original benchmark, the judged program is the prompt followed by the reply's program, which may be the body of the
    function or the whole function. ``check`` runs in another process than the program and gets its results as data.
    """

    def __init__(self, options: TaskOptions, *, prompt: Literal["chat", "brief"] = "chat") -> None:
        """Reads and checks all records.

        Args:
            options: the options that all tasks share.
            prompt: ``"chat"`` is the prompt of EvalPlus, ``"brief"`` the head of the function alone.

        Raises:
            InputError: a file is missing or empty, or a record is malformed.
        """
        self.prompt = prompt
        super().__init__(options)

    def settings(self) -> dict[str, Any]:
        """Everything besides the records that affects prompts or verdicts."""
        return {"prompt": self.prompt, "limits": dataclasses.asdict(self.limits)}

    def parse(self, row: Row) -> HumanEvalRecord:
        """Parses a record in the format that OpenAI published."""
        prompt, test = row.text("prompt"), row.text("test")
        gold = prompt + row.text("canonical_solution")
        for field, code in (("canonical_solution", gold), ("test", test)):
            program_tree(row, field, code)
        if "def check(" not in test:
            raise row.error("a function check in field 'test'", "none")
        return HumanEvalRecord(row.text("task_id"), prompt, row.text("entry_point"), gold, test)

    def question(self, record: HumanEvalRecord) -> str:
        """The user message."""
        problem = record.prompt.strip()
        return problem if self.prompt == "brief" else f"{INSTRUCTION}\n```python\n{problem}\n```"

    def program(self, record: HumanEvalRecord, reply: str) -> str:
        """The prompt followed by the program in the reply, or by the reply itself if it is the body of the function."""
        code = extract_code(reply, (record.name,))
        if not code.strip() and reply[:1] in (" ", "\t"):
            code = reply
        return only_program(f"{record.prompt.rstrip()}\n{code}", record.name) if code.strip() else ""

    def judge(self, record: HumanEvalRecord, code: str) -> tuple[Score, bool]:
        """Runs ``check`` on the program's function."""
        secret = {"mode": "check", "setup": record.gold, "test": record.test}
        judged = run_judge(self.sandbox, "calls", {"code": code, "name": record.name}, secret, self.limits)
        if judged.verdict is None:
            return Score(0.0, judged.reason), False
        if judged.verdict["failed"] is None:
            return Score(1.0, "passed"), True
        place, _, reason = judged.verdict["failed"]
        return Score(0.0, f"{place} failed: {reason}"), "ended before" not in reason
