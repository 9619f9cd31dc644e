"""The messages between devices in compiled programs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

__all__ = ["Collective", "collectives"]

_COLLECTIVE = re.compile(
    r"^\s*(?:ROOT )?%?\S+ = (?P<result>.*?) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast)"
    r"(?P<start>-start)?\(",
    re.MULTILINE,
)
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Messages between devices, as they are written in a program; those in the body of a loop are counted once.

    Attributes:
        kind: ``all-reduce``, ``all-gather``, ``reduce-scatter``, ``all-to-all``, ``ragged-all-to-all``,
            ``collective-permute`` or ``collective-broadcast``.
        bytes: the size of one result on one device.
        count: the number of collectives of this kind and size.
    """

    kind: str
    bytes: int
    count: int


def collectives(text: str) -> tuple[Collective, ...]:
    """The collectives of a compiled program.

    Args:
        text: HLO, as ``as_text()`` gives it.
    """
    found: Counter[tuple[str, int]] = Counter()
    for match in _COLLECTIVE.finditer(text):
        result = match["result"]
        if match["start"] and match["kind"] != "all-reduce":  # (operands, results, then numbers of the transport)
            result = _elements(result)[1]
        sizes = [
            math.prod(map(int, filter(None, dims.split(",")))) * max(int(bits or 8), 8) // 8
            for _, bits, dims in _ARRAY.findall(result)
        ]
        found[match["kind"], sum(sizes)] += 1
    return tuple(Collective(kind, size, count) for (kind, size), count in sorted(found.items()))


def _elements(shape: str) -> list[str]:
    """The elements of a tuple's shape."""
    found, depth = [""], 0
    for character in shape.strip()[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return found
