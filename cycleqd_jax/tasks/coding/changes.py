"""Which values a statement may change through other names, arguments and functions that are passed on."""

from __future__ import annotations

import ast
from collections.abc import Container, Iterable, Iterator

from cycleqd_jax.tasks.coding.statements import DEFINITIONS, NAMESPACES, Statement, changed_names, executed, is_main_guard, root

__all__ = ["indirect_changes"]

# Statements that may call something: a definition does in its decorators, defaults, base classes and the body of a class.
_RUNNING = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.If, ast.For, ast.While, ast.With, ast.Try, *DEFINITIONS)
_MOST_ROUNDS = 5  # of functions that pass an argument on to a function that changes it


def indirect_changes(parts: list[Statement], modules: set[str]) -> list[tuple[set[str], set[str]]]:
    """For each statement, the names that it reads when it is executed, and the names whose values it may change.

    The search follows calls into functions of the program, lambdas and arguments that are functions. Both sets are empty for
    a statement that can't change a value.
    """
    at_once = [list(executed(part.node)) for part in parts]
    bodies = [list(ast.walk(part.node)) for part in parts]
    defined = [number for number, part in enumerate(parts) if isinstance(part.node, DEFINITIONS) or _is_lambda(part.node)]
    changers = _changers([parts[number] for number in defined])
    functions = {name: number for number in defined for name in parts[number].binds}
    holders = {name: number for number, part in enumerate(parts) if _passes(part.node, set(functions)) for name in part.binds}
    aliases = _aliases([node for nodes in at_once for node in nodes], changers, modules)
    effects: dict[int, set[str]] = {}
    for number in {*functions.values(), *holders.values()}:
        changed = {*changed_names(bodies[number], modules), *_changed_by_calls(bodies[number], changers, aliases)}
        changed.update(*(_methods(node.value) for node in [parts[number].node] if isinstance(node, ast.Assign)))
        effects[number] = _closure(changed, _aliases(bodies[number])) & parts[number].uses
    functions = holders | functions
    found = []
    for part, nodes in zip(parts, at_once, strict=True):
        called, changed = set[str](), set[str]()
        if isinstance(part.node, _RUNNING) and not is_main_guard(part.node):
            changed = part.changes.union(_changed_by_calls(nodes, changers, aliases))
            pending = set(part.calls)
            while pending:
                name = pending.pop()
                called.add(name)
                pending |= {other for other in aliases.get(name, ()) if other in functions} - called
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
    return {root(argument) for argument in arguments if isinstance(argument, ast.Attribute)}


def _passed(call: ast.Call) -> set[str]:
    """The names in the arguments of a call."""
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    return {part.id for argument in arguments for part in ast.walk(argument) if isinstance(part, ast.Name)}


def _changers(parts: list[Statement]) -> set[str]:
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
                changed = {*changed_names(nodes), *_changed_by_calls(nodes, found, {})}
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
            if root(part.func) in changers or passed & changers:
                yield from passed
            if isinstance(part.func, ast.Name) and part.func.id in aliases:
                yield part.func.id


def _aliases(nodes: Iterable[ast.AST], changers: Iterable[str] = (), modules: Container[str] = ()) -> dict[str, set[str]]:
    """For each name, the names of which it may hold the value, a part or a method.

    Args:
        nodes: parts of a program.
        changers: functions and classes that change an argument; the objects that they return may hold it.
        modules: names of modules, which may return a part of theirs, such as ``decimal.getcontext()``.
    """
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
                found.setdefault(target.id, set()).add(root(value))
            elif isinstance(target, ast.Attribute) and isinstance(value, ast.Name):
                found.setdefault(root(target), set()).add(value.id)
            elif isinstance(target, ast.Name) and isinstance(value, ast.Call):
                function = value.func.attr if isinstance(value.func, ast.Attribute) else ""
                if root(value) in NAMESPACES or (root(value) in modules and function.startswith("get")):
                    found.setdefault(target.id, set()).add(root(value))
                elif root(value) in changers:
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
