"""Which values compare as data: the guard of judges that have to compare in the program's own process. Runs in the sandbox."""

import array
import collections
import datetime
import decimal
import fractions
import types

__all__ = ["DECIDING", "Forged", "plain"]


class Forged(Exception):
    """A value that decides itself what it is equal to."""


# What asserts do with a value has to be done by these classes, not by the program's.
NATIVE = (
    object, type, int, float, complex, bool, str, bytes, bytearray, range, list, tuple, set, frozenset, dict, type({}.keys()),
    type({}.items()), collections.deque, collections.OrderedDict, collections.defaultdict, array.array, decimal.Decimal,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
)  # fmt: skip
# The standard library's classes in Python that are results now and then. They can be patched, hence the copies.
WRITTEN = {kind: dict(vars(kind)) for kind in (collections.Counter, fractions.Fraction)}
CODES = [(m, m.__code__) for members in WRITTEN.values() for m in members.values() if type(m) is types.FunctionType]
DECIDING = (
    "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__", "__add__", "__radd__", "__sub__", "__rsub__",
    "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__floordiv__", "__rfloordiv__", "__mod__", "__rmod__", "__pow__",
    "__rpow__", "__and__", "__rand__", "__or__", "__ror__", "__xor__", "__rxor__", "__neg__", "__pos__", "__invert__",
    "__abs__", "__round__",
)  # fmt: skip
# Classes are told by identity: a metaclass can have equality, hash and attributes of its own.
NATIVE_IDS = frozenset(map(id, NATIVE))
LEAVES = frozenset(map(id, (int, float, str, bool, type(None), complex, bytes, range, types.FunctionType)))
ITERATED = {
    id(kind): kind.__iter__ for kind in (list, tuple, set, frozenset, collections.deque, type({}.keys()), type({}.items()))
}
FRACTION = fractions.Fraction
bases_of = type.__dict__["__mro__"].__get__
members_of = type.__dict__["__dict__"].__get__


def plain(value, decent=lambda kind: False):
    """``value``, where neither it nor anything in it has operators of its own.

    Args:
        value: any.
        decent: whether a class, besides those that are known here, may decide.

    Raises:
        Forged: a class of the program's (or ``unittest.mock.ANY``, a patched class, a proxy, …) would decide.
    """
    pending, seen = [value], {}
    while pending:
        item = pending.pop()
        kind = type(item)
        if id(kind) in LEAVES or id(item) in seen:
            continue
        seen[id(item)] = item  # kept alive: another could get its id
        bases = bases_of(kind)
        if id(kind) not in NATIVE_IDS and not is_pristine(kind):
            for name in DECIDING:
                base = next((base for base in bases if name in members_of(base)), object)
                if id(base) not in NATIVE_IDS and not decent(base):
                    raise Forged(f"the result defines its own {name}")
        pending.extend(contents(item, bases))
    return value


def is_pristine(kind):
    """Whether it is one of the ``WRITTEN`` classes, as it was before the program."""
    members = next((members for written, members in WRITTEN.items() if written is kind), None)
    if members is None or any(method.__code__ is not code for method, code in CODES):
        return False
    current = members_of(kind)
    return len(current) == len(members) and all(current.get(name) is member for name, member in members.items())


def contents(item, bases):
    """What the equality of ``item`` compares."""
    for base in bases:
        if base is dict:
            return [*dict.keys(item), *dict.values(item)]
        if id(base) in ITERATED:
            return ITERATED[id(base)](item)
        if base is FRACTION:
            return [item._numerator, item._denominator]
    return ()
