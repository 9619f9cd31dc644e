"""Values as JSON: what passes between a program under test and its judge, as data only.

Used on both sides of the sandbox's wall. A class of a program's own arrives as the built-in one it derives from, and equality,
order and hashes are those of the built-in classes: nothing that a program wrote is executed where results are compared.

Numbers, texts, booleans and None are themselves, everything else is a list that begins with its kind. A list or tuple of more
than a million items in all is sent as a digest, equal to that of the same items of the same types.
"""

import collections
import decimal
import fractions
import hashlib
import marshal
from typing import Any

__all__ = ["Digest", "Opaque", "decode", "encode"]

_SMALL = 1 << 53
_SEQUENCES: Any = ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z"), (collections.deque, "q"))
_MAKE = {"l": list, "t": tuple, "s": set, "z": frozenset, "q": collections.deque, "i": iter}
_KEYS = type({}.keys())
_MOST_ITEMS = 1_000_000


class Opaque:
    """A value that is no data (a function, a class, a match of a pattern): equal to nothing but itself."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"<{self.name}>"


class Digest(tuple):
    """What is left of a very large value: kind, length and SHA-256."""


class _Large(Exception):
    """There are more items than are sent."""


def encode(value):
    """``value`` as what JSON can hold.

    Iterators are read to their end.

    Raises:
        ValueError: it is too large, and no list or tuple of plain data.
        RecursionError: it is nested too deep, or holds itself.
    """
    try:
        return _encode(value)
    except _Large:
        if type(value) not in (list, tuple):
            raise ValueError("the value is too large") from None
    digest = hashlib.sha256()
    for item in value:
        digest.update(marshal.dumps(item, 2))  # a version without references: the same bytes for the same data
    return ["h", type(value).__name__, len(value), digest.hexdigest()]


def _encode(value):
    left = [_MOST_ITEMS]

    def items(kind, values):
        result = [kind]
        for item in values:
            left[0] -= 1
            if left[0] < 0:
                raise _Large
            result.append(one(item))
        return result

    def one(value):
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            number = int.__index__(value)
            return number if -_SMALL < number < _SMALL else ["n", hex(number)]
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, dict):
            return items("d", [part for pair in dict.items(value) for part in pair])
        for base, kind in _SEQUENCES:
            if isinstance(value, base):
                return items(kind, base.__iter__(value))
        if isinstance(value, complex):
            return ["c", float(value.real), float(value.imag)]
        if isinstance(value, bytes | bytearray):
            return ["b", bytes(value).hex()]
        if isinstance(value, fractions.Fraction):
            return ["f", one(int(value.numerator)), one(int(value.denominator))]
        if isinstance(value, decimal.Decimal):
            return ["e", decimal.Decimal.__str__(value)]
        if isinstance(value, range):
            return ["r", one(value.start), one(value.stop), one(value.step)]
        if isinstance(value, _KEYS):
            return items("k", value)
        if hasattr(type(value), "__next__"):
            return items("i", value)
        return ["o", type(value).__name__[:60]]

    return one(value)


def decode(data: Any) -> Any:
    """The value that :func:`encode` made ``data`` of, every object new; what comes from a program may be anything.

    Raises:
        Exception: ``data`` stands for no value.
    """
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise ValueError("expected a value, got an object")
        return data
    kind, *rest = data
    if kind in _MAKE:
        return _MAKE[kind](map(decode, rest))
    if kind == "d":
        return dict(zip(map(decode, rest[::2]), map(decode, rest[1::2]), strict=True))
    if kind == "n":
        return int(rest[0], 16)
    if kind == "c":
        return complex(*rest)
    if kind == "b":
        return bytes.fromhex(rest[0])
    if kind == "f":
        return fractions.Fraction(*map(decode, rest))
    if kind == "e":
        return decimal.Decimal(rest[0])
    if kind == "r":
        return range(*map(decode, rest))
    if kind == "k":
        return dict.fromkeys(map(decode, rest)).keys()
    if kind == "h":
        return Digest(rest)
    if kind == "o":
        return Opaque(rest[0])
    raise ValueError(f"expected a kind of value, got {kind!r}")
