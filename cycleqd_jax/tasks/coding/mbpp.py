"""MBPP: Python functions, judged by asserts. Reads the full and the sanitized record format."""

from __future__ import annotations

import ast
import dataclasses
import functools
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.tasks.base import RecordTask, Solution, clean, fixed, one_of
from cycleqd_jax.tasks.coding.base import CONSTANTS, fenced
from cycleqd_jax.tasks.coding.extraction import LONGEST_PROGRAM, extract_code, is_chancy
from cycleqd_jax.tasks.judges import preside
from cycleqd_jax.tasks.memo import Environment
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.types import Message, Score

__all__ = ["Mbpp", "MbppRecord"]


@dataclasses.dataclass(frozen=True)
class MbppRecord:
    """One problem.

    Attributes:
        text: what to write, in words.
        asserts: statements that hold for a right program.
        code: the gold program.
        setup: run after the program (some setups use the program's classes) and before the asserts.
        imports: run before the asserts.
        names: names of the program or the setup that the asserts use.
    """

    text: str
    asserts: tuple[str, ...]
    code: str
    setup: str
    imports: str
    names: tuple[str, ...]


class Mbpp(RecordTask[MbppRecord]):
    """Single-turn coding: the reply's program must satisfy all asserts.

    Prompts: ``"instruct"`` asks as the MBPP paper does, ``"brief"`` gives the description and the asserts and nothing else.
    The name of the function is known from the asserts only, so at least one is always shown.
    """

    def __init__(
        self,
        *,
        sandbox: Sandbox,
        name: str = "mbpp",
        max_new_tokens: int = 512,
        train: str | Path | None = None,
        test: str | Path | None = None,
        data: str | Path | None = None,
        prompt: Literal["instruct", "brief"] = "instruct",
        shown: Literal["all", "first"] = "all",
        seconds: float | None = None,
        memo: bool = True,
        cache: str | Path | None = None,
        workers: int = 4,
    ) -> None:
        """Reads and checks all records (see :class:`~cycleqd_jax.tasks.base.RecordTask` for the options not listed here).

        Args:
            sandbox: where programs run.
            name: as in configs, journals and tables.
            max_new_tokens: most tokens a reply may have.
            train: file with the records the search may see.
            test: file with the records to report on.
            data: instead of both, one file to be split evenly.
            prompt: how the problem is put.
            shown: which asserts the prompt shows.
            seconds: time limit of a program with all its asserts, instead of the sandbox's.
            memo: whether verdicts are remembered.
            cache: folder where demonstrations are kept, or None.
            workers: threads that replay demonstrations.

        Raises:
            InputError: for an unknown option, a missing or empty file, or a malformed record.
        """
        self.prompt = one_of(name, "prompt", prompt, ("instruct", "brief"))
        self.shown = one_of(name, "shown", shown, ("all", "first"))
        super().__init__(
            sandbox=sandbox,
            name=name,
            max_new_tokens=max_new_tokens,
            train=train,
            test=test,
            data=data,
            seconds=seconds,
            memo=memo,
            cache=cache,
            workers=workers,
        )

    def options(self) -> dict[str, Any]:
        """What decides about prompts and verdicts."""
        return {"prompt": self.prompt, "shown": self.shown, "limits": dataclasses.asdict(self.limits)}

    def parse(self, row: Row) -> MbppRecord:
        """A full (``text``, ``test_setup_code``) or sanitized (``prompt``, ``test_imports``) record."""
        sanitized = "prompt" in row.fields
        text = row.text("prompt" if sanitized else "text")
        code = row.text("code").replace("\r\n", "\n")
        setup = "" if sanitized else row.text("test_setup_code", "")
        imports = "\n".join(row.texts("test_imports", ())) if sanitized else ""
        asserts = tuple(line.strip() for line in row.texts("test_list"))
        if not text.strip() or not asserts:
            raise row.error("a description and at least one assert", "none")
        gold = _tree(row, "code", code).body
        bound = {*_names(gold), *_names(_tree(row, "test_setup_code", setup).body)}
        used: set[str] = set()
        for number, line in enumerate(asserts):
            tree = _tree(row, f"test_list[{number}]", line)
            if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
                raise row.error("assert statements in field 'test_list'", repr(line[:80]))
            used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if not bound & used:
            raise row.error("asserts that use what the gold code defines", "asserts that use nothing of it")
        # Modules that the asserts only have through the gold program: no candidate can be expected to import them.
        modules = [node for node in gold if isinstance(node, ast.Import | ast.ImportFrom) and used & {*_names([node])}]
        imports = "\n".join([imports, *map(ast.unparse, modules)])
        names = (bound & used) - {*_names(modules)}
        return MbppRecord(text, asserts, code, setup, imports, tuple(sorted(names)))

    def environment(self, record: MbppRecord) -> Environment:
        """A fresh episode of a record."""
        return MbppEpisode(self, record)

    def solutions(self, record: MbppRecord) -> Iterable[Solution]:
        """The gold program in a fence."""
        yield fixed(fenced(record.code.strip()))

    def stubs(self, record: MbppRecord) -> Iterable[Solution]:
        """No code, and functions that return a constant."""
        yield fixed("")
        for constant in CONSTANTS:
            yield fixed(fenced("\n".join(f"def {name}(*args, **kwargs): return {constant}" for name in record.names)))

    def question(self, record: MbppRecord) -> str:
        """The user's message."""
        asserts = "\n".join(record.asserts[: 1 if self.shown == "first" else None])
        if self.prompt == "brief":
            return f"{record.text}\n{asserts}"
        return (
            f"You are an expert Python programmer, and here is your task: {record.text} "
            f"Your code should pass these tests:\n\n{asserts}"
        )


class MbppEpisode:
    """One problem: a question, a reply, a verdict."""

    single_turn = True

    def __init__(self, task: Mbpp, record: MbppRecord) -> None:
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
        """Runs the reply's program against the asserts."""
        code = extract_code(clean(reply), self._record.names)
        if not code.strip():
            return Score(0.0, "no code")
        if len(code) > LONGEST_PROGRAM:
            return Score(0.0, "the program is too long")
        if is_chancy(code):
            self.repeatable = False
        record = self._record
        job = {
            "code": code,
            "setup": record.setup,
            "imports": record.imports,
            "asserts": [_guarded(line, record.names) for line in record.asserts],
            "names": record.names,
        }
        ruling = preside(self._task.sandbox, "asserts", job, {}, self._task.limits)
        verdict = ruling.verdict
        if verdict is None:
            self.repeatable = False
            return Score(0.0, ruling.reason)
        if verdict["error"] is None and verdict["passed"] == len(record.asserts):
            return Score(1.0, "passed")
        if verdict["error"] is None:  # it left by itself, or a limit ended it
            self.repeatable = False
            return Score(0.0, "the program ended before the verdict")
        stage, error = verdict["error"]
        return Score(0.0, f"{stage} failed: {error}")

    def close(self) -> None:
        """Nothing is held between steps."""


@functools.lru_cache(maxsize=4096)
def _guarded(line: str, names: tuple[str, ...]) -> str:
    """An assert in which whatever is compared, computed with or called upon is first checked by the judge's ``__plain__``.

    All but the arguments of the program's own functions and classes, which may be whatever the program takes.
    """
    return ast.unparse(_Guard(names).visit(ast.parse(line)))


class _Guard(ast.NodeTransformer):
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        node.left, *node.comparators = map(_plain, (node.left, *node.comparators))
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        node.left, node.right = _plain(node.left), _plain(node.right)
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        node.operand = _plain(node.operand)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id in self._names):
            node.args = [argument if isinstance(argument, ast.Starred) else _plain(argument) for argument in node.args]
        return node


def _plain(node: ast.expr) -> ast.expr:
    """``node``, checked; what is written out needs no check."""
    if isinstance(node, ast.Constant):
        return node
    return ast.Call(ast.Name("__plain__", ast.Load()), [node], [])


def _tree(row: Row, field: str, code: str) -> ast.Module:
    try:
        with warnings.catch_warnings():  # published programs have invalid escapes in their patterns
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise row.error(f"valid Python in field {field!r}", str(error)) from error


def _names(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Names that a program's top level binds."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        else:
            yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
