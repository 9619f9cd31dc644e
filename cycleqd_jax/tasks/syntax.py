"""Syntax trees and values of Python in texts of models or data, made in one thread at a time.

Python before 3.13 counts the depth of nested nodes of all threads together: when two threads make syntax trees, either may fail
with ``SystemError: AST constructor recursion depth mismatch``.
"""

from __future__ import annotations

import ast
import threading
import warnings
from typing import Any

__all__ = ["future_first", "literal", "parse"]

_LOCK = threading.Lock()


def parse(code: str) -> ast.Module:
    """The syntax tree of a program.

    Args:
        code: the program. Warnings about it, such as those of invalid escapes, are dropped.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: see ``ast.parse``.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(code)


def literal(text: str) -> Any:
    """The value of a number, a text or a collection in Python's syntax; nothing is called.

    Args:
        text: the literal. Warnings about it are dropped.

    Raises:
        SyntaxError, ValueError, TypeError, RecursionError, MemoryError: see ``ast.literal_eval``.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.literal_eval(text)


def future_first(code: str) -> str:
    """A program whose ``from __future__`` imports stand at its beginning, below its docstring: text may be before them."""
    if "__future__" not in code:
        return code
    try:
        tree = parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
    future: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    rest = [node for node in tree.body if node not in future]
    described = int(ast.get_docstring(tree, clean=False) is not None)
    try:
        parts = (rest[:described], future, rest[described:])
        moved = "\n".join(ast.unparse(ast.Module(part, [])) for part in parts if part) if future else code
        parse(moved)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # A number of thousands of digits; a long sum; an argument that unparse puts into one pair of parentheses too many.
        return code
    return moved
