"""Translates calls of MySQL's functions and aggregates for SQLite."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from cycleqd_jax.tasks.dbbench.dialect_aggregates import AGGREGATES, aggregate
from cycleqd_jax.tasks.dbbench.dialect_dates import date_add
from cycleqd_jax.tasks.dbbench.dialect_functions import call
from cycleqd_jax.tasks.dbbench.dialect_names import Query, Scope
from cycleqd_jax.tasks.dbbench.dialect_operators import compared
from cycleqd_jax.tasks.dbbench.dialect_types import INT, TEXT, Expr, Refusal, literal, moment, text, unsupported

if TYPE_CHECKING:
    from sqlglot import exp

__all__ = ["Calls", "Translate"]

_PARTS = frozenset(("YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND", "MICROSECOND", "YEAR_MONTH"))

_PAIRS = frozenset(("YEAR_MONTH", "DAY_HOUR", "HOUR_MINUTE", "MINUTE_SECOND"))


@runtime_checkable
class Translate(Protocol):
    """A function that translates queries."""

    def __call__(self, node: Any, scope: Scope, *, inner: bool = False) -> Query:
        """The translation of a query in an empty scope; ``inner``: the order of its rows does not matter."""
        ...


class Calls(abc.ABC):
    """Translates the calls in the expressions of one query.

    Attributes:
        scope: the names that they may use.
        query: translates the queries inside them.
        group: the expressions that the query groups by, as text of SQLite; None if it does not group.
        sorts: whether it has an aggregate for which the server sorts the rows by group.
        database: name of the database.
    """

    def __init__(self, scope: Scope, query: Translate) -> None:
        self.scope = scope
        self.query = query
        self.database = scope.database
        self.group: set[str] | None = None
        self.sorts = False
        self.aliases: dict[str, Expr] = {}
        self.ambiguous: set[str] = set()  # names of several selected expressions
        self.totals: set[str] = set()  # names of selected expressions with aggregates
        self.nested = False  # whether a term of ORDER BY is more than a name
        self.visible: set[str] = set()  # columns that HAVING may use: text of SQLite
        self.values: dict[str, Expr] = {}  # VALUES(column) in ON DUPLICATE KEY UPDATE
        self.clause = "SELECT"
        self._inside = False  # an aggregate

    @abc.abstractmethod
    def __call__(self, node: Any) -> Expr:
        """The translation of an expression."""

    def _interval_added(self, value: Expr, interval: exp.Interval, sign: int) -> Expr:
        from sqlglot import exp

        unit = str(interval.args["unit"].name if interval.args.get("unit") else "").upper()
        if unit not in _PARTS and "_" not in unit:
            raise unsupported(f"INTERVAL … {unit}")
        if "_" in unit and unit not in _PAIRS:
            raise unsupported(f"INTERVAL … {unit}")
        fractions = any("." in str(one.this) for one in interval.this.find_all(exp.Literal))
        if fractions and "_" not in unit and unit != "SECOND":  # MySQL rounds numbers and cuts texts
            raise unsupported(f"fractions of {unit}")
        return date_add(value, self(interval.this), unit, sign)

    def _if(self, node: exp.If) -> Expr:
        parts = [node.this, node.args.get("true"), node.args.get("false")]
        return call("IF", [self(part) for part in parts if part is not None], compared, self.database)

    def _trim(self, node: exp.Trim) -> Expr:
        where = {"LEADING": 1, "TRAILING": 2}.get(str(node.args.get("position") or "").upper(), 3)
        what = text(self(node.expression)) if node.args.get("expression") is not None else "' '"
        return Expr(f"m_trim({text(self(node.this))}, {what}, {where})", TEXT)

    def _substring(self, node: exp.Substring) -> Expr:
        parts = [node.this, node.args.get("start"), node.args.get("length")]
        return call("SUBSTRING", [self(part) for part in parts if part is not None], compared, self.database)

    def _strposition(self, node: exp.StrPosition) -> Expr:
        return call("LOCATE", [self(node.args["substr"]), self(node.this)], compared, self.database)

    def _extract(self, node: exp.Extract) -> Expr:
        unit = node.this.name.upper()
        if unit not in _PARTS:
            raise unsupported(f"EXTRACT({unit} …)")
        value = self(node.expression)
        shown = text(value) if unit in ("HOUR", "MINUTE", "SECOND", "MICROSECOND") else moment(value)
        return Expr(f"m_part({shown}, '{unit}')", INT)

    def _chr(self, node: exp.Chr) -> Expr:
        made = call("CHAR", [self(one) for one in node.expressions], compared, self.database)
        if not node.args.get("charset"):
            return made
        if node.args["charset"].name.lower() not in ("utf8mb4", "utf8", "utf8mb3", "ascii"):
            raise unsupported(f"CHAR(… USING {node.args['charset'].name})")
        return Expr(f"CAST({made.sql} AS TEXT)", TEXT)

    def _currentdate(self, _: exp.CurrentDate) -> Expr:
        return call("CURRENT_DATE", [], compared, self.database)

    def _currenttime(self, _: exp.CurrentTime) -> Expr:
        return call("CURRENT_TIME", [], compared, self.database)

    def _currenttimestamp(self, _: exp.CurrentTimestamp) -> Expr:
        return call("NOW", [], compared, self.database)

    _localtime = _localtimestamp = _currenttimestamp

    def _currentuser(self, _: exp.CurrentUser) -> Expr:
        return call("CURRENT_USER", [], compared, self.database)

    def _anonymous(self, node: exp.Anonymous) -> Expr:
        from sqlglot import exp

        name = str(node.this).upper()
        if name in AGGREGATES:
            return self._aggregate(name, node)
        if name == "VALUES" and self.values and len(node.expressions) == 1:
            found = self.values.get(node.expressions[0].name.lower())
            if found is not None:
                return found
        if name in ("DATE_ADD", "DATE_SUB", "ADDDATE", "SUBDATE") and len(node.expressions) == 2:
            value, amount = node.expressions
            sign = 1 if name in ("DATE_ADD", "ADDDATE") else -1
            if isinstance(amount, exp.Interval):
                return self._interval_added(self(value), amount, sign)
            return date_add(self(value), self(amount), "DAY", sign)
        if name == "TIMESTAMPDIFF" and len(node.expressions) == 3:
            unit = node.expressions[0].name.upper().removeprefix("SQL_TSI_")
            if unit in _PARTS:
                first, second = (moment(self(one)) for one in node.expressions[1:])
                return Expr(f"m_timestampdiff('{unit}', {first}, {second})", INT)
        if any(isinstance(one, exp.Star | exp.Distinct) for one in node.expressions):
            raise unsupported(f"{name}() with these arguments")
        return call(str(node.this), [self(one) for one in node.expressions], compared, self.database)

    def _groupconcat(self, node: exp.GroupConcat) -> Expr:
        from sqlglot import exp

        inner, separator, keys, orders = node.this, node.args.get("separator"), [], []
        self._enter()
        self.sorts = True
        if isinstance(inner, exp.Order):
            orders, inner = inner.expressions, inner.this
        distinct = isinstance(inner, exp.Distinct)
        items = inner.expressions if isinstance(inner, exp.Distinct | exp.Concat) else [inner]
        items = [one for item in items for one in (item.expressions if isinstance(item, exp.Concat) else [item])]
        shown = [text(self(item)) for item in items]
        for ordered in orders:
            made = self(self._ordered(ordered.this, items))
            keys += [made.sql, "1" if ordered.args.get("desc") else "0"]
        value = shown[0] if len(shown) == 1 else f"m_concat({', '.join(shown)})"
        if distinct and not keys:  # MySQL sorts them
            keys = [part for item in items for part in (self(item).sql, "0")]
        mark = literal(str(separator.this)) if separator is not None else "','"
        self._inside = False
        alike = "1" if distinct else "0"
        if distinct and len(shown) > 1:
            alike = f"m_concat({', char(0), '.join(f'm_key({one})' for one in shown)})"
        return Expr(f"m_joined({', '.join([value, mark, alike, *keys])})", TEXT._replace(scale=0))

    @staticmethod
    def _ordered(node: Any, items: list) -> Any:
        """The expression to order by; a number names an argument."""
        from sqlglot import exp

        if not isinstance(node, exp.Literal) or node.is_string or not str(node.this).isdecimal():
            return node
        if not 1 <= int(str(node.this)) <= len(items):
            raise Refusal(f"1054 (42S22): Unknown column '{node.this}' in 'order clause'")
        return items[int(str(node.this)) - 1]

    def _enter(self) -> None:
        if self._inside or self.group is None:
            raise Refusal("1111 (HY000): Invalid use of group function")
        self._inside = True

    def _aggregate(self, name: str, node: exp.Anonymous) -> Expr:
        from sqlglot import exp

        self._enter()
        items, distinct = list(node.expressions), 0
        if len(items) == 1 and isinstance(items[0], exp.Distinct):
            items, distinct = items[0].expressions, 1
            self.sorts = True
        if name == "COUNT" and len(items) == 1 and isinstance(items[0], exp.Star) and not distinct:
            self._inside = False
            return Expr("count(*)", INT)
        args = [self(item) for item in items]
        self._inside = False
        return aggregate(name, args, distinct)
