"""What of a program its entry points need: everything that they reach is kept, and what only runs is left out."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import symtable
from collections.abc import Iterable, Iterator

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
_SETTERS = frozenset(("setattr", "delattr", "map", "next"))  # change their first argument, or call its method
_BUILTINS = frozenset(dir(builtins)) | {"__name__"}
_BUILDERS = frozenset(("exec",))  # may bind any name
_NAMESPACES = frozenset(("globals", "locals", "vars", "builtins", "__builtins__"))  # a change of them may bind any name
_DYNAMIC = frozenset(("eval", "exec", "globals", "vars", "__import__"))


@dataclasses.dataclass
class _Statement:
    """A statement at the top level of a program.

    Attributes:
        node: its syntax tree.
        binds: the names that it binds in the module.
        uses: the names of the module that it reads, in any function or at once.
        calls: the names that it reads at once, when it is executed.
        changes: the names whose values it may change at once.
        effects: the names that the bodies of its functions change.
    """

    node: ast.stmt
    binds: set[str]
    uses: set[str]
    calls: set[str]
    changes: set[str]
    effects: set[str]


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
        parts = _statements(parse(text), symtable.symtable(text, "program", "exec"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    entries = set(names)
    bound = set().union(*(part.binds for part in parts)) if parts else set()
    indirect = _indirect_changes(parts)
    if not entries & bound and "*" not in bound and not any(changed & _NAMESPACES for _, changed in indirect):
        return None
    functions = {name: part for part in parts if isinstance(part.node, _DEFINITIONS) for name in part.binds}
    modules = {name for part in parts if isinstance(part.node, ast.Import | ast.ImportFrom) for name in part.binds}
    needed, kept = set(entries), set[int]()
    grown = True
    while grown:
        grown = False
        for number, part in enumerate(parts):
            if number in kept:
                continue
            called, changed = indirect[number]
            changes = changed & needed or changed & _NAMESPACES
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
    return isinstance(node, _DEFINITIONS)


def _own(node: ast.stmt) -> set[str]:
    """The names that the body of a class binds for itself."""
    return (
        {name for part in node.body for name in _bound(part, list(_executed(part)))}
        if isinstance(node, ast.ClassDef)
        else set()
    )


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _is_needed(
    part: _Statement, needed: set[str], entries: set[str], functions: dict[str, _Statement], modules: set[str]
) -> bool:
    node = part.node
    if isinstance(node, ast.ImportFrom) and (node.module == "__future__" or node.names[0].name == "*"):
        return True
    if isinstance(node, ast.Assert | ast.Raise | ast.Return) or _is_main_guard(node):
        return False
    if part.binds & needed:
        return True
    if isinstance(node, ast.Expr | ast.If | ast.For | ast.While | ast.With | ast.Try):
        called, changed = _called(part, functions)
        if called & entries:  # an example of use
            return isinstance(node, ast.Expr) and _root(node.value) in entries and not _calls_directly(node.value, entries)
        if part.changes & needed or changed & needed or (part.changes | changed) & _NAMESPACES:
            return True
        return bool(called & _BUILDERS) or (isinstance(node, ast.Expr) and _configures(node.value, modules))
    return bool(part.changes & needed or part.changes & _NAMESPACES) or _sets_module(node, modules)


def _called(part: _Statement, functions: dict[str, _Statement]) -> tuple[set[str], set[str]]:
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


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and any(
        isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)
    )


def _root(node: ast.AST) -> str:
    """The name at the start of ``a.b[c](d).e``, without the arguments; "globals" for a module of ``sys.modules``."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred | ast.Await):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "modules":
            return "globals"
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _calls_directly(node: ast.AST, entries: set[str]) -> bool:
    """Whether an expression calls an entry point itself, or passes one on, instead of changing its attributes."""
    direct = (
        isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in entries for part in ast.walk(node)
    )
    return any(direct) or sum(isinstance(part, ast.Name) and part.id in entries for part in ast.walk(node)) > 1


def _configures(node: ast.expr, modules: set[str]) -> bool:
    if not isinstance(node, ast.Call) or _root(node) not in modules:
        return False
    last = node.func.attr if isinstance(node.func, ast.Attribute) else _root(node)
    return last not in _NO_SETTINGS


def _sets_module(node: ast.stmt, modules: set[str]) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    return any(isinstance(target, ast.Attribute | ast.Subscript) and _root(target) in modules for target in targets)


# --------------------------------------------------------------------------------------------------------------------
# Changes through other names, arguments and functions that are passed on

_RUNNING = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.If, ast.For, ast.While, ast.With, ast.Try)
_MOST_ROUNDS = 5  # of functions that pass an argument on to a function that changes it


def _indirect_changes(parts: list[_Statement]) -> list[tuple[set[str], set[str]]]:
    """For each statement, the names that it reads when it is executed, and the names whose values it may change.

    Functions are followed, also lambdas and those that are passed to a call. Empty for statements that are never kept for
    what they change.
    """
    at_once = [list(_executed(part.node)) for part in parts]
    bodies = [list(ast.walk(part.node)) for part in parts]
    defined = [number for number, part in enumerate(parts) if isinstance(part.node, _DEFINITIONS) or _is_lambda(part.node)]
    changers = _changers([parts[number] for number in defined])
    functions = {name: number for number in defined for name in parts[number].binds}
    holders = {name: number for number, part in enumerate(parts) if _passes(part.node, set(functions)) for name in part.binds}
    aliases = _aliases([node for nodes in at_once for node in nodes], changers)
    effects: dict[int, set[str]] = {}
    for number in {*functions.values(), *holders.values()}:
        changed = {*_changed(bodies[number]), *_changed_by_calls(bodies[number], changers, aliases)}
        changed.update(*(_methods(node.value) for node in [parts[number].node] if isinstance(node, ast.Assign)))
        effects[number] = _closure(changed, _aliases(bodies[number])) & parts[number].uses
    functions = holders | functions
    found = []
    for part, nodes in zip(parts, at_once, strict=True):
        called, changed = set[str](), set[str]()
        if isinstance(part.node, _RUNNING) and not _is_main_guard(part.node):
            changed = part.changes.union(_changed_by_calls(nodes, changers, aliases))
            pending = set(part.calls)
            while pending:
                name = pending.pop()
                called.add(name)
                if name in functions:
                    changed |= effects[functions[name]]
                    pending |= parts[functions[name]].uses - called
        found.append((called, _closure(changed, aliases)))
    return found


def _is_lambda(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)


def _passes(node: ast.stmt, functions: set[str]) -> bool:
    """Whether the value of an assignment is a call that gets a function, a method or a lambda, as ``Thread(target=fill)``."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
        return False
    has_lambda = any(isinstance(part, ast.Lambda) for part in ast.walk(node.value))
    return has_lambda or bool(_passed(node.value) & functions or _methods(node.value))


def _methods(value: ast.expr) -> set[str]:
    """The names whose attributes, which may be methods, are arguments of a call."""
    arguments = [*value.args, *(keyword.value for keyword in value.keywords)] if isinstance(value, ast.Call) else []
    return {_root(argument) for argument in arguments if isinstance(argument, ast.Attribute)}


def _passed(call: ast.Call) -> set[str]:
    """The names in the arguments of a call."""
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    return {part.id for argument in arguments for part in ast.walk(argument) if isinstance(part, ast.Name)}


def _changers(parts: list[_Statement]) -> set[str]:
    """The names of functions and classes that change an argument."""
    bodies: list[tuple[str, set[str], list[ast.AST]]] = []
    for part in parts:
        for node in ast.walk(part.node):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                every = every[1:] if isinstance(part.node, ast.ClassDef) else every  # without self
                bodies += [(name, {argument.arg for argument in every}, list(ast.walk(node))) for name in part.binds]
        if isinstance(part.node, ast.ClassDef):  # what one method keeps of its arguments, another may change
            own = [body for name, _, body in bodies if name == part.node.name]
            given = set[str]().union(*(names for name, names, _ in bodies if name == part.node.name))
            bodies.append((part.node.name, given, [node for body in own for node in body]))
    found: set[str] = set()
    for _ in range(_MOST_ROUNDS):
        known = len(found)
        for name, parameters, nodes in bodies:
            if name not in found:
                changed = {*_changed(nodes), *_changed_by_calls(nodes, found, {})}
                if parameters & _closure(changed, _aliases(nodes)):
                    found.add(name)
        if len(found) == known:
            break
    return found


def _changed_by_calls(nodes: Iterable[ast.AST], changers: set[str], aliases: dict[str, set[str]]) -> Iterator[str]:
    """The arguments of functions that change theirs, and the names of methods that are called under another name."""
    for part in nodes:
        if isinstance(part, ast.Call):
            passed = _passed(part)
            if _root(part.func) in changers or passed & changers:
                yield from passed
            if isinstance(part.func, ast.Name) and part.func.id in aliases:
                yield part.func.id


def _aliases(nodes: Iterable[ast.AST], changers: Iterable[str] = ()) -> dict[str, set[str]]:
    """For each name, the names of which it may hold the value, a part or a method; ``changers`` are called for an object."""
    found: dict[str, set[str]] = {}
    for part in nodes:
        pairs: list[tuple[ast.expr, ast.expr]] = []
        if isinstance(part, ast.Assign):
            pairs = [(target, part.value) for target in part.targets]
        elif isinstance(part, ast.AnnAssign | ast.NamedExpr) and part.value is not None:
            pairs = [(part.target, part.value)]
        for target, value in pairs:
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
                pairs += zip(target.elts, value.elts, strict=True)
            elif isinstance(target, ast.Name) and isinstance(value, ast.Name | ast.Attribute | ast.Subscript):
                found.setdefault(target.id, set()).add(_root(value))
            elif isinstance(target, ast.Attribute) and isinstance(value, ast.Name):
                found.setdefault(_root(target), set()).add(value.id)
            elif isinstance(target, ast.Name) and isinstance(value, ast.Call):
                if _root(value) in _NAMESPACES:
                    found.setdefault(target.id, set()).add(_root(value))
                elif _root(value) in changers:
                    found.setdefault(target.id, set()).update(_passed(value))
        if isinstance(part, ast.For | ast.AsyncFor | ast.comprehension):
            sources = {node.id for node in ast.walk(part.iter) if isinstance(node, ast.Name)}
            for node in ast.walk(part.target):
                if isinstance(node, ast.Name):
                    found.setdefault(node.id, set()).update(sources)
    return found


def _closure(names: set[str], aliases: dict[str, set[str]]) -> set[str]:
    """The names, and all of which they are aliases."""
    found, pending = set[str](), set(names)
    while pending:
        name = pending.pop()
        found.add(name)
        pending |= aliases.get(name, set()) - found
    return found


# --------------------------------------------------------------------------------------------------------------------
# Names


def _statements(tree: ast.Module, table: symtable.SymbolTable) -> list[_Statement]:
    found = []
    for node in tree.body:
        first = min([node.lineno, *(part.lineno for part in getattr(node, "decorator_list", ()))])
        tables = [child for child in table.get_children() if first <= child.get_lineno() <= (node.end_lineno or first)]
        inner = set().union(*map(_globals_of, tables)) if tables else set()
        at_once = list(_executed(node))
        loads = {part.id for part in at_once if isinstance(part, ast.Name)}
        found.append(
            _Statement(
                node, set(_bound(node, at_once)), inner | loads, loads, set(_changed(at_once)), set(_changed(ast.walk(node)))
            )
        )
    return found


def _globals_of(table: symtable.SymbolTable) -> set[str]:
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return own.union(*map(_globals_of, table.get_children()))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are executed with a statement: all but the bodies of functions."""
    pending = [node]
    while pending:
        part = pending.pop()
        yield part
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = part.args
            pending += [
                *part.decorator_list,
                *arguments.defaults,
                *filter(None, arguments.kw_defaults),
                *filter(None, [part.returns]),
            ]
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            pending += [argument.annotation for argument in every if argument is not None and argument.annotation is not None]
        elif isinstance(part, ast.Lambda):
            pending += [*part.args.defaults, *filter(None, part.args.kw_defaults)]
        else:
            pending += ast.iter_child_nodes(part)


def _bound(node: ast.stmt, at_once: list[ast.AST]) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):  # the names in its body are its own
        yield node.name
        return
    for part in at_once:
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store | ast.Del):
            yield part.id
        elif isinstance(part, _DEFINITIONS):
            yield part.name
        elif isinstance(part, ast.alias):
            yield part.asname or part.name.partition(".")[0]
        elif isinstance(part, ast.ExceptHandler) and part.name:
            yield part.name


def _changed(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for part in nodes:
        if isinstance(part, ast.Attribute | ast.Subscript) and isinstance(part.ctx, ast.Store | ast.Del):
            yield _root(part)
        elif isinstance(part, ast.AugAssign):
            yield _root(part.target)
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute):
            yield _root(part.func)
        elif isinstance(part, ast.Call) and part.args and _root(part.func) in _SETTERS:
            yield _root(part.args[0])
        elif isinstance(part, ast.Global):
            yield from part.names
