"""Translates expressions of MySQL for SQLite, with their types."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from cycleqd_jax.tasks.dbbench.dialect_functions import AGGREGATES, call, date_add
from cycleqd_jax.tasks.dbbench.dialect_types import (
    BINARY,
    DATE,
    DATETIME,
    DOUBLE,
    INT,
    NULL,
    TEXT,
    Expr,
    Type,
    common,
    converted,
    decimal,
    cast_moment,
    literal,
    moment,
    number,
    number_type,
    text,
    truth,
    unsupported,
    whole,
)

if TYPE_CHECKING:
    from sqlglot import exp

__all__ = ["Expressions", "aggregates_in", "collated", "compared"]

_COMPARISONS = {"EQ": "=", "NEQ": "<>", "GT": ">", "GTE": ">=", "LT": "<", "LTE": "<=", "NullSafeEQ": "IS"}
_ARITHMETIC = {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Mod": "%", "IntDiv": "DIV"}
_BITS = {"BitwiseAnd": "&", "BitwiseOr": "|", "BitwiseXor": "^"}
_PARTS = frozenset(("YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND", "MICROSECOND", "YEAR_MONTH"))
_LONGEST = 200_000


def checked_length(made: Expr) -> Expr:
    """Refuses an expression that has become too long: some parts stand in the translation more than once."""
    if len(made.sql) > _LONGEST:
        raise unsupported("expressions whose translation is so long")
    return made


def collated(expr: Expr) -> str:
    """An expression with the collation by which it is compared, grouped and sorted."""
    if expr.type.kind != "str":
        return expr.sql
    return f"{expr.sql} COLLATE {'mysqlbin' if expr.type.exact else 'mysql'}"


def compared(operator: str, first: Expr, second: Expr) -> str:
    """The comparison of two expressions, by the rules of their types."""
    kinds = {first.type.kind, second.type.kind}
    if "null" in kinds:
        return f"({first.sql} {operator} {second.sql})"
    if "bin" in kinds and kinds <= {"bin", "str"}:
        return f"(CAST({first.sql} AS BLOB) {operator} CAST({second.sql} AS BLOB))"
    if kinds == {"str"}:
        collation = "mysqlbin" if first.type.exact or second.type.exact else "mysql"
        return f"({first.sql} COLLATE {collation} {operator} {second.sql})"
    if first.type.temporal or second.type.temporal:
        timed = kinds <= {"time", "str"}
        if timed or "time" not in kinds:
            left, right = (_instant(one, timed) for one in (first, second))
            return f"({left} {operator} {right})"
    return f"({number(first)} {operator} {number(second)})"


def _instant(expr: Expr, timed: bool) -> str:
    shown = text(expr) if expr.type.kind == "bin" else expr.sql
    return f"m_instant({expr.instant or shown}, {int(timed)})"


def quotient_digits(first: int, second: int) -> int:
    """The digits after the point that MySQL computes of a quotient, in words of nine."""
    words = [-(-scale // 9) * 9 for scale in (first, second)]
    return -(-(sum(words) + max(0, 4 - (sum(words) - first - second))) // 9) * 9


def aggregates_in(node: Any) -> bool:
    """Whether an expression has an aggregate of its own query."""
    from sqlglot import exp

    def visit(one: Any) -> bool:
        if isinstance(one, exp.Query | exp.Window):
            return False
        if isinstance(one, exp.GroupConcat) or (isinstance(one, exp.Anonymous) and str(one.this).upper() in AGGREGATES):
            return True
        return any(visit(child) for child in one.iter_expressions())

    return visit(node)


class Expressions:
    """Translates the expressions of one query.

    Attributes:
        scope: the names that they may use.
        group: the expressions that the query groups by, as text of SQLite; None if it does not group.
        database: name of the database.
    """

    def __init__(self, scope: Any, database: str) -> None:
        self.scope = scope
        self.database = database
        self.group: set[str] | None = None
        self.aliases: dict[str, Expr] = {}
        self.values: dict[str, Expr] = {}  # VALUES(column) in ON DUPLICATE KEY UPDATE
        self.clause = "SELECT"
        self._inside = False  # an aggregate

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
        name = str(getattr(node.this, "this", "")).upper()
        if type(node.this).__name__ != "Anonymous" or name not in ("ROW_NUMBER", "RANK", "DENSE_RANK") or node.args.get("spec"):
            raise unsupported(f"the window function {name}")
        if self.group is not None or node.args.get("alias") or node.this.expressions:
            raise unsupported("this window function")
        parts = ", ".join(collated(self(one)) for one in node.args.get("partition_by") or [])
        order = node.args.get("order")
        terms = [
            collated(self(t.this)) + " DESC" * bool(t.args.get("desc"))
            for t in (order.expressions if order is not None else [])
        ]
        inside = f"PARTITION BY {parts} " * bool(parts) + f"ORDER BY {', '.join(terms)}" * bool(terms)
        return Expr(f"{name.lower()}() OVER ({inside})", INT)

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
        if not node.table and node.name.lower() in self.aliases and self.clause == "ORDER":
            return self.aliases[node.name.lower()]
        found = self.scope.find(node.name, node.table, self.clause)
        if found is None:
            if not node.table and node.name.lower() in self.aliases:
                return self.aliases[node.name.lower()]
            raise self.scope.unknown(node, self.clause)
        column, outer = found
        if self.group is not None and not self._inside and not outer:
            return Expr(f"m_first({column.sql})", column.type)
        return column

    # -------------------------------------------------------------------------------------------- operators

    def _comparison(self, operator: str, node: exp.Binary) -> Expr:
        from sqlglot import exp

        if isinstance(node.expression, exp.Any | exp.All):
            query = node.expression.this
            query = query.this if isinstance(query, exp.Subquery | exp.Paren) else query
            inner = self.scope.subquery(query)
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
        first, second = self(node.this), self(node.expression)
        left, right = number(first), number(second)
        kinds = [number_type(first.type), number_type(second.type)]
        scales = [kind.scale or 0 for kind in kinds]
        double = any(kind.kind == "dbl" for kind in kinds)
        if operator == "DIV":
            return Expr(f"m_intdiv({left}, {right})", INT)
        if operator == "%":
            return call("MOD", [first, second], compared, self.database)
        if operator == "/":
            if double:
                return Expr(f"m_div({left}, {right})", DOUBLE)
            inner = quotient_digits(*scales)
            return Expr(f"m_div_dec({left}, {right}, {inner})", decimal(scales[0] + 4)._replace(inner=inner))
        if double:
            unfixed = any(kind.kind == "dbl" and kind.scale is None for kind in kinds) or operator == "*"
            return Expr(
                f"m_finite(0.0 + {left} {operator} {right})" if operator == "*" else f"m_finite({left} {operator} {right})",
                Type("dbl", None if unfixed else max(scales)),
            )
        if all(kind.kind == "int" for kind in kinds):
            return Expr(f"({left} {operator} {right})", INT)
        digits = [scale if kind.inner is None else kind.inner for kind, scale in zip(kinds, scales, strict=True)]
        shown = decimal(sum(scales) if operator == "*" else max(scales))
        if any(kind.inner is not None for kind in kinds):
            shown = shown._replace(inner=sum(digits) if operator == "*" else max(digits))
        return Expr(f"m_exact({left} {operator} {right})", shown)

    def _interval_added(self, value: Expr, interval: exp.Interval, sign: int) -> Expr:
        unit = str(interval.args["unit"].name if interval.args.get("unit") else "").upper()
        if unit not in _PARTS and "_" not in unit:
            raise unsupported(f"INTERVAL … {unit}")
        return date_add(value, self(interval.this), unit, sign)

    def _neg(self, node: exp.Neg) -> Expr:
        made = self(node.this)
        value = f"-{made.value}" if made.value is not None and made.type.numeric else None
        return Expr(f"(-{number(made)})", number_type(made.type), value)

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
            three = [one if one.type.kind in ("null", "time") else Expr(_instant(one, False), DATETIME) for one in three]
        value, low, high = three
        return Expr(f"({compared('>=', value, low)} AND {compared('<=', value, high)})", INT)

    def _in(self, node: exp.In) -> Expr:
        from sqlglot import exp

        query = node.args.get("query")
        if query is not None:
            inner = self.scope.subquery(query.this if isinstance(query, exp.Subquery) else query)
            lefts = [self(one) for one in node.this.expressions] if isinstance(node.this, exp.Tuple) else [self(node.this)]
            if len(lefts) != len(inner.columns):
                from cycleqd_jax.tasks.dbbench.dialect_types import Refusal

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
        return Expr(f"(CASE {body}{other} END)", result)

    def _cast(self, node: exp.Cast) -> Expr:
        made, target = self(node.this), node.args["to"]
        kind = target.this.name if hasattr(target.this, "name") else str(target.this)
        sizes = [int(str(size.this.this)) for size in target.expressions if str(size.this.this).isdecimal()]
        if kind in ("BIGINT", "INT"):
            value = made.sql if made.type.kind in ("str", "int", "null") else whole(made)
            return Expr(f"m_int({value})", INT)
        if kind in ("UBIGINT", "UINT"):
            value = made.sql if made.type.kind in ("str", "int", "null") else whole(made)
            return Expr(f"m_unsigned({value})", INT)
        if kind == "DECIMAL":
            precision, scale = (*sizes, 0)[:2] if sizes else (10, 0)
            if scale > precision or precision > 65:
                raise unsupported(f"DECIMAL({precision}, {scale})")
            plain = made.type.kind in ("str", "int", "dec", "dbl", "null") and made.number is None
            return Expr(f"m_cast_dec({made.sql if plain else number(made)}, {precision}, {scale})", decimal(scale))
        if kind in ("DOUBLE", "FLOAT"):
            return Expr(f"CAST({number(made)} AS REAL)", DOUBLE)
        if kind in ("CHAR", "VARCHAR", "NCHAR"):
            return Expr(f"m_cut({text(made)}, {sizes[0]})" if sizes else text(made), TEXT)
        if kind == "CHARACTER_SET":
            return Expr(text(made), TEXT)
        if kind == "BINARY":
            return Expr(f"CAST({text(made) if made.type.kind != 'bin' else made.sql} AS BLOB)", BINARY)
        if kind == "DATE":
            return cast_moment(made, DATE)
        if kind in ("DATETIME", "TIME", "TIMESTAMP"):
            scale = sizes[0] if sizes else 0
            name = "time" if kind == "TIME" else "datetime"
            return cast_moment(made, Type(name, scale))
        raise unsupported(f"CAST AS {kind}")

    # -------------------------------------------------------------------------------------------- subqueries

    def _subquery(self, node: exp.Subquery) -> Expr:
        inner = self.scope.subquery(node.this)
        if len(inner.columns) != 1:
            from cycleqd_jax.tasks.dbbench.dialect_types import Refusal

            raise Refusal("1241 (21000): Operand should contain 1 column(s)")
        if inner.single:
            return Expr(f"({inner.sql})", inner.columns[0].type)
        return Expr(f"(SELECT m_single(c0) FROM ({inner.sql}))", inner.columns[0].type)

    def _exists(self, node: exp.Exists) -> Expr:
        return Expr(f"EXISTS ({self.scope.subquery(node.this).sql})", INT)

    # -------------------------------------------------------------------------------------------- functions

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
        return call("CHAR", [self(one) for one in node.expressions], compared, self.database)

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

        inner, separator, keys = node.this, node.args.get("separator"), []
        self._enter()
        if isinstance(inner, exp.Order):
            for ordered in inner.expressions:
                made = self(ordered.this)
                keys += [made.sql, "1" if ordered.args.get("desc") else "0"]
            inner = inner.this
        distinct = isinstance(inner, exp.Distinct)
        items = inner.expressions if isinstance(inner, exp.Distinct | exp.Concat) else [inner]
        shown = [text(self(item)) for item in items]
        value = shown[0] if len(shown) == 1 else f"m_concat({', '.join(shown)})"
        if distinct and not keys:  # MySQL sorts them
            keys = [self(items[0]).sql if len(items) == 1 else value, "0"]
        mark = literal(str(separator.this)) if separator is not None else "','"
        self._inside = False
        return Expr(f"m_joined({', '.join([value, mark, str(int(distinct)), *keys])})", TEXT)

    def _enter(self) -> None:
        from cycleqd_jax.tasks.dbbench.dialect_types import Refusal

        if self._inside or self.group is None:
            raise Refusal("1111 (HY000): Invalid use of group function")
        self._inside = True

    def _aggregate(self, name: str, node: exp.Anonymous) -> Expr:
        from sqlglot import exp

        self._enter()
        items, distinct = list(node.expressions), 0
        if len(items) == 1 and isinstance(items[0], exp.Distinct):
            items, distinct = items[0].expressions, 1
        if name == "COUNT" and len(items) == 1 and isinstance(items[0], exp.Star) and not distinct:
            self._inside = False
            return Expr("count(*)", INT)
        args = [self(item) for item in items]
        self._inside = False
        if len(args) != 1 and not (name == "COUNT" and distinct and args):
            raise unsupported(f"{name}() with {len(args)} arguments")
        arg = args[0]
        word = "DISTINCT " if distinct else ""
        if name == "COUNT" and len(args) > 1:
            nothing = " OR ".join(f"{one.sql} IS NULL" for one in args)
            both = ", char(0), ".join(f"m_key({text(one)})" for one in args)
            return Expr(f"count(DISTINCT iif({nothing}, NULL, m_concat({both})))", INT)
        if name == "COUNT":
            return Expr(f"count({word}{collated(arg)})", INT)
        if name in ("MIN", "MAX"):
            return Expr(f"{name.lower()}({collated(arg)})", arg.type)
        kind = number_type(arg.type)
        if name in ("SUM", "AVG"):
            mode = "double" if kind.kind == "dbl" else "exact"
            mean = int(name == "AVG")
            sql = f"m_total({number(arg)}, '{mode}', {mean}, {distinct})"
            if mode == "double":
                scale = None if kind.scale is None else kind.scale + 4 * mean
                return Expr(sql, Type("dbl", scale))
            inner = quotient_digits(kind.scale or 0, 0) if mean else None
            return Expr(sql, decimal((kind.scale or 0) + 4 * mean)._replace(inner=inner))
        if distinct:
            raise unsupported(f"{name}(DISTINCT …)")
        if name.startswith("BIT_"):
            sign = {"BIT_AND": "&", "BIT_OR": "|", "BIT_XOR": "^"}[name]
            return Expr(f"m_bit({whole(arg)}, '{sign}')", INT)
        sample, root = int(name.endswith("_SAMP")), int(name.startswith("STD"))
        scale = None if kind.scale is None else kind.scale + 4
        return Expr(f"m_spread({number(arg)}, {sample}, {root})", Type("dbl", scale))
