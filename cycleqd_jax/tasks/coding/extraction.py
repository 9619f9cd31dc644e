"""Extracts the program from a reply."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable

__all__ = ["LONGEST_PROGRAM", "extract_code", "may_vary", "only_program"]

LONGEST_PROGRAM = 200_000
"""Number of characters of the longest program that is executed."""

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*$", re.MULTILINE)
_CODE_LINE = re.compile(r"^(?:def|class|import|from|async|@|if|for|while|with|try|[A-Za-z_]\w* *=)", re.MULTILINE)
# Random numbers, clocks, other processes and the hash seed: verdicts on such programs are not cached.
_VARYING = re.compile(r"random|secrets|uuid|\btime\b|datetime|thread|process|\bid\(|\bhash\(|\bos\b")
_MOST_CUTS = 20
# Top-level statements that use one of these names are examples of use.
_EXAMPLE_NAMES = frozenset(("print", "input", "__name__", "unittest", "doctest"))


def may_vary(code: str) -> bool:
    """Whether a program's results may depend on random numbers, the clock or other processes."""
    return _VARYING.search(code) is not None


def extract_code(reply: str, names: Iterable[str] = ()) -> str:
    """The program in a reply.

    The program is the code block tagged as Python, or an untagged block if no block has that tag. Of several blocks, the first
    that defines all ``names`` is taken; if none does, all are joined. A block that is never closed lasts to the end of the
    reply. A closing fence without an opening one (the reply began inside a block) ends the program. In a reply without
    fences, the program starts at the first line that looks like code.
    """
    fences = list(_FENCE.finditer(reply))
    blocks: list[tuple[str, str]] = []
    start: re.Match[str] | None = None
    for fence in fences:
        if start is None:
            start = fence
        else:
            blocks.append((start.group(1).lower(), reply[start.end() + 1 : fence.start()]))
            # A tagged fence never closes a block: the block before it was left open.
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
    """A program without examples of its use, as EvalPlus judges it: a wrong example does not make the program wrong.

    Removed from the top level are asserts, the ``__main__`` guard, prints, and statements that use the function ``name``
    without defining it. If the reply was cut off, the program ends before the unfinished statement.

    Args:
        code: the program; returned unchanged if no part of it is Python, or if it is too long to be executed.
        name: name of the requested function.
    """
    if len(code) > LONGEST_PROGRAM:
        return code
    lines = code.split("\n")
    for _ in range(_MOST_CUTS):
        tree = _parse("\n".join(lines))
        if isinstance(tree, ast.Module):
            break
        begin = min(tree, len(lines)) - 1  # first line of the statement that is not Python
        while begin > 0 and (not lines[begin].strip() or lines[begin][0] in " \t)]}#"):
            begin -= 1
        lines = lines[:begin]
    else:
        return code
    if not tree.body:
        return code
    kept = [node for node in tree.body if not _is_example(node, name)]
    if len(kept) == len(tree.body):
        return "\n".join(lines)
    try:
        return ast.unparse(ast.Module(kept, []))
    except RecursionError:
        return "\n".join(lines)


def _is_example(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
        return False
    names = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
    if any(part.id == name and isinstance(part.ctx, ast.Store) for part in names):
        return False
    return any(part.id == name or part.id in _EXAMPLE_NAMES for part in names)


def _parse(code: str) -> ast.Module | int:
    """The syntax tree of a program, or the number of the line that is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
