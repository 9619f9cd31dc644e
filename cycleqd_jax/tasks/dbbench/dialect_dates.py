"""MySQL's functions of dates and times: the types of their results, and their translation for SQLite."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from cycleqd_jax.tasks.dbbench.dialect_types import (
    DATE,
    DATETIME,
    INT,
    TEXT,
    TIME,
    Expr,
    Type,
    cast_moment,
    decimal,
    moment,
    number,
    text,
    unsupported,
    whole,
)

__all__ = ["DATE_BUILDERS", "DATE_FUNCTIONS", "NOW", "Builder", "Compare", "Simple", "date_add"]

Compare = Callable[[str, Expr, Expr], str]
"""``compare("=", a, b)`` is the comparison of two expressions."""
Builder = Callable[[list[Expr], Compare], Expr]
"""Makes the call of a function from its arguments."""


class Simple(NamedTuple):
    """A function whose arguments have fixed kinds.

    Attributes:
        kinds: one letter for each argument: s text, n number, i integer, d date or datetime. The letter before ``*`` may be
            repeated or missing.
        result: type of the result.
        template: the expression, with ``{0}`` for the first argument and ``{all}`` for all.
    """

    kinds: str
    result: Type
    template: str


def _part(name: str, result: Type = INT) -> Simple:
    return Simple("s" if name in ("HOUR", "MINUTE", "SECOND", "MICROSECOND") else "d", result, f"m_part({{0}}, '{name}')")


NOW = {
    "NOW": DATETIME, "CURRENT_TIMESTAMP": DATETIME, "LOCALTIME": DATETIME, "LOCALTIMESTAMP": DATETIME, "SYSDATE": DATETIME,
    "CURDATE": DATE, "CURRENT_DATE": DATE, "CURTIME": TIME, "CURRENT_TIME": TIME, "UTC_DATE": DATE, "UTC_TIME": TIME,
    "UTC_TIMESTAMP": DATETIME,
}  # fmt: skip
DATE_FUNCTIONS = {
    "YEAR": _part("YEAR"), "MONTH": _part("MONTH"), "DAY": _part("DAY"), "DAYOFWEEK": _part("DAYOFWEEK"),
    "WEEKDAY": _part("WEEKDAY"), "DAYOFYEAR": _part("DAYOFYEAR"), "QUARTER": _part("QUARTER"), "HOUR": _part("HOUR"),
    "MINUTE": _part("MINUTE"), "SECOND": _part("SECOND"), "MICROSECOND": _part("MICROSECOND"), "TO_DAYS": _part("TO_DAYS"),
    "DAYNAME": _part("DAYNAME", TEXT),
    "MONTHNAME": Simple("d", TEXT, "m_monthname({0})"),
    "LAST_DAY": Simple("d", DATE, "m_last_day({0})"),
    "DATEDIFF": Simple("dd", INT, "m_datediff({all})"),
    "TIMEDIFF": Simple("ss", TIME, "m_timediff({all})"),
    "FROM_DAYS": Simple("i", DATE, "m_from_days({0})"),
    "MAKEDATE": Simple("ii", DATE, "m_makedate({all})"),
    "MAKETIME": Simple("iii", TIME, "m_maketime({all})"),
    "SEC_TO_TIME": Simple("n", TIME, "m_sec_to_time({0})"),
    "WEEKOFYEAR": Simple("d", INT, "m_week({0}, 3, 0)"),
    "DATE_FORMAT": Simple("ds", TEXT, "m_date_format({all}, 0)"),
    "TIME_FORMAT": Simple("ss", TEXT, "m_date_format({all}, 1)"),
}  # fmt: skip


def _week(with_year: int) -> Builder:
    def build(args: list[Expr], _: Compare) -> Expr:
        return Expr(f"m_week({moment(args[0])}, {whole(args[1]) if len(args) > 1 else 0}, {with_year})", INT)

    return build


def _cast(target: Type) -> Builder:
    return lambda args, _: cast_moment(args[0], target)


def _time(args: list[Expr], _: Compare) -> Expr:
    return cast_moment(Expr(f"m_whole_time({text(args[0])})", TEXT) if args[0].type.kind == "str" else args[0], TIME)


def _time_to_sec(args: list[Expr], _: Compare) -> Expr:
    digits = 6 if args[0].type.kind == "str" else 0  # a text may have a fraction
    if args[0].value is not None:
        digits = min(len(args[0].value.partition(".")[2]), 6)
    return Expr(f"m_time_to_sec({text(args[0])})", decimal(digits) if digits else INT)


def _from_unix(args: list[Expr], _: Compare) -> Expr:
    made = f"m_from_unix({whole(args[0])})"
    return Expr(f"m_date_format({made}, {text(args[1])}, 0)", TEXT) if len(args) > 1 else Expr(made, DATETIME)


def _str_to_date(args: list[Expr], _: Compare) -> Expr:
    pattern = args[1].value
    if pattern is None:
        raise unsupported("STR_TO_DATE with a format that is no literal")
    codes = {pattern[i + 1] for i in range(len(pattern) - 1) if pattern[i] == "%"}
    day, clock = codes & set("aWbcDdejMmUuVvwXxYy"), codes & set("fHhIiklprSsT")
    result = TIME if clock and not day else Type("datetime", 6 if "f" in codes else 0) if clock else DATE
    return Expr(f"m_str_to_date({text(args[0])}, {args[1].sql}, '{result.kind}')", result)


def _unix(args: list[Expr], _: Compare) -> Expr:
    shown = moment(args[0]) if args else "m_now('datetime')"
    return Expr(f"m_unix({shown})", INT)


def date_add(value: Expr, amount: Expr, unit: str, sign: int) -> Expr:
    """DATE_ADD and DATE_SUB, and + and - of an interval."""
    timed = any(part in unit for part in ("HOUR", "MINUTE", "SECOND"))
    kind = "datetime" if value.type.kind == "datetime" or (value.type.kind == "date" and timed) else "text"
    if value.type.kind == "date" and not timed:
        kind = "date"
    if value.type.kind == "time":
        raise unsupported("intervals added to times")
    result = {"date": DATE, "datetime": DATETIME, "text": TEXT._replace(scale=0)}[kind]
    if kind == "text" and value.type.kind == "str" and re.search(r"\bs\d+\.", value.sql):
        kind = "precise"  # a text that is not constant has an unknown number of digits, which MySQL shows as six
    shown = text(amount) if "_" in unit else number(amount) if unit == "SECOND" else whole(amount)
    sql = f"m_date_add({moment(value)}, {shown}, '{unit}', {sign}, '{kind}')"
    return Expr(sql, result, None, f"m_date_number({sql})")


DATE_BUILDERS: dict[tuple[str, int], Builder] = {
    ("DATE", 1): _cast(DATE), ("TIME", 1): _time, ("TIME_TO_SEC", 1): _time_to_sec,
    ("FROM_UNIXTIME", 1): _from_unix, ("FROM_UNIXTIME", 2): _from_unix, ("TIMESTAMP", 1): _cast(DATETIME),
    ("WEEK", 1): _week(0), ("WEEK", 2): _week(0), ("YEARWEEK", 1): _week(1), ("YEARWEEK", 2): _week(1),
    ("STR_TO_DATE", 2): _str_to_date, ("UNIX_TIMESTAMP", 0): _unix, ("UNIX_TIMESTAMP", 1): _unix,
}  # fmt: skip
"""The functions of dates whose translation depends on their arguments, by name and number of arguments."""
