"""HumanEval: Python functions to complete, judged by the benchmark's own test functions."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any, Literal

from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.tasks.base import one_of
from cycleqd_jax.tasks.coding.base import INSTRUCTION, CodingTask, FunctionRecord
from cycleqd_jax.tasks.coding.extraction import extract_code, only_program
from cycleqd_jax.tasks.judges import preside
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.types import Score

__all__ = ["HumanEval", "HumanEvalRecord"]


@dataclasses.dataclass(frozen=True)
class HumanEvalRecord(FunctionRecord):
    """One problem.

    Attributes:
        test: source of the function ``check``.
    """

    test: str


class HumanEval(CodingTask[HumanEvalRecord]):
    """Single-turn coding: the benchmark's ``check`` must be content with the function.

    As in the original, what is judged is the prompt followed by the reply's program, which may be the function's body or the
    whole function. ``check`` runs apart from the program: it gets results as data.
    """

    def __init__(
        self,
        *,
        sandbox: Sandbox,
        name: str = "humaneval",
        prompt: Literal["chat", "brief"] = "chat",
        **options: Any,
    ) -> None:
        """Reads and checks all records.

        Args:
            sandbox: where programs run.
            name: as in configs, journals and tables.
            prompt: ``"chat"`` asks as EvalPlus does, ``"brief"`` gives the function's head and nothing else.
            options: those of :class:`~cycleqd_jax.tasks.base.RecordTask`.

        Raises:
            InputError: for an unknown option, a missing or empty file, or a malformed record.
        """
        self.prompt = one_of(name, "prompt", prompt, ("chat", "brief"))
        super().__init__(sandbox=sandbox, name=name, **options)

    def options(self) -> dict[str, Any]:
        """What decides about prompts and verdicts."""
        return {"prompt": self.prompt, "limits": dataclasses.asdict(self.limits)}

    def parse(self, row: Row) -> HumanEvalRecord:
        """A record as OpenAI publishes it."""
        prompt, test = row.text("prompt"), row.text("test")
        gold = prompt + row.text("canonical_solution")
        for field, code in (("canonical_solution", gold), ("test", test)):
            try:
                ast.parse(code)
            except (SyntaxError, ValueError, RecursionError) as error:
                raise row.error(f"valid Python in field {field!r}", str(error)) from error
        if "def check(" not in test:
            raise row.error("a function check in field 'test'", "none")
        return HumanEvalRecord(row.text("task_id"), prompt, row.text("entry_point"), gold, test)

    def question(self, record: HumanEvalRecord) -> str:
        """The user's message."""
        problem = record.prompt.strip()
        return problem if self.prompt == "brief" else f"{INSTRUCTION}\n```python\n{problem}\n```"

    def program(self, record: HumanEvalRecord, reply: str) -> str:
        """The prompt followed by the reply's program; a reply without any may be the function's body."""
        code = extract_code(reply, (record.name,))
        if not code.strip() and reply[:1] in (" ", "\t"):
            code = reply
        return only_program(f"{record.prompt.rstrip()}\n{code}", record.name) if code.strip() else ""

    def judge(self, record: HumanEvalRecord, code: str) -> tuple[Score, bool]:
        """Has ``check`` call the program's function."""
        secret = {"mode": "check", "setup": record.gold, "test": record.test}
        ruling = preside(self.sandbox, "calls", {"code": code, "name": record.name}, secret, self.limits)
        if ruling.verdict is None:
            return Score(0.0, ruling.reason), False
        if ruling.verdict["failed"] is None:
            return Score(1.0, "passed"), True
        place, _, reason = ruling.verdict["failed"]
        return Score(0.0, f"{place} failed: {reason}"), "ended before" not in reason
