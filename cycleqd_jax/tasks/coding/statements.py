"""The statements of a program, and the names of its module that each of them binds, reads and changes."""

from __future__ import annotations

import ast
import dataclasses
import re
import symtable
from collections.abc import Container, Iterable, Iterator

__all__ = [
    "DEFINITIONS",
    "NAMESPACES",
    "Statement",
    "bound_names",
    "changed_names",
    "executed",
    "imported",
    "is_main_guard",
    "root",
    "statements",
]

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
NAMESPACES = frozenset(("globals", "locals", "vars", "builtins", "__builtins__"))  # a change of them may bind any name
_SETTERS = frozenset(("setattr", "delattr", "map", "next"))  # change their first argument, or call its method
_KINDS = frozenset(("list", "dict", "set", "bytearray", "object", "deque", "OrderedDict", "defaultdict", "Counter"))
# Calls of a module that set something in it, when they are part of a larger statement.
_SETTING = re.compile(
    r"(?:set|reset|add|register|filter|simplefilter|configure|reconfigure|basic|seed|install|append|extend|insert|update|"
    r"remove|enable|disable|put|stack_size|tzset)"
)
# Methods that change their object when they are passed on, as in ``filter(seen.add, items)``.
_CHANGING = frozenset(
    ["append", "appendleft", "add", "extend", "insert", "update", "setdefault", "put", "push", "pop", "remove", "discard"]
)


@dataclasses.dataclass
class Statement:
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


def statements(tree: ast.Module, table: symtable.SymbolTable) -> list[Statement]:
    """The statements at the top level of a program, with the symbols of the same text."""
    found = []
    modules = imported(tree)
    for node in tree.body:
        first = min([node.lineno, *(part.lineno for part in getattr(node, "decorator_list", ()))])
        tables = [child for child in table.get_children() if first <= child.get_lineno() <= (node.end_lineno or first)]
        inner = set().union(*map(_globals_of, tables)) if tables else set()
        at_once = list(executed(node))
        loads = {part.id for part in at_once if isinstance(part, ast.Name)}
        found.append(
            Statement(
                node,
                set(bound_names(node, at_once)),
                inner | loads,
                loads,
                set(changed_names(at_once, modules)),
                set(changed_names(ast.walk(node), modules)),
            )
        )
    return found


def imported(tree: ast.Module) -> set[str]:
    """The names that the imports at the top level of a program bind."""
    nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name.partition(".")[0] for node in nodes for alias in node.names}


def _globals_of(table: symtable.SymbolTable) -> set[str]:
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return own.union(*map(_globals_of, table.get_children()))


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are executed with a statement: all but the bodies of functions; those of lambdas that a call gets are."""
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
        if isinstance(part, ast.Call):
            given = (part.func, *part.args, *(keyword.value for keyword in part.keywords))
            pending += [function.body for function in given if isinstance(function, ast.Lambda)]


def bound_names(node: ast.stmt, at_once: list[ast.AST]) -> Iterator[str]:
    """The names that a statement binds, of the nodes that are executed with it."""
    if isinstance(node, ast.ClassDef):  # the names in its body are its own
        yield node.name
        return
    for part in at_once:
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store | ast.Del):
            yield part.id
        elif isinstance(part, DEFINITIONS):
            yield part.name
        elif isinstance(part, ast.alias):
            yield part.asname or part.name.partition(".")[0]
        elif isinstance(part, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and part.name:
            yield part.name
        elif isinstance(part, ast.MatchMapping) and part.rest:
            yield part.rest


def changed_names(nodes: Iterable[ast.AST], modules: Container[str] = ()) -> Iterator[str]:
    """The names whose values are changed: an item is assigned, or a method is called, also by an operator.

    Args:
        nodes: parts of a program.
        modules: names of modules, which most calls of their functions do not change.
    """
    for part in nodes:
        if isinstance(part, ast.Attribute | ast.Subscript) and isinstance(part.ctx, ast.Store | ast.Del):
            yield root(part)
        elif isinstance(part, ast.AugAssign):
            yield root(part.target)
        elif isinstance(part, ast.Call):
            yield from _changed_by_call(part, modules)
        elif isinstance(part, ast.Global):
            yield from part.names
        elif isinstance(part, DEFINITIONS):  # ``@table.add`` calls a method
            yield from (root(decorator) for decorator in part.decorator_list if isinstance(decorator, ast.Attribute))
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.BinOp):  # ``table << item``, a method of an operator
            yield from (operand.id for operand in ast.walk(part.value) if isinstance(operand, ast.Name))


def _changed_by_call(call: ast.Call, modules: Container[str]) -> Iterator[str]:
    name = root(call.func)
    if isinstance(call.func, ast.Attribute) and (name not in modules or _SETTING.match(call.func.attr)):
        yield name
    if call.args and (name in _SETTERS or (name in _KINDS and isinstance(call.func, ast.Attribute))):
        yield root(call.args[0])
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    for argument in arguments:
        if isinstance(argument, ast.Attribute) and argument.attr in _CHANGING:
            yield root(argument)


def root(node: ast.AST) -> str:
    """The name at the start of ``a.b[c](d).e``, without the arguments; "globals" for a module of ``sys.modules``."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred | ast.Await):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "modules":
            return "globals"
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_main_guard(node: ast.stmt) -> bool:
    """Whether a statement begins with ``if __name__ == ...``; what it does otherwise is not looked at."""
    if not isinstance(node, ast.If):
        return False
    parts = list(ast.walk(node.test))
    differs = isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.NotEq)
    return not differs and any(isinstance(part, ast.Name) and part.id == "__name__" for part in parts)
