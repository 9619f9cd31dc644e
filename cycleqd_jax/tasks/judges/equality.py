"""Refuses values with operators of their own, for judges that compare in the program's process. Runs in the sandbox."""

import array
import collections
import datetime
import decimal
import fractions
import functools
import types

__all__ = ["DECIDING", "NATIVE_IDS", "Forged", "changed", "functions_of", "plain", "remember", "remember_check"]


class Forged(Exception):
    """A value has operators of its own."""


# The operators that asserts use must be defined by these classes, not by a class of the program.
NATIVE = (
    object, type, int, float, complex, bool, str, bytes, bytearray, range, list, tuple, set, frozenset, dict, type({}.keys()),
    type({}.items()), collections.deque, collections.OrderedDict, collections.defaultdict, array.array, decimal.Decimal,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
)  # fmt: skip
# Classes of the standard library that are written in Python and can be patched, hence the copies of their members.
WRITTEN = {kind: dict(vars(kind)) for kind in (collections.Counter, fractions.Fraction)}
CODES = [(m, m.__code__) for members in WRITTEN.values() for m in members.values() if type(m) is types.FunctionType]
DECIDING = (
    "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__", "__add__", "__radd__", "__sub__", "__rsub__",
    "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__floordiv__", "__rfloordiv__", "__mod__", "__rmod__", "__pow__",
    "__rpow__", "__and__", "__rand__", "__or__", "__ror__", "__xor__", "__rxor__", "__neg__", "__pos__", "__invert__",
    "__abs__", "__round__",
)  # fmt: skip
# Classes are compared by identity: a metaclass may define equality, hash and attributes of its own.
NATIVE_IDS = frozenset(map(id, NATIVE))
LEAVES = frozenset(map(id, (int, float, str, bool, type(None), complex, bytes, range, types.FunctionType)))
ITERATED = {
    id(kind): kind.__iter__ for kind in (list, tuple, set, frozenset, collections.deque, type({}.keys()), type({}.items()))
}
FRACTION = fractions.Fraction
WRAPPERS = (property, classmethod, staticmethod, functools.cached_property)
bases_of = type.__dict__["__mro__"].__get__
members_of = type.__dict__["__dict__"].__get__


def plain(value, opened=lambda item: None):
    """Returns ``value`` if neither it nor any value in it has operators of its own.

    Args:
        value: any value.
        opened: called with a value whose class has operators that no known class defines. Returns the values that these
            operators may compare, or None to refuse the value.

    Raises:
        Forged: an operator is defined by a class of the program, ``unittest.mock.ANY``, a patched class, a proxy or the like.
    """
    pending, seen = [value], {}
    while pending:
        item = pending.pop()
        kind = type(item)
        if id(kind) in LEAVES or id(item) in seen:
            continue
        seen[id(item)] = item  # keeps the item alive, so that its id is not reused
        bases = bases_of(kind)
        if id(kind) not in NATIVE_IDS and not is_pristine(kind):
            for name in DECIDING:
                base = next((base for base in bases if name in members_of(base)), object)
                if id(base) not in NATIVE_IDS:
                    hidden = opened(item)
                    if hidden is None:
                        raise Forged(f"the result defines its own {name}")
                    pending.extend(hidden)
                    break
        pending.extend(contents(item, bases))
    return value


def is_pristine(kind):
    """Whether a class is one of the ``WRITTEN`` classes and unchanged."""
    members = next((members for written, members in WRITTEN.items() if written is kind), None)
    if members is None or any(method.__code__ is not code for method, code in CODES):
        return False
    current = members_of(kind)
    return len(current) == len(members) and all(current.get(name) is member for name, member in members.items())


def contents(item, bases):
    """The values that the equality of ``item`` compares."""
    for base in bases:
        if base is dict:
            return [*dict.keys(item), *dict.values(item)]
        if id(base) in ITERATED:
            return ITERATED[id(base)](item)
        if base is FRACTION:
            return [item._numerator, item._denominator]
    return ()


def functions_of(member):
    """The Python functions of a member of a class: itself, or those of a property, class method or cached property."""
    if type(member) is types.FunctionType:
        return [member]
    parts = [getattr(member, name, None) for name in ("fget", "__func__", "func")] if type(member) in WRAPPERS else []
    return [part for part in parts if type(part) is types.FunctionType]


def remember(spaces, keeps):
    """What names are bound to now, and the code of the functions among these values, for :func:`changed`.

    Args:
        spaces: dictionaries, or members of classes.
        keeps: whether a name and its value are remembered.
    """
    members = [(space, {n: m for n, m in dict(space).items() if keeps(n, m)}) for space in spaces]
    functions = {id(f): f for _, group in members for m in group.values() for f in functions_of(m)}
    return members, [(f, f.__code__, f.__defaults__) for f in functions.values()]


def remember_check(*spaces):
    """Every value that :func:`plain` uses, with the items of its tables, and every value of ``spaces``."""
    tables = [value for name, value in globals().items() if type(value) is dict and name != "__builtins__"]
    return remember([globals(), *tables, *spaces], lambda name, value: True)


def changed(before, any=any):
    """Whether a remembered name is bound to another value, or a remembered function has other code.

    Args:
        before: of :func:`remember`.
        any: the built-in, which a program may replace later.
    """
    members, codes = before
    if any(space.get(name) is not member for space, group in members for name, member in group.items()):
        return True
    return any(f.__code__ is not code or f.__defaults__ is not defaults for f, code, defaults in codes)
