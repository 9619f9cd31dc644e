"""Rewrites the asserts of MBPP so that a result with an equality of its own fails them."""

from __future__ import annotations

import ast
import functools

from cycleqd_jax.tasks.syntax import parse

__all__ = ["guarded"]


@functools.lru_cache(maxsize=4096)
def guarded(line: str, names: tuple[str, ...]) -> str:
    """An assert that passes the operands of comparisons, of arithmetic and of calls through the judge's ``__plain__``.

    ``__plain__`` refuses values with operators of their own. Arguments of the program's own functions and classes are not
    checked: they may be anything that the program accepts.

    Args:
        line: the assert.
        names: names of the program's functions and classes.
    """
    return ast.unparse(_Guard(names).visit(parse(line)))


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
    """A call of ``__plain__`` with the node; a constant needs no check."""
    if isinstance(node, ast.Constant):
        return node
    return ast.Call(ast.Name("__plain__", ast.Load()), [node], [])
