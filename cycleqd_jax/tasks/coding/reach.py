"""What of a program its entry points need: everything that they reach is kept, and what only runs is left out."""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
from collections.abc import Iterable

from cycleqd_jax.tasks.coding.changes import indirect_changes
from cycleqd_jax.tasks.coding.statements import (
    DEFINITIONS,
    NAMESPACES,
    Statement,
    bound_names,
    executed,
    imported,
    is_main_guard,
    root,
    statements,
)
from cycleqd_jax.tasks.syntax import parse

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
        "call",
        "check_call",
        "check_output",
        "read",
        "readline",
        "readlines",
        "done",
        "Fire",
        "execv",
        "execvp",
        "show",
        "mainloop",
    ]
)
_BUILTINS = frozenset(dir(builtins)) | {"__name__"}
_WAITING = (ast.Await, ast.AsyncFor, ast.AsyncWith)
_INPUT = frozenset(("input",))
_PLAIN = (ast.Constant, ast.Name, ast.List, ast.Tuple, ast.Dict, ast.expr_context)  # they can't fail
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
    tree = ast.Module([node for node in tree.body if not _is_misplaced(node)], [])
    parts = _parts(tree)
    if parts is None:  # one of the statements is no Python, although it has a syntax tree
        tree = ast.Module([node for node in tree.body if _parts(ast.Module([node], [])) is not None], [])
        parts = _parts(tree)
    if parts is None:
        return None
    entries = set(names)
    bound = set().union(*(part.binds for part in parts)) if parts else set()
    modules = imported(tree)
    indirect = indirect_changes(parts, modules)
    if not entries & bound and "*" not in bound and not any(changed & NAMESPACES for _, changed in indirect):
        return None
    functions = {name: part for part in parts if isinstance(part.node, DEFINITIONS) for name in part.binds}
    available = {name for part in parts for name in part.binds & modules if _is_standard(part.node)}
    last = max((number for number, part in enumerate(parts) if part.binds & entries), default=len(parts))
    earlier = set().union(*(part.binds for part in parts[: last + 1])) - entries
    needed, kept = set(entries), set[int]()
    grown = True
    while grown:
        grown = False
        for number, part in enumerate(parts):
            if number in kept:
                continue
            called, changed = indirect[number]
            if number > last and called & (entries | _INPUT) and part.binds & needed <= earlier and not part.changes & entries:
                continue  # an example that uses a name again
            changes = changed & needed or changed & NAMESPACES
            settable = modules & (needed | available) | (_unbound(part, bound) if "*" in bound else set())
            if _is_needed(part, needed, entries, functions, settable) or (changes and not called & entries):
                kept.add(number)
                needed |= part.uses
                grown = True
        if needed & _DYNAMIC and not bound <= needed:  # names may be built at run time
            needed |= bound
            grown = True
    available = _BUILTINS.union(*(parts[number].binds for number in kept))
    for number, part in enumerate(parts):  # definitions that are not needed do no harm, if executing them runs nothing
        runs = indirect[number][0] | (part.uses if getattr(part.node, "decorator_list", ()) else set())
        quiet = number not in kept and _is_quiet(part.node) and not runs & entries
        if quiet and part.calls - part.binds - _own(part.node) <= available:
            kept.add(number)
            available |= part.binds
    return [tree.body[number] for number in sorted(kept)]


def _parts(tree: ast.Module) -> list[Statement] | None:
    try:
        text = ast.unparse(tree)
        return statements(parse(text), symtable.symtable(text, "program", "exec"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_misplaced(node: ast.stmt) -> bool:
    """Whether a statement contains ``await`` in a function that is not asynchronous, or ``return`` in a class."""
    for part in ast.walk(node):
        wrong = {ast.FunctionDef: _WAITING, ast.ClassDef: (*_WAITING, ast.Return, ast.Yield)}.get(type(part), ())
        if wrong and any(isinstance(inner, wrong) for line in getattr(part, "body", ()) for inner in executed(line)):
            return True
    return False


def _is_quiet(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        plain = node.value is None or all(isinstance(part, _PLAIN) for part in ast.walk(node.value))
        return all(isinstance(target, ast.Name) for target in targets) and plain
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
    if isinstance(node, ast.If) and is_main_guard(node):  # the name is never that of the main module
        return any(isinstance(child, ast.Name) and child.id in needed for other in node.orelse for child in ast.walk(other))
    if isinstance(node, ast.Raise | ast.Return):
        return False
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # the first may be the docstring
        return "__doc__" in needed
    if part.binds & needed:
        return True
    if isinstance(node, ast.Assert):
        return bool(part.changes & needed) and not part.calls & entries
    if isinstance(node, ast.Expr | ast.If | ast.For | ast.While | ast.With | ast.Try):
        called, changed = _called(part, functions)
        if called & entries:  # an example of use, or an attribute of the function
            return bool(part.changes & entries) and not _calls_directly(node, entries) and not _uses(called, entries, functions)
        if part.changes & needed or changed & needed or (part.changes | changed) & NAMESPACES:
            return True
        return bool(called & _BUILDERS) or (isinstance(node, ast.Expr) and _configures(node.value, modules))
    if part.calls & entries and not part.changes & entries:  # the result of an example
        return False
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
    """Whether a statement calls an entry point itself, or passes one on, instead of using its attributes."""
    names = sum(isinstance(part, ast.Name) and part.id in entries for part in executed(node))
    owners = [part.value for part in executed(node) if isinstance(part, ast.Attribute)]
    owners += [
        part.args[0] for part in executed(node) if isinstance(part, ast.Call) and root(part.func) == "setattr" and part.args
    ]
    return names > sum(isinstance(value, ast.Name) and value.id in entries for value in owners)


def _uses(called: set[str], entries: set[str], functions: dict[str, Statement]) -> bool:
    """Whether one of the called functions of the program reads an entry point."""
    return any(functions[name].uses & entries for name in called - entries if name in functions)


def _is_standard(node: ast.stmt) -> bool:
    """Whether an import is one of the standard library, which is always there."""
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").partition(".")[0] in sys.stdlib_module_names
    return isinstance(node, ast.Import) and all(a.name.partition(".")[0] in sys.stdlib_module_names for a in node.names)


def _unbound(part: Statement, bound: set[str]) -> set[str]:
    """The names that a statement may get from an import of ``*``."""
    return part.calls - bound - _BUILTINS


def _configures(node: ast.expr, modules: set[str]) -> bool:
    if not isinstance(node, ast.Call) or root(node) not in modules:
        return False
    attributes = {part.attr for part in ast.walk(node.func) if isinstance(part, ast.Attribute)} or {root(node)}
    reads = any(isinstance(part, ast.Name) and part.id in _INPUT for part in ast.walk(node))
    return _NO_SETTINGS.isdisjoint(attributes) and not reads


def _sets_module(node: ast.stmt, modules: set[str]) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    return any(isinstance(target, ast.Attribute | ast.Subscript) and root(target) in modules for target in targets)
