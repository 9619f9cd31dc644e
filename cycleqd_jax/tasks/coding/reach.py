"""What of a program its entry points need: everything that they reach is kept, and what only runs is left out."""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterable

from cycleqd_jax.tasks.coding.changes import indirect_changes
from cycleqd_jax.tasks.coding.statements import (
    DEFINITIONS,
    NAMESPACES,
    Statement,
    bound_names,
    executed,
    is_main_guard,
    root,
    statements,
)
from cycleqd_jax.tasks.coding.syntax import parse

__all__ = ["reached"]

# Calls of modules that end or test the program instead of configuring it.
_NO_SETTINGS = frozenset(
    [
        "exit",
        "_exit",
        "abort",
        "main",
        "testmod",
        "run",
        "write",
        "writelines",
        "flush",
        "input",
        "quit",
        "sleep",
        "pause",
        "alarm",
        "system",
        "popen",
        "fork",
        "kill",
        "execv",
        "execvp",
        "show",
        "mainloop",
    ]
)
_BUILTINS = frozenset(dir(builtins)) | {"__name__"}
_BUILDERS = frozenset(("exec",))  # may bind any name
_DYNAMIC = frozenset(("eval", "exec", "globals", "vars", "__import__"))


def reached(tree: ast.Module, names: Iterable[str]) -> list[ast.stmt] | None:
    """The statements that the entry points need, in order; None if an entry point is not bound or can't be followed.

    A statement is kept if it binds a name that is needed, or changes a value that is needed: an attribute or an item is
    assigned, a method is called, or a function of the program that changes it, or changes its arguments, is called. The value
    may have another name, as in ``N = M`` and ``add = M.append``. A statement that only calls an entry point is an example of
    its use. Calls that configure a module (``sys.setrecursionlimit``) are kept; the guard of
    ``__main__`` never is.

    Args:
        tree: the program.
        names: the entry points.
    """
    try:
        text = ast.unparse(tree)
        parts = statements(parse(text), symtable.symtable(text, "program", "exec"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    entries = set(names)
    bound = set().union(*(part.binds for part in parts)) if parts else set()
    indirect = indirect_changes(parts)
    if not entries & bound and "*" not in bound and not any(changed & NAMESPACES for _, changed in indirect):
        return None
    functions = {name: part for part in parts if isinstance(part.node, DEFINITIONS) for name in part.binds}
    modules = {name for part in parts if isinstance(part.node, ast.Import | ast.ImportFrom) for name in part.binds}
    needed, kept = set(entries), set[int]()
    grown = True
    while grown:
        grown = False
        for number, part in enumerate(parts):
            if number in kept:
                continue
            called, changed = indirect[number]
            changes = changed & needed or changed & NAMESPACES
            if _is_needed(part, needed, entries, functions, modules) or (changes and not called & entries):
                kept.add(number)
                needed |= part.uses
                grown = True
        if needed & _DYNAMIC and not bound <= needed:  # names may be built at run time
            needed |= bound
            grown = True
    available = _BUILTINS.union(*(parts[number].binds for number in kept))
    for number, part in enumerate(parts):  # definitions that are not needed do no harm, if executing them runs nothing
        if number not in kept and _is_quiet(part.node) and part.calls - part.binds - _own(part.node) <= available:
            kept.add(number)
            available |= part.binds
    return [tree.body[number] for number in sorted(kept)]


def _is_quiet(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        calls = (isinstance(part, ast.Call | ast.Subscript | ast.Await) for part in ast.walk(node))
        return all(isinstance(target, ast.Name) for target in targets) and not any(calls)
    return isinstance(node, DEFINITIONS)


def _own(node: ast.stmt) -> set[str]:
    """The names that the body of a class binds for itself."""
    return (
        {name for part in node.body for name in bound_names(part, list(executed(part)))}
        if isinstance(node, ast.ClassDef)
        else set()
    )


def _is_needed(
    part: Statement, needed: set[str], entries: set[str], functions: dict[str, Statement], modules: set[str]
) -> bool:
    node = part.node
    if isinstance(node, ast.ImportFrom) and (node.module == "__future__" or node.names[0].name == "*"):
        return True
    if isinstance(node, ast.Assert | ast.Raise | ast.Return) or is_main_guard(node):
        return False
    if part.binds & needed:
        return True
    if isinstance(node, ast.Expr | ast.If | ast.For | ast.While | ast.With | ast.Try):
        called, changed = _called(part, functions)
        if called & entries:  # an example of use
            return isinstance(node, ast.Expr) and root(node.value) in entries and not _calls_directly(node.value, entries)
        if part.changes & needed or changed & needed or (part.changes | changed) & NAMESPACES:
            return True
        return bool(called & _BUILDERS) or (isinstance(node, ast.Expr) and _configures(node.value, modules))
    return bool(part.changes & needed or part.changes & NAMESPACES) or _sets_module(node, modules)


def _called(part: Statement, functions: dict[str, Statement]) -> tuple[set[str], set[str]]:
    """The names that a statement reads when it is executed, also through functions of the program, and what these change."""
    seen: set[str] = set()
    changed: set[str] = set()
    pending = set(part.calls)
    while pending:
        name = pending.pop()
        seen.add(name)
        if name in functions:
            changed |= functions[name].effects
            pending |= functions[name].uses - seen
    return seen, changed


def _calls_directly(node: ast.AST, entries: set[str]) -> bool:
    """Whether an expression calls an entry point itself, or passes one on, instead of changing its attributes."""
    direct = (
        isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in entries for part in ast.walk(node)
    )
    return any(direct) or sum(isinstance(part, ast.Name) and part.id in entries for part in ast.walk(node)) > 1


def _configures(node: ast.expr, modules: set[str]) -> bool:
    if not isinstance(node, ast.Call) or root(node) not in modules:
        return False
    last = node.func.attr if isinstance(node.func, ast.Attribute) else root(node)
    return last not in _NO_SETTINGS


def _sets_module(node: ast.stmt, modules: set[str]) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    return any(isinstance(target, ast.Attribute | ast.Subscript) and root(target) in modules for target in targets)
