"""The types, names and errors of the translation of MySQL's statements for SQLite."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

__all__ = [
    "BINARY", "DATE", "DATETIME", "DOUBLE", "INT", "NULL", "PRIMARY", "TEXT", "TIME", "Catalog", "Column", "Expr", "Key",
    "Refusal", "Relation",
    "Type", "cast_moment", "common", "converted", "decimal", "is_bytes_literal", "literal",
    "moment", "number", "number_type", "quoted", "row_name",
    "stored", "text", "truth", "unfixed", "unsupported", "whole",
]  # fmt: skip


class Refusal(Exception):
    """A statement that is not executed, with the error that its reply shows."""


def unsupported(what: str) -> Refusal:
    """The error of a statement that MySQL may support and this translation does not."""
    return Refusal(f"1235 (42000): This version of MySQL doesn't yet support '{what}'")


class Type(NamedTuple):
    """The type of an expression.

    Attributes:
        kind: null, int, dec, dbl, str, bin, date, time or datetime.
        scale: number of digits after the point; None if a double shows as many as needed. For a datetime or a time the
            digits of the second; for a text those of the number that it becomes, if they are known.
        exact: whether texts are compared by their bytes instead of by the collation utf8mb4_general_ci.
        inner: digits after the point that a quotient has before it is shown; None for other numbers.
        unsigned: whether it is an UNSIGNED integer, whose sums and differences must not be below 0.
    """

    kind: str
    scale: int | None = None
    exact: bool = False
    inner: int | None = None
    unsigned: bool = False

    @property
    def numeric(self) -> bool:
        """Whether values are numbers."""
        return self.kind in ("int", "dec", "dbl")

    @property
    def temporal(self) -> bool:
        """Whether values are dates or times."""
        return self.kind in ("date", "time", "datetime")

    @property
    def code(self) -> str:
        """How the server shows values of the type: a letter, with the scale of a decimal."""
        if self.kind == "dbl" and self.scale is not None:
            return f"f{self.scale}"
        return f"d{self.scale}" if self.kind == "dec" else self.kind


NULL, INT, DOUBLE, TEXT, BINARY = Type("null"), Type("int", 0), Type("dbl"), Type("str"), Type("bin")
DATE, TIME, DATETIME = Type("date", 0), Type("time", 0), Type("datetime", 0)


def decimal(scale: int) -> Type:
    """A decimal number with ``scale`` digits after the point."""
    return Type("dec", min(scale, 30))


class Expr(NamedTuple):
    """An expression of SQLite.

    Attributes:
        sql: its text; safe as an operand.
        type: the type that it has in MySQL.
        value: the value of a literal, else None.
        number: the expression as a number, where MySQL does not convert its text; else None. Empty if that number is
            not known.
        instant: the expression in comparisons of dates and times, where a conversion that fails is no NULL; else None.
    """

    sql: str
    type: Type
    value: str | None = None
    number: str | None = None
    instant: str | None = None


class Column(NamedTuple):
    """A column of a table, a view or a query.

    Attributes:
        name: its name.
        type: the type of its values.
        declared: the type as MySQL shows it.
        nullable: whether it may be NULL.
        default: its default as MySQL shows it, or None.
        auto: whether it is AUTO_INCREMENT.
        guessed: whether the server declares it otherwise: a column that a query has computed.
    """

    name: str
    type: Type
    declared: str = "text"
    nullable: bool = True
    default: str | None = None
    auto: bool = False
    guessed: bool = False


PRIMARY = "PRIMARY"
"""The name of every primary key."""


class Key(NamedTuple):
    """A key of a table.

    Attributes:
        name: its name; :data:`PRIMARY` for the primary key.
        columns: names of its columns.
        unique: whether no two rows have the same values.
        lengths: for each column the number of characters that the key contains; 0 for all.
    """

    name: str
    columns: tuple[str, ...]
    unique: bool
    lengths: tuple[int, ...]

    def hashed(self, columns: dict[str, Column]) -> bool:
        """Whether it is a unique key of texts of any length, which the server shows last. Columns by name in small letters."""
        texts = [columns[name.lower()] for name in self.columns if columns[name.lower()].type.kind in ("str", "bin")]
        return self.unique and self.name != PRIMARY and any("(" not in column.declared for column in texts)


@dataclasses.dataclass(frozen=True)
class Relation:
    """A table or a view.

    Attributes:
        name: its name.
        columns: its columns.
        view: whether it is a view.
        keys: the keys in the server's order: the primary key first, if there is one.
    """

    name: str
    columns: tuple[Column, ...]
    view: bool = False
    keys: tuple[Key, ...] = ()

    @property
    def main(self) -> Key | None:
        """The key whose order the rows have on the server: the primary key, else the first unique one without NULLs."""
        known = {column.name.lower(): column for column in self.columns}
        first = self.keys[0] if self.keys else None
        if first is None or not first.unique or first.hashed(known):
            return None
        return None if any(known[name.lower()].nullable for name in first.columns) else first


Catalog = dict[str, Relation]
"""All tables and views by name."""


def quoted(name: str) -> str:
    """``name`` as an identifier of SQLite."""
    if "\0" in name:
        raise unsupported("names with a zero byte")
    return '"' + name.replace('"', '""') + '"'


def row_name(relation: Relation) -> str:
    """SQLite's name for the number of a row: the first of its three names that is no column of the table.

    Raises:
        Refusal: all three names are columns.
    """
    columns = {column.name.lower() for column in relation.columns}
    free = next((name for name in ("rowid", "_rowid_", "oid") if name not in columns), None)
    if free is None:
        raise unsupported("changes to a table with columns named rowid, _rowid_ and oid")
    return free


def literal(value: str) -> str:
    """A text as a literal of SQLite."""
    if "\0" in value:
        return f"CAST(x'{value.encode('utf-8', 'replace').hex()}' AS TEXT)"
    return "'" + value.replace("'", "''") + "'"


def text(expr: Expr) -> str:
    """An expression converted to text, as in CONCAT."""
    kind, scale = expr.type.kind, expr.type.scale
    if kind == "int":
        return f"CAST({expr.sql} AS TEXT)"
    if kind == "dec":
        return f"m_dec({expr.sql}, {scale})"
    if kind == "dbl":
        return f"m_dbl({expr.sql}, {-1 if scale is None else scale})"
    if kind == "bin":
        return f"CAST({expr.sql} AS TEXT)"
    return expr.sql


def is_bytes_literal(expr: Expr) -> bool:
    """Whether an expression is a hexadecimal or bit literal, which MySQL converts by rules of its own."""
    return expr.type.kind == "bin" and expr.sql.lstrip("(").startswith("x'")


def number(expr: Expr) -> str:
    """An expression converted to a number, as in an addition."""
    if expr.number == "":
        raise unsupported("GREATEST or LEAST of texts inside IF or CASE as a number")
    if expr.number is not None:
        return expr.number
    if expr.type.temporal:
        return f"m_date_number({expr.sql})"
    if is_bytes_literal(expr):
        raise unsupported("hexadecimal and bit literals as numbers")
    if expr.type.kind == "bin":
        return f"m_num(CAST({expr.sql} AS TEXT))"
    return f"m_num({expr.sql})" if expr.type.kind == "str" else expr.sql


def moment(expr: Expr) -> str:
    """An expression converted to the text of a date or a datetime, as in YEAR."""
    return f"m_number_moment({number(expr)})" if expr.type.numeric else text(expr)


def cast_moment(expr: Expr, target: Type) -> Expr:
    """An expression as a date, a datetime or a time; NULL if it is none."""
    shown = text(expr) if target.kind == "time" else moment(expr)
    sql = f"m_date({shown})" if target.kind == "date" else f"m_{target.kind}({shown}, {target.scale})"
    return Expr(sql, target, instant=f"ifnull({sql}, iif({expr.sql} IS NULL, NULL, ''))")


def number_type(kind: Type) -> Type:
    """The type of the number that a value of a type becomes."""
    if kind.temporal:
        return decimal(kind.scale) if kind.scale else INT
    return kind if kind.numeric else INT if kind.kind == "null" else DOUBLE._replace(scale=kind.scale)


def truth(expr: Expr) -> str:
    """An expression as a condition: a number, true if it is not 0."""
    return number(expr)


def whole(expr: Expr) -> str:
    """An expression converted to an integer, as an argument of LEFT."""
    if expr.type.kind == "int":
        return expr.sql
    if expr.type.temporal:
        return f"m_int({number(expr)})"
    if expr.type.kind == "dbl":
        return f"m_rint({expr.sql})"
    if is_bytes_literal(expr):
        raise unsupported("hexadecimal and bit literals as numbers")
    return f"m_int({text(expr) if expr.type.kind == 'bin' else expr.sql})"


def common(types: list[Type]) -> Type:
    """The type of an expression that has one of several values, such as CASE."""
    known = [one for one in types if one.kind != "null"]
    if not known:
        return NULL
    kinds = {one.kind for one in known}
    if kinds <= {"int", "dec", "dbl"}:
        if "dbl" in kinds:
            scales = [one.scale for one in known]
            return Type("dbl", None if None in scales else max(s or 0 for s in scales))
        return decimal(max(one.scale or 0 for one in known)) if "dec" in kinds else INT
    if len(kinds) == 1:
        exact = any(one.exact for one in known)
        return Type(known[0].kind, max((one.scale or 0 for one in known), default=0) if known[0].temporal else None, exact)
    if kinds == {"date", "datetime"}:
        return Type("datetime", max(one.scale or 0 for one in known))
    return BINARY if "bin" in kinds else Type("str", None, any(one.exact for one in known))


def converted(expr: Expr, target: Type) -> str:
    """An expression as a value of a common type."""
    if expr.type.kind in ("null", target.kind) or (expr.type.numeric and target.numeric):
        return expr.sql
    if target.kind == "datetime" and expr.type.kind == "date":
        return f"({expr.sql} || ' 00:00:00')"
    if target.kind == "bin":
        return f"CAST({text(expr)} AS BLOB)"
    return text(expr)


def unfixed(expr: Expr) -> str:
    """An expression as the text that is written to a column: numbers have the digits that they are computed with."""
    if expr.type.kind == "dbl":
        return f"m_dbl({expr.sql}, -1)"
    return f"m_quotient({expr.sql}, {expr.type.inner})" if expr.type.inner is not None else text(expr)


_RANGES = {
    "tinyint": 127, "smallint": 32_767, "mediumint": 8_388_607, "int": 2**31 - 1, "bigint": 2**63 - 1,
}  # fmt: skip


def stored(expr: Expr, column: Column) -> str:
    """An expression as a value that is written to a column."""
    kind = column.type.kind
    if expr.type.kind == "null":
        return "NULL"
    if column.guessed and kind in ("int", "dec", "str", "bin"):
        raise unsupported("changes of a column that a query has made")
    if kind == "str":
        shown = unfixed(expr)
        length = column.declared.partition("(")[2].rstrip(")")
        shown = f"m_cut({shown}, {length})" if length.isdecimal() else shown
        return f"rtrim({shown}, ' ')" if column.declared.startswith("char(") else shown
    if kind == "int":
        most = _RANGES[column.declared.split("(")[0].split(" ")[0]]
        least = 0 if "unsigned" in column.declared else -most - 1
        value = expr.sql if expr.type.kind == "int" else f"m_int({number(expr)})"
        if expr.type.kind == "dbl":
            value = f"m_rint({expr.sql})"
        elif expr.type.kind == "str":
            value = f"m_rint(m_num({expr.sql}))"
        if expr.value is not None and value == expr.sql and least <= int(expr.value) <= most:
            return value
        if least:
            return value if most > 2**62 else f"max(min({value}, {most}), {least})"
        return f"max(min({value}, {2 * most + 1 if most < 2**62 else most}), 0)"
    if kind == "dec":
        precision, scale = (int(n) for n in column.declared.partition("(")[2].partition(")")[0].split(","))
        return f"m_cast_dec({text(expr) if expr.type.kind == 'bin' or expr.type.temporal else expr.sql}, {precision}, {scale})"
    if kind == "dbl":
        return f"CAST({number(expr)} AS REAL)"
    if kind == "date":
        return f"ifnull(m_date({moment(expr)}), iif({expr.sql} IS NULL, NULL, '0000-00-00'))"
    if kind == "datetime":
        scale = column.type.scale or 0
        return f"ifnull(m_datetime({moment(expr)}, {scale}), iif({expr.sql} IS NULL, NULL, '0000-00-00 00:00:00'))"
    if kind == "time":
        return f"ifnull(m_time({text(expr)}, {column.type.scale or 0}), iif({expr.sql} IS NULL, NULL, '00:00:00'))"
    if kind == "bin":
        return f"CAST({text(expr) if expr.type.kind != 'bin' else expr.sql} AS BLOB)"
    raise unsupported(f"columns of type {column.declared}")
