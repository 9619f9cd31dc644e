"""Encodes values as JSON, so that only data passes between a program and its judge.

This module is used inside and outside the sandbox. An instance of a class of the program is decoded as an instance of the
built-in class that it derives from, so comparisons of decoded values execute no code of the program.

Numbers, texts, booleans and None are encoded as themselves, all other values as a list that starts with their kind. A list or
tuple with more than a million items in total is encoded as a digest, which equals that of the same items with the same types.
"""

import collections
import decimal
import fractions
import hashlib
import marshal
from collections.abc import Iterable
from typing import Any

__all__ = ["Digest", "Opaque", "decode", "encode"]

_SMALL = 1 << 53
_SEQUENCES: tuple[tuple[type[Iterable[Any]], str], ...] = (
    (list, "l"),
    (tuple, "t"),
    (set, "s"),
    (frozenset, "z"),
    (collections.deque, "q"),
)
_MAKE = {"l": list, "t": tuple, "s": set, "z": frozenset, "q": collections.deque, "i": iter}
_KEYS = type({}.keys())
_MOST_ITEMS = 1_000_000


class Opaque:
    """A value that can't be encoded (a function, a class, a match of a pattern); equal only to itself."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"<{self.name}>"


class Digest(tuple):
    """The digest of a very large value: kind, length and SHA-256."""


class _Large(Exception):
    """The value has too many items."""


def encode(value):
    """Encodes ``value`` as a JSON value. Iterators are consumed.

    Raises:
        ValueError: the value is too large and not a list or tuple of plain data.
        RecursionError: the value is nested too deeply or contains itself.
    """
    try:
        return _encode(value)
    except _Large:
        if type(value) not in (list, tuple):
            raise ValueError("the value is too large") from None
    digest = hashlib.sha256()
    for item in value:
        digest.update(marshal.dumps(item, 2))  # version 2 has no references: equal data gives equal bytes
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
    """Decodes the output of :func:`encode` into new objects.

    Raises:
        Exception: ``data`` encodes no value; a program may send anything.
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
