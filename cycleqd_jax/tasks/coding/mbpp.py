"""MBPP: Python functions, judged by asserts. Reads the full and the sanitized record format."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from cycleqd_jax.tasks.base import Solution, fixed_replies
from cycleqd_jax.tasks.coding.asserts import guarded
from cycleqd_jax.tasks.coding.base import CONSTANTS, CodingTask, fenced, program_tree
from cycleqd_jax.tasks.coding.extraction import extract_code, only_program
from cycleqd_jax.tasks.judges import run_judge
from cycleqd_jax.tasks.options import TaskOptions
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.types import Score

__all__ = ["Mbpp", "MbppRecord"]


@dataclasses.dataclass(frozen=True)
class MbppRecord:
    """One problem.

    Attributes:
        text: the problem in words.
        asserts: statements that hold for a correct program.
        code: the gold program.
        setup: code that runs after the program (some setups use the program's classes) and before the asserts.
        imports: code that runs before the asserts.
        names: names of the program or the setup that the asserts use.
        needs: names that the setup uses.
    """

    text: str
    asserts: tuple[str, ...]
    code: str
    setup: str
    imports: str
    names: tuple[str, ...]
    needs: tuple[str, ...]


class Mbpp(CodingTask[MbppRecord]):
    """Single-turn coding: the program must satisfy all asserts.

    The prompt shows at least one assert, because only the asserts contain the name of the function.
    """

    def __init__(
        self,
        options: TaskOptions,
        *,
        prompt: Literal["instruct", "brief"] = "instruct",
        shown: Literal["all", "first"] = "all",
    ) -> None:
        """Reads and checks all records.

        Args:
            options: the options that all tasks share; ``seconds`` limits a program with all its asserts.
            prompt: ``"instruct"`` is the prompt of the MBPP paper, ``"brief"`` the description and the asserts alone.
            shown: which asserts the prompt shows.

        Raises:
            InputError: a file is missing or empty, or a record is malformed.
        """
        self.prompt = prompt
        self.shown = shown
        super().__init__(options)

    def settings(self) -> dict[str, Any]:
        """Everything besides the records that affects prompts or verdicts."""
        return {"prompt": self.prompt, "shown": self.shown, "limits": dataclasses.asdict(self.limits)}

    def parse(self, row: Row) -> MbppRecord:
        """Parses a full (``text``, ``test_setup_code``) or sanitized (``prompt``, ``test_imports``) record."""
        sanitized = "prompt" in row.fields
        text = row.text("prompt" if sanitized else "text")
        code = row.text("code").replace("\r\n", "\n")
        setup = "" if sanitized else row.text("test_setup_code", "")
        imports = "\n".join(row.texts("test_imports", ())) if sanitized else ""
        program_tree(row, "test_imports", imports)
        asserts = tuple(line.strip() for line in row.texts("test_list"))
        if not text.strip() or not asserts:
            raise row.error("a description and at least one assert", "none")
        gold = program_tree(row, "code", code).body
        prepared = program_tree(row, "test_setup_code", setup)
        bound = {*_names(gold), *_names(prepared.body)}
        used: set[str] = set()
        for number, line in enumerate(asserts):
            tree = program_tree(row, f"test_list[{number}]", line)
            if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
                raise row.error("assert statements in field 'test_list'", repr(line[:80]))
            used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if not bound & used:
            raise row.error("asserts that use what the gold code defines", "asserts that use none of its names")
        # Modules that the asserts use and only the gold program imports: other programs need not import them.
        modules = [node for node in gold if isinstance(node, ast.Import | ast.ImportFrom) and used & {*_names([node])}]
        imports = "\n".join([imports, *map(ast.unparse, modules)])
        names = (bound & used) - {*_names(modules)}
        needs = {node.id for node in ast.walk(prepared) if isinstance(node, ast.Name)}
        for number, line in enumerate(asserts):
            try:
                guarded(line, tuple(sorted(names)))
            except (ValueError, RecursionError) as error:  # they walk the tree, where parse only builds it
                raise row.error(f"a shorter assert in field 'test_list[{number}]'", str(error)) from error
        return MbppRecord(text, asserts, code, setup, imports, tuple(sorted(names)), tuple(sorted(needs)))

    def solutions(self, record: MbppRecord) -> Iterable[Solution]:
        """The gold program in a code block."""
        yield fixed_replies(fenced(record.code.strip()))

    def stubs(self, record: MbppRecord) -> Iterable[Solution]:
        """An empty reply, and functions that return a constant."""
        yield fixed_replies("")
        for constant in CONSTANTS:
            yield fixed_replies(fenced("\n".join(f"def {name}(*args, **kwargs): return {constant}" for name in record.names)))

    def question(self, record: MbppRecord) -> str:
        """The user message."""
        asserts = "\n".join(record.asserts[: 1 if self.shown == "first" else None])
        if self.prompt == "brief":
            return f"{record.text}\n{asserts}"
        return (
            f"You are an expert Python programmer, and here is your task: {record.text} "
            f"Your code should pass these tests:\n\n{asserts}"
        )

    def program(self, record: MbppRecord, reply: str) -> str:
        """The program in a reply, without what only runs; blank if there is none."""
        code = extract_code(reply, record.names)
        return only_program(code, *record.names, *record.needs) if code.strip() else ""

    def judge(self, record: MbppRecord, code: str) -> tuple[Score, bool]:
        """Runs the program, the setup and the asserts."""
        job = {
            "code": code,
            "setup": record.setup,
            "imports": record.imports,
            "asserts": [guarded(line, record.names) for line in record.asserts],
            "names": record.names,
        }
        judged = run_judge(self.sandbox, "asserts", job, {}, self.limits)
        verdict = judged.verdict
        if verdict is None:
            return Score(0.0, judged.reason), False
        if verdict["error"] is None and verdict["passed"] == len(record.asserts):
            return Score(1.0, "passed"), True
        if verdict["error"] is None:  # the program exited, or a limit ended it
            return Score(0.0, "the program ended before the verdict"), False
        stage, error = verdict["error"]
        return Score(0.0, f"{stage} failed: {error}"), True


def _names(body: Iterable[ast.stmt]) -> Iterator[str]:
    """The names that are bound at the top level of a program."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        else:
            yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
