"""Translates expressions of MySQL for SQLite, with their types."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from cycleqd_jax.tasks.dbbench.dialect_calls import Calls
from cycleqd_jax.tasks.dbbench.dialect_names import Query, Scope
from cycleqd_jax.tasks.dbbench.dialect_operators import calculated, cast, checked_length, collated, compared, instant
from cycleqd_jax.tasks.dbbench.dialect_types import (
    BINARY,
    DATETIME,
    DOUBLE,
    INT,
    NULL,
    TEXT,
    Expr,
    Refusal,
    Type,
    common,
    converted,
    decimal,
    literal,
    number,
    number_type,
    text,
    truth,
    unsupported,
    whole,
)
from cycleqd_jax.tasks.dbbench.dialect_windows import window

if TYPE_CHECKING:
    from sqlglot import exp

__all__ = ["Expressions"]

_COMPARISONS = {"EQ": "=", "NEQ": "<>", "GT": ">", "GTE": ">=", "LT": "<", "LTE": "<=", "NullSafeEQ": "IS"}
_ARITHMETIC = {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Mod": "%", "IntDiv": "DIV"}
_BITS = {"BitwiseAnd": "&", "BitwiseOr": "|", "BitwiseXor": "^"}


class Expressions(Calls):
    """Translates the expressions of one query."""

    def __call__(self, node: Any) -> Expr:
        """The translation of an expression.

        Raises:
            Refusal: it has an error, or a part that is not translated.
        """
        method = getattr(self, "_" + type(node).__name__.lower(), None)
        name = type(node).__name__
        if method is not None:
            made = method(node)
        elif name in _COMPARISONS:
            made = self._comparison(_COMPARISONS[name], node)
        elif name in _ARITHMETIC:
            made = self._calculation(_ARITHMETIC[name], node)
        elif name in _BITS:
            made = Expr(f"m_bits('{_BITS[name]}', {whole(self(node.this))}, {whole(self(node.expression))})", INT)
        else:
            raise unsupported(getattr(node, "key", name))
        return checked_length(made)

    # -------------------------------------------------------------------------------------------- values

    def _literal(self, node: exp.Literal) -> Expr:
        value = str(node.this)
        if node.is_string:
            return Expr(literal(value), TEXT, value)
        if re.fullmatch(r"\d+", value):
            if len(value) > 40 or int(value) >= 2**63:
                raise unsupported("integers above 9223372036854775807")
            return Expr(value.lstrip("0") or "0", INT, value)
        if re.fullmatch(r"\d*\.\d*", value):
            if len(value.replace(".", "").lstrip("0")) > 15:
                raise unsupported("decimals of more than 15 digits")
            return Expr(f"{float(value)!r}", decimal(len(value.partition(".")[2])), value)
        if not re.fullmatch(r"\d*\.?\d*[eE][+-]?\d+", value):
            raise unsupported("this number")
        if float(value) == float("inf"):
            raise unsupported("numbers of that size")
        return Expr(f"{float(value)!r}", DOUBLE, value)

    def _national(self, node: exp.National) -> Expr:
        return Expr(literal(str(node.this)), TEXT, str(node.this))

    def _introducer(self, node: exp.Introducer) -> Expr:
        if str(node.this).lower() not in ("_utf8mb4", "_utf8", "_utf8mb3"):
            raise unsupported(f"character set {node.this}")
        made = self(node.expression)
        return Expr(text(made), TEXT, made.value)

    def _concat(self, node: exp.Concat) -> Expr:  # adjacent literals
        value = "".join(self(one).value or "" for one in node.expressions)
        return Expr(literal(value), TEXT, value)

    def _hexstring(self, node: exp.HexString) -> Expr:
        digits = str(node.this)
        digits = "0" * (len(digits) % 2) + digits
        if not re.fullmatch(r"[0-9a-fA-F]*", digits):
            raise unsupported("this hexadecimal literal")
        return Expr(f"x'{digits}'", BINARY)

    def _bitstring(self, node: exp.BitString) -> Expr:
        if not re.fullmatch(r"[01]{1,4096}", str(node.this)):
            raise unsupported("this bit literal")
        value = int(str(node.this), 2)
        return Expr(f"x'{value.to_bytes(-(-len(str(node.this)) // 8), 'big').hex()}'", BINARY)

    def _window(self, node: exp.Window) -> Expr:
        return window(node, self, self.clause)

    def _boolean(self, node: exp.Boolean) -> Expr:
        return Expr("1" if node.this else "0", INT, "1" if node.this else "0")

    def _null(self, _: exp.Null) -> Expr:
        return Expr("NULL", NULL)

    def _parameter(self, _: exp.Parameter) -> Expr:
        return Expr("NULL", NULL)  # each statement has a session of its own, in which no variable is set

    def _paren(self, node: exp.Paren) -> Expr:
        made = self(node.this)
        return made._replace(sql=f"({made.sql})")

    def _column(self, node: exp.Column) -> Expr:
        from sqlglot import exp

        if isinstance(node.this, exp.Star):
            raise unsupported("* at this place")
        if node.args.get("db") is not None and node.args["db"].name != self.database:
            raise self.scope.unknown(node, self.clause)
        if self.clause == "ORDER" and not self.nested and not node.table and node.name.lower() in self.aliases:
            return self._alias(node.name)
        found = self.scope.find(node.name, node.table, self.clause)
        if found is None:
            if not node.table and node.name.lower() in self.aliases:
                return self._alias(node.name)
            raise self.scope.unknown(node, self.clause)
        column, outer = found
        if self.clause == "HAVING" and not self._inside and not outer and column.sql not in self.visible:
            if not node.table and node.name.lower() in self.aliases:
                return self._alias(node.name)
            raise self.scope.unknown(node, self.clause)
        if self.group is not None and not self._inside and not outer:
            return Expr(f"m_first({column.sql})", column.type)
        return column

    def _alias(self, name: str) -> Expr:
        """A selected expression, by its name."""
        if self.clause == "ORDER" and name.lower() in self.ambiguous:
            raise Refusal(f"1052 (23000): Column '{name}' in ORDER BY is ambiguous")
        if self.clause == "ORDER" and self.nested and name.lower() in self.totals:
            raise Refusal(f"1247 (42S22): Reference '{name}' not supported (reference to group function)")
        return self.aliases[name.lower()]

    # -------------------------------------------------------------------------------------------- operators

    def _comparison(self, operator: str, node: exp.Binary) -> Expr:
        from sqlglot import exp

        if isinstance(node.expression, exp.Any | exp.All):
            query = node.expression.this
            query = query.this if isinstance(query, exp.Subquery | exp.Paren) else query
            inner = self._inner(query)
            left = self(node.this)
            test = compared(operator, left, Expr('"a"."c0"', inner.columns[0].type))
            every = isinstance(node.expression, exp.All)
            found = f"EXISTS (SELECT 1 FROM ({inner.sql}) AS a WHERE {'NOT ' if every else ''}{test})"
            null = f"EXISTS (SELECT 1 FROM ({inner.sql}) AS a WHERE {test} IS NULL)"
            return Expr(f"(CASE WHEN {found} THEN {0 if every else 1} WHEN {null} THEN NULL ELSE {1 if every else 0} END)", INT)
        if isinstance(node.this, exp.Tuple) and isinstance(node.expression, exp.Tuple) and operator in ("=", "<>"):
            pairs = list(zip(node.this.expressions, node.expression.expressions, strict=False))
            shown = " AND ".join(compared("=", self(a), self(b)) for a, b in pairs)
            return Expr(f"({shown})" if operator == "=" else f"(NOT ({shown}))", INT)
        return Expr(compared(operator, self(node.this), self(node.expression)), INT)

    def _calculation(self, operator: str, node: exp.Binary) -> Expr:
        from sqlglot import exp

        if isinstance(node.expression, exp.Interval) and operator in "+-":
            return self._interval_added(self(node.this), node.expression, 1 if operator == "+" else -1)
        if isinstance(node.this, exp.Interval) and operator == "+":
            return self._interval_added(self(node.expression), node.this, 1)
        return calculated(operator, self(node.this), self(node.expression), self.database)

    def _neg(self, node: exp.Neg) -> Expr:
        made = self(node.this)
        value = f"-{made.value}" if made.value is not None and made.type.numeric else None
        return Expr(f"(-{number(made)})", number_type(made.type)._replace(unsigned=False), value)

    def _bitwisenot(self, node: exp.BitwiseNot) -> Expr:
        return Expr(f"m_bits('~', {whole(self(node.this))}, 0)", INT)

    def _bitwiseleftshift(self, node: exp.BitwiseLeftShift) -> Expr:
        return Expr(f"m_shift({whole(self(node.this))}, {whole(self(node.expression))}, 1)", INT)

    def _bitwiserightshift(self, node: exp.BitwiseRightShift) -> Expr:
        return Expr(f"m_shift({whole(self(node.this))}, {whole(self(node.expression))}, 0)", INT)

    def _connected(self, node: exp.Connector, word: str) -> Expr:
        from sqlglot import exp

        kind, parts, left = type(node), [], node
        while isinstance(left, kind):  # long chains lean to the left
            parts.append(left.expression)
            left = left.this
        parts.append(left)
        assert isinstance(node, exp.Binary)
        return Expr("(" + f" {word} ".join(truth(self(part)) for part in reversed(parts)) + ")", INT)

    def _and(self, node: exp.And) -> Expr:
        return self._connected(node, "AND")

    def _or(self, node: exp.Or) -> Expr:
        return self._connected(node, "OR")

    def _xor(self, node: exp.Xor) -> Expr:
        left, right = truth(self(node.this)), truth(self(node.expression))
        return Expr(f"((NOT {left}) <> (NOT {right}))", INT)

    def _not(self, node: exp.Not) -> Expr:
        return Expr(f"(NOT {truth(self(node.this))})", INT)

    def _is(self, node: exp.Is) -> Expr:
        from sqlglot import exp

        made = self(node.this)
        if isinstance(node.expression, exp.Null):
            return Expr(f"({made.sql} IS NULL)", INT)
        if isinstance(node.expression, exp.Boolean):
            return Expr(f"({truth(made)} IS {'TRUE' if node.expression.this else 'FALSE'})", INT)
        raise unsupported("IS with this operand")

    def _between(self, node: exp.Between) -> Expr:
        three = [self(node.this), self(node.args["low"]), self(node.args["high"])]
        if any(one.type.kind in ("date", "datetime") for one in three):  # then all three are compared as dates
            three = [one if one.type.kind in ("null", "time") else Expr(instant(one, False), DATETIME) for one in three]
        value, low, high = three
        return Expr(f"({compared('>=', value, low)} AND {compared('<=', value, high)})", INT)

    def _in(self, node: exp.In) -> Expr:
        from sqlglot import exp

        query = node.args.get("query")
        if query is not None:
            inner = self._inner(query.this if isinstance(query, exp.Subquery) else query)
            lefts = [self(one) for one in node.this.expressions] if isinstance(node.this, exp.Tuple) else [self(node.this)]
            if len(lefts) != len(inner.columns):
                raise Refusal(f"1241 (21000): Operand should contain {len(lefts)} column(s)")
            columns = [Expr(f'"a"."c{i}"', column.type) for i, column in enumerate(inner.columns)]
            tests = " AND ".join(compared("=", left, column) for left, column in zip(lefts, columns, strict=True))
            found = f"EXISTS (SELECT 1 FROM ({inner.sql}) AS a WHERE {tests})"
            null = f"EXISTS (SELECT 1 FROM ({inner.sql}) AS a WHERE ({tests}) IS NULL)"
            return Expr(f"(CASE WHEN {found} THEN 1 WHEN {null} THEN NULL ELSE 0 END)", INT)
        if isinstance(node.this, exp.Tuple):
            lefts = [self(one) for one in node.this.expressions]
            rows = [[self(one) for one in row.expressions] for row in node.expressions]
            tests = [" AND ".join(compared("=", a, b) for a, b in zip(lefts, row, strict=False)) for row in rows]
            return Expr("(" + " OR ".join(f"({test})" for test in tests) + ")", INT)
        value, items = self(node.this), [self(one) for one in node.expressions]
        if not items:
            raise unsupported("this IN")
        if value.type.kind == "str" and all(item.type.kind == "str" for item in items):
            return Expr(f"({collated(value)} IN ({', '.join(item.sql for item in items)}))", INT)
        return Expr("(" + " OR ".join(compared("=", value, item) for item in items) + ")", INT)

    def _like(self, node: exp.Like, escape: str = "\\") -> Expr:
        value, pattern = self(node.this), self(node.expression)
        exact = int(value.type.exact or pattern.type.exact or "bin" in (value.type.kind, pattern.type.kind))
        sql = f"m_like({text(value)}, {text(pattern)}, {literal(escape)}, {exact})"
        return Expr(f"(NOT {sql})" if node.args.get("negate") else sql, INT)

    def _escape(self, node: exp.Escape) -> Expr:
        from sqlglot import exp

        escape = self(node.expression).value
        if not isinstance(node.this, exp.Like) or escape is None or len(escape) > 1:
            raise unsupported("this ESCAPE")
        return self._like(node.this, escape)

    def _regexplike(self, node: exp.RegexpLike) -> Expr:
        value, pattern = self(node.this), self(node.expression)
        exact = int(value.type.exact or pattern.type.exact or "bin" in (value.type.kind, pattern.type.kind))
        return Expr(f"m_regexp({text(value)}, {text(pattern)}, {exact})", INT)

    def _collate(self, node: exp.Collate) -> Expr:
        name = node.expression.name.lower()
        if not name.startswith("utf8"):
            raise unsupported(f"collation {name}")
        if not name.endswith(("_ci", "_bin")):
            raise unsupported(f"collation {name}")
        made = self(node.this)
        return Expr(text(made), Type("str", None, name.endswith("_bin")), made.value)

    def _case(self, node: exp.Case) -> Expr:
        subject = self(node.this) if node.this is not None else None
        tests, values = [], []
        for branch in node.args["ifs"]:
            test = self(branch.this)
            tests.append(truth(test) if subject is None else compared("=", subject, test))
            values.append(self(branch.args["true"]))
        if node.args.get("default") is not None:
            values.append(self(node.args["default"]))
        result = common([value.type for value in values])
        shown = [converted(value, result) for value in values]
        body = " ".join(f"WHEN {test} THEN {value}" for test, value in zip(tests, shown, strict=False))
        other = f" ELSE {shown[-1]}" if len(shown) > len(tests) else ""
        as_number = "" if any(value.number is not None for value in values) else None
        return Expr(f"(CASE {body}{other} END)", result, None, as_number)

    def _cast(self, node: exp.Cast) -> Expr:
        target = node.args["to"]
        kind = target.this.name if hasattr(target.this, "name") else str(target.this)
        sizes = [int(str(size.this.this)) for size in target.expressions if str(size.this.this).isdecimal()]
        return cast(self(node.this), kind, sizes)

    # -------------------------------------------------------------------------------------------- subqueries

    def _inner(self, node: Any) -> Query:
        return self.query(node, Scope(self.scope.catalog, self.database, self.scope), inner=True)

    def _subquery(self, node: exp.Subquery) -> Expr:
        inner = self._inner(node.this)
        if len(inner.columns) != 1:
            raise Refusal("1241 (21000): Operand should contain 1 column(s)")
        if inner.single:
            return Expr(f"({inner.sql})", inner.columns[0].type)
        return Expr(f"(SELECT m_single(c0) FROM ({inner.sql}))", inner.columns[0].type)

    def _exists(self, node: exp.Exists) -> Expr:
        return Expr(f"EXISTS ({self._inner(node.this).sql})", INT)
