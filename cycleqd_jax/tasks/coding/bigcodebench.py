"""BigCodeBench: Python functions that use libraries, judged by ``unittest`` classes; only problems of the standard library."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any, Literal

from cycleqd_jax.tasks.coding.base import INSTRUCTION, FunctionRecord, FunctionTask, program_tree
from cycleqd_jax.tasks.judges import run_judge
from cycleqd_jax.tasks.options import TaskOptions
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.tasks.syntax import future_first
from cycleqd_jax.types import Score

__all__ = ["BigCodeBench", "BigCodeBenchRecord"]

_CASE = "TestCases"
_DECORATORS = ("skip", "expectedFailure")


@dataclasses.dataclass(frozen=True)
class BigCodeBenchRecord(FunctionRecord):
    """One problem.

    Attributes:
        instruction: the problem in words.
        head: the imports and the first line of the function.
        test: source code of the test class.
        count: least number of its tests; there may be more that other classes define.
        skipped: names of its tests that ``unittest.skip`` decorates.
        failing: names of its tests that ``unittest.expectedFailure`` decorates.
        modules: modules that the gold program and the test class import.
    """

    instruction: str
    head: str
    test: str
    count: int
    skipped: tuple[str, ...]
    failing: tuple[str, ...]
    modules: tuple[str, ...]


class BigCodeBench(FunctionTask[BigCodeBenchRecord]):
    """Single-turn coding: all tests of a ``unittest`` class must pass.

    The imports of the problem precede the program of the reply, as in the benchmark's calibrated score.
    """

    default_seconds = 60.0  # of a program with all its tests, some of which wait on the clock

    def __init__(
        self, options: TaskOptions, *, prompt: Literal["instruct", "complete", "brief"] = "instruct", memory_mb: int = 1024
    ) -> None:
        """Reads and checks all records.

        Args:
            options: the options that all tasks share; ``seconds`` limits a program with all its tests.
            prompt: ``"instruct"`` and ``"complete"`` are the prompts of the benchmark's two splits, ``"brief"`` is the problem
                in words alone.
            memory_mb: memory limit of a program; the sandbox's limit if that is larger.

        Raises:
            InputError: a file is missing or empty, or a record is malformed.
        """
        self.prompt = prompt
        super().__init__(options)
        self.limits = dataclasses.replace(self.limits, memory_mb=max(self.limits.memory_mb, memory_mb))

    def settings(self) -> dict[str, Any]:
        """Everything besides the records that affects prompts or verdicts."""
        return {"prompt": self.prompt, "limits": dataclasses.asdict(self.limits)}

    def parse(self, row: Row) -> BigCodeBenchRecord:
        """Parses a record in the published format."""
        head, test = row.text("code_prompt"), row.text("test")
        gold = head + row.text("canonical_solution")
        trees = [program_tree(row, field, code) for field, code in (("canonical_solution", gold), ("test", test))]
        tests = _tests(trees[1])
        skipped, failing = (tuple(sorted(n for n, part in tests.items() if _decorated(part, by))) for by in _DECORATORS)
        if len(tests) == len(skipped):
            raise row.error(f"a class {_CASE} with tests in field 'test'", "none" if not tests else "skipped tests only")
        identity, name = row.text("task_id"), row.text("entry_point")
        return BigCodeBenchRecord(
            identity,
            row.text("complete_prompt"),
            name,
            gold,
            instruction=row.text("instruct_prompt"),
            head=head,
            test=test,
            count=len(tests),
            skipped=skipped,
            failing=failing,
            modules=tuple(sorted({name for tree in trees for name in _imported(tree)})),
        )

    def question(self, record: BigCodeBenchRecord) -> str:
        """The user message."""
        if self.prompt == "brief":
            return record.instruction.strip()
        if self.prompt == "complete":
            return f"{INSTRUCTION}\n```\n{record.prompt.strip()}\n```\n"
        return f"{INSTRUCTION}\n{record.instruction.strip()}\n"

    def judge(self, record: BigCodeBenchRecord, code: str) -> tuple[Score, bool]:
        """Runs the program and the test class in one process."""
        job = {
            "code": future_first(f"{record.head.rstrip()}\n    pass\n{code}"),
            "tests": record.test,
            "name": record.name,
            "case": _CASE,
            "skipped": record.skipped,
            "failing": record.failing,
            "modules": record.modules,
        }
        judged = run_judge(self.sandbox, "cases", job, {}, self.limits)
        verdict = judged.verdict
        if verdict is None:
            return Score(0.0, judged.reason), False
        if verdict["error"] is None and verdict["over"] and verdict["passed"] >= record.count:
            return Score(1.0, "passed"), True
        if verdict["error"] is None:
            return Score(0.0, "the program ended before the verdict"), False
        where, error = verdict["error"]
        count = max(record.count, verdict["passed"] + (where not in ("program", "tests")))
        return Score(0.0, f"{verdict['passed']} of {count} tests passed; {where} failed: {error}"), True


def _tests(tree: ast.Module) -> dict[str, ast.AST]:
    """The tests of the class, and of the classes of the same file from which it derives."""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    tests: dict[str, ast.AST] = {}
    pending, seen = [_CASE], set[str]()
    while pending:
        name = pending.pop(0)  # in about the order in which Python looks for methods
        if name in classes and name not in seen:
            seen.add(name)
            case = classes[name]
            pending = [*(base.id for base in case.bases if isinstance(base, ast.Name)), *pending]
            for part in case.body:
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.name.startswith("test"):
                    tests.setdefault(part.name, part)
    return tests


def _decorated(test: ast.AST, name: str) -> bool:
    """Whether ``@unittest.name``, ``@unittest.name(...)`` or one of them without the module decorates a test."""
    for decorator in getattr(test, "decorator_list", ()):
        function = decorator.func if isinstance(decorator, ast.Call) else decorator
        if name == (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")):
            return True
    return False


def _imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names - {"__test__"}
