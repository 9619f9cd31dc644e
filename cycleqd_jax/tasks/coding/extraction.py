"""The program in a reply."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable

__all__ = ["LONGEST_PROGRAM", "extract_code", "is_chancy", "only_program"]

LONGEST_PROGRAM = 200_000
"""Characters of the longest program that is run."""

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*$", re.MULTILINE)
_CODE_LINE = re.compile(r"^(?:def|class|import|from|async|@|if|for|while|with|try|[A-Za-z_]\w* *=)", re.MULTILINE)
# Chance, clocks, other processes, and the hash seed: verdicts on such programs are not remembered.
_CHANCE = re.compile(r"random|secrets|uuid|\btime\b|datetime|thread|process|\bid\(|\bhash\(|\bos\b")
_MOST_CUTS = 20
# Top-level statements that use one of these show the program off.
_SHOWING = frozenset(("print", "input", "__name__", "unittest", "doctest"))


def is_chancy(code: str) -> bool:
    """Whether a program's results may depend on chance, on the clock or on other processes."""
    return _CHANCE.search(code) is not None


def extract_code(reply: str, names: Iterable[str] = ()) -> str:
    """The program in a reply.

    Fenced blocks tagged as Python count, untagged ones where there are none. Of several, the first that defines all
    ``names`` is taken, else all together. A fence that is never closed lasts to the end; one that was never opened (the
    reply began inside a block) ends the program. Without fences the program starts at the first line that looks like code.
    """
    fences = list(_FENCE.finditer(reply))
    blocks: list[tuple[str, str]] = []
    start: re.Match[str] | None = None
    for fence in fences:
        if start is None:
            start = fence
        else:
            blocks.append((start.group(1).lower(), reply[start.end() + 1 : fence.start()]))
            # A tagged fence never closes a block: the one before was left open.
            start = fence if fence.group(1) else None
    if start is not None:
        rest = reply[start.end() + 1 :]
        if not rest.strip() and len(fences) == 1:
            return _from_code_line(reply[: start.start()])
        blocks.append((start.group(1).lower(), rest))
    blocks = [(tag, code) for tag, code in blocks if code.strip()]
    if not blocks:
        return _from_code_line(_FENCE.sub("", reply))
    tagged = [code for tag, code in blocks if tag in ("python", "py", "python3")]
    codes = tagged or [code for tag, code in blocks if not tag] or [code for _, code in blocks]
    wanted = [
        re.compile(rf"^[ \t]*(?:(?:async +)?def|class) +{name}\b|^{name} *=", re.MULTILINE) for name in map(re.escape, names)
    ]
    if len(codes) > 1 and wanted:
        codes = next(([code] for code in codes if all(one.search(code) for one in wanted)), codes)
    return "\n".join(codes)


def _from_code_line(text: str) -> str:
    match = _CODE_LINE.search(text)
    return text[match.start() :] if match else ""


def only_program(code: str, name: str) -> str:
    """A program without what only shows it off, as EvalPlus judges it: a wrong example of use is no wrong program.

    Left out are, at the top level: asserts, the ``__main__`` guard, prints, and whatever uses the function ``name`` but its own
    definition. A program that ends in the middle of a statement (a reply that was cut) ends before that statement.

    Args:
        code: the program; returned as it is where nothing of it is Python, or it is too long to be run.
        name: of the function that is asked for.
    """
    if len(code) > LONGEST_PROGRAM:
        return code
    lines = code.split("\n")
    for _ in range(_MOST_CUTS):
        tree = _parse("\n".join(lines))
        if isinstance(tree, ast.Module):
            break
        begin = min(tree, len(lines)) - 1  # of the statement that is no Python
        while begin > 0 and (not lines[begin].strip() or lines[begin][0] in " \t)]}#"):
            begin -= 1
        lines = lines[:begin]
    else:
        return code
    if not tree.body:
        return code
    kept = [node for node in tree.body if not _shows(node, name)]
    if len(kept) == len(tree.body):
        return "\n".join(lines)
    try:
        return ast.unparse(ast.Module(kept, []))
    except RecursionError:
        return "\n".join(lines)


def _shows(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
        return False
    names = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
    if any(part.id == name and isinstance(part.ctx, ast.Store) for part in names):
        return False
    return any(part.id == name or part.id in _SHOWING for part in names)


def _parse(code: str) -> ast.Module | int:
    """The program's tree, or the line that is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
