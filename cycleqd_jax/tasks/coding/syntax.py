"""Syntax trees of programs that models or data contain."""

from __future__ import annotations

import ast
import threading
import warnings

__all__ = ["parse"]

_LOCK = threading.Lock()


def parse(code: str) -> ast.Module:
    """The syntax tree of a program, in one thread at a time.

    Python before 3.13 counts the depth of nested nodes of all threads together: when two threads parse, one of them may fail
    with ``SystemError: AST constructor recursion depth mismatch``.

    Args:
        code: the program. Warnings about it, such as those of invalid escapes, are dropped.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: see ``ast.parse``.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(code)
