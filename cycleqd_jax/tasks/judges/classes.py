"""The classes that exist before a program runs: which of their operators a judge may trust. Runs in the sandbox.

A class of the standard library that is written in Python is trusted if everything its operators use is unchanged: the members
of the class, the code of its functions and the global names in that code. Of the classes written in C, only ``_OPENED`` are
trusted. A class of the program may derive from them if it defines no name that the operators use. The values that an object
holds are checked in turn, because its operators may compare them.
"""

import builtins
import gc
import re
import sys
import types
import unittest
import unittest.mock
import weakref

from cycleqd_jax.tasks.judges.equality import DECIDING, NATIVE_IDS, changed, functions_of, remember

__all__ = ["Existing", "acting", "snapshot"]

# Classes in C whose operators compare values that they hold. A weakref.proxy is not one of them.
_OPENED = (
    types.SimpleNamespace, types.MappingProxyType, types.GenericAlias, types.UnionType, types.MethodType,
    types.BuiltinFunctionType, type([].__len__), types.CodeType, types.CellType, slice, memoryview, re.Pattern, weakref.ref,
)  # fmt: skip
# Methods that operators call without naming them.
_IMPLICIT = (
    "__iter__", "__next__", "__len__", "__getitem__", "__hash__", "__bool__", "__str__", "__int__", "__index__", "__float__",
    "__getattribute__", "__getattr__", "__class__", "__instancecheck__",
)  # fmt: skip
_UNCHECKED = ("_", "__warningregistry__", "__annotations__", "__slotnames__")
_ANY = type(unittest.mock.ANY)
_PROXY = unittest.mock.MagicProxy
_MOCK_CLASSES = tuple(
    getattr(unittest.mock, name)
    for name in ("NonCallableMock", "NonCallableMagicMock", "Mock", "MagicMock", "AsyncMock", "PropertyMock")
)
# The functions of mocks, which neither an object nor its class may override.
_MOCK_NAMES = {
    name
    for kind in _MOCK_CLASSES
    for base in kind.__mro__[:-1]
    for name, member in vars(base).items()
    if callable(member) or isinstance(member, property)
}
_MOCKS = [vars(unittest.mock)] + [vars(m) for m in vars(unittest.mock).values() if type(m) is type]
_MOCKS += [m for m in vars(unittest.mock).values() if type(m) is dict and m is not vars(builtins)]
_bases_of = type.__dict__["__mro__"].__get__
_parents_of = type.__dict__["__bases__"].__get__
_members_of = type.__dict__["__dict__"].__get__
_state_of = vars(unittest.mock.Base)["__dict__"].__get__
_referents, _referent = gc.get_referents, weakref.ref.__call__


def acting(member):
    """Whether a member is a function, a class, a descriptor or another callable."""
    return callable(member) or hasattr(type(member), "__get__")


def snapshot(namespaces):
    """The acting members of classes and modules, and the code of their functions, for :func:`changed`."""
    return remember(namespaces, lambda name, member: acting(member) and name not in _UNCHECKED)


class Existing:
    """The classes that exist now whose operators are neither built-in nor those of ``object``."""

    def __init__(self):
        self.classes, pending = {}, [object]
        while pending:
            for kind in type.__subclasses__(pending.pop()):
                if id(kind) not in self.classes:
                    self.classes[id(kind)] = kind, _watched(kind)  # the class stays alive, so that its id is not reused
                    pending.append(kind)
        self.mocks = snapshot(_MOCKS)

    def opened(self, item):
        """The values that the operators of ``item`` may compare; None if its class is unknown or changed."""
        kind = type(item)
        if any(parent is mock for parent in _parents_of(kind) for mock in _MOCK_CLASSES):
            return self._mock(item, kind)
        now = _bases_of(kind)
        place = next((place for place, base in enumerate(now) if id(base) in self.classes), len(now) - 1)
        bases, names, members, codes = self.classes.get(id(now[place]), (None, (None, (), (), ())))[1]
        if bases is None or len(bases) != len(now) - place or any(a is not b for a, b in zip(bases, now[place:], strict=True)):
            return None
        if any(not names.isdisjoint(_members_of(base)) for base in now[:place]):  # a class of the program
            return None
        if any(space.get(name) is not member for space, name, member in members):
            return None
        if any(f.__code__ is not code or f.__defaults__ is not defaults for f, code, defaults in codes):
            return None
        if weakref.ref in bases:
            return [_referent(item)]
        return [value for value in _referents(item) if value is not kind]

    def _mock(self, item, kind):
        # Each mock has a class of its own, whose operators are those of all mocks until they are set.
        parents = _parents_of(kind)
        if len(parents) != 1 or not any(parents[0] is mock for mock in _MOCK_CLASSES) or changed(self.mocks):
            return None
        own, state = _members_of(kind), _state_of(item)
        if any(name in _MOCK_NAMES or name == "__getattribute__" for name in (*own, *state)):
            return None
        operators = [own[name] for name in DECIDING if own.get(name) is not None]
        if any(type(member) is not _PROXY or member.parent is not item for member in operators):
            return None
        return [state.get("_mock_wraps")]


def _watched(kind):
    """The bases, names, members and codes that the operators of a class use; no bases if the class is not trusted."""
    bases, names, members, codes = _bases_of(kind), set(), [], []
    pending = [*DECIDING, *_IMPLICIT]
    foreign = [base for base in bases if id(base) not in NATIVE_IDS]
    defining = [(b, _members_of(b)[n]) for b in foreign for n in DECIDING if n in _members_of(b)]
    if not defining:
        return bases, {*pending}, [], []
    if kind is _ANY or any(type(m) is not types.FunctionType and m is not None and not _is_opened(b) for b, m in defining):
        return None, set(), [], []
    while pending:
        name = pending.pop()
        if name in names:
            continue
        names.add(name)
        for base in foreign:
            member = _members_of(base).get(name)
            members.append((_members_of(base), name, member))
            for function in functions_of(member):
                used = _names(function.__code__)
                codes.append((function, function.__code__, function.__defaults__))
                members.extend((function.__globals__, n, function.__globals__.get(n)) for n in used)
                pending.extend(used)
    return bases, names, members, codes


def _is_opened(kind):
    return any(kind is one for one in _OPENED) or kind is getattr(sys.modules.get("sqlite3"), "Row", None)


def _names(code):
    """The names of attributes and global variables in a code object and the ones inside it."""
    inner = [const for const in code.co_consts if type(const) is types.CodeType]
    return set(code.co_names).union(*map(_names, inner))
