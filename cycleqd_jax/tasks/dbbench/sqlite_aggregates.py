"""MySQL's aggregates, for SQLite. Runs in the sandbox, see ``sqlite_server.py``."""

import decimal
import math
from typing import Any

from cycleqd_jax.tasks.dbbench.sqlite_values import Fault, sort_key

LONGEST_GROUP = 1_048_576
EXACT = decimal.Context(prec=65)


class Total:
    """SUM and AVG. The mode is ``"exact"`` (decimals and integers) or ``"double"``; ``mean`` chooses AVG."""

    def __init__(self):
        self.total: Any = None
        self.count, self.seen = 0, set()
        self.mode, self.mean = "double", 0

    def step(self, value, mode, mean, distinct):
        """Adds a row."""
        self.mode, self.mean = mode, mean
        if value is None:
            return
        if distinct:
            if value in self.seen:
                return
            self.seen.add(value)
        if mode == "exact":
            value = decimal.Decimal(repr(value))
            self.total = value if self.total is None else EXACT.add(self.total, value)
        else:
            self.total = float(value) if self.total is None else self.total + value
        self.count += 1

    def finalize(self):
        """The result."""
        if self.total is None:
            return None
        total = EXACT.divide(self.total, self.count) if self.mean and self.mode == "exact" else self.total
        if self.mean and self.mode != "exact":
            total = total / self.count
        if self.mode == "exact":
            return int(total) if total == total.to_integral_value() and abs(total) < 2**63 else float(total)
        if not math.isfinite(total):
            return None
        return total


class Spread:
    """Standard deviation and variance, by the recurrence that MySQL uses."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.sample = self.root = 0

    def step(self, value, sample, root):
        """Adds a row."""
        self.sample, self.root = sample, root
        if value is None:
            return
        value = float(value)
        self.count += 1
        if self.count == 1:
            self.mean = value
            return
        before = self.mean
        self.mean = before + (value - before) / self.count
        self.squares += (value - before) * (value - self.mean)

    def finalize(self):
        """The result."""
        if self.count <= self.sample:
            return None
        variance = self.squares / (self.count - self.sample)
        return math.sqrt(variance) if self.root else variance


class First:
    """The value of the first row of a group: what MySQL shows for a column that is not grouped by."""

    def __init__(self):
        self.value, self.empty = None, True

    def step(self, value):
        """Adds a row."""
        if self.empty:
            self.value, self.empty = value, False

    def finalize(self):
        """The result."""
        return self.value


class Joined:
    """GROUP_CONCAT: after the text come the separator, the kind of DISTINCT, and pairs of a sort key and its direction.

    The kind is 0 without DISTINCT, 1 if rows of equal texts are equal, else a text that equal rows have in common.
    """

    def __init__(self):
        self.rows, self.separator, self.directions = [], ",", ()
        self.seen, self.size = set(), 0

    def step(self, text, separator, distinct, *keys):
        """Adds a row."""
        self.separator, self.directions = separator, keys[1::2]
        if text is None:
            return
        if distinct:
            alike = sort_key(text) if distinct == 1 else distinct
            if alike in self.seen:
                return
            self.seen.add(alike)
        self.size += len(text)
        if self.size <= 4 * LONGEST_GROUP:
            self.rows.append((text, keys[::2]))

    def finalize(self):
        """The result."""
        if not self.rows:
            return None
        if self.directions:
            self.rows.reverse()  # MySQL shows rows of equal keys in this order
        for index in reversed(range(len(self.directions))):
            descending = self.directions[index]
            self.rows.sort(key=lambda row: sortable(row[1][index]), reverse=bool(descending))
        return self.separator.join(text for text, _ in self.rows)[:LONGEST_GROUP]


def sortable(value):
    """A key that sorts NULL first, and texts as the collation does."""
    if value is None:
        return (0,)
    return (1, sort_key(value)) if isinstance(value, str) else (1, value)


class Bits:
    """BIT_AND, BIT_OR and BIT_XOR."""

    def __init__(self):
        self.value = None

    def step(self, value, operator):
        """Adds a row."""
        if self.value is None:
            self.value = 2**64 - 1 if operator == "&" else 0
        if value is not None:
            value &= 2**64 - 1
            self.value = {"&": self.value & value, "|": self.value | value, "^": self.value ^ value}[operator]

    def finalize(self):
        """The result."""
        value = self.value or 0
        if value >= 2**63:
            raise Fault("1235 (42000): This version of MySQL doesn't yet support 'unsigned integers above 9223372036854775807'")
        return value


class Single:
    """The value of a subquery that may have one row only."""

    def __init__(self):
        self.value, self.count = None, 0

    def step(self, value):
        """Adds a row."""
        self.value, self.count = value, self.count + 1
        if self.count > 1:
            raise Fault("1242 (21000): Subquery returns more than 1 row")

    def finalize(self):
        """The result."""
        return self.value


AGGREGATES = {"m_single": Single, "m_total": Total, "m_spread": Spread, "m_first": First, "m_joined": Joined, "m_bit": Bits}
