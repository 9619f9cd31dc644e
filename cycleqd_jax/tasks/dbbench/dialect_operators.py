"""MySQL's comparisons, arithmetic and casts: the types of their results, and their translation for SQLite."""

from __future__ import annotations

from cycleqd_jax.tasks.dbbench.dialect_functions import call
from cycleqd_jax.tasks.dbbench.dialect_types import (
    BINARY,
    DATE,
    DOUBLE,
    INT,
    TEXT,
    Expr,
    Type,
    cast_moment,
    decimal,
    is_bytes_literal,
    number,
    number_type,
    text,
    unsupported,
    whole,
)

__all__ = ["calculated", "cast", "checked_length", "collated", "compared", "instant", "quotient_digits"]

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
        if any(is_bytes_literal(one) for one in (first, second)):
            raise unsupported("hexadecimal and bit literals in comparisons")
        return f"(CAST({first.sql} AS BLOB) {operator} CAST({second.sql} AS BLOB))"
    if kinds == {"str"}:
        collation = "mysqlbin" if first.type.exact or second.type.exact else "mysql"
        return f"({first.sql} COLLATE {collation} {operator} {second.sql})"
    if first.type.temporal or second.type.temporal:
        texts = [one.value.strip() for one in (first, second) if one.type.kind == "str" and one.value is not None]
        if any(one.isdecimal() and len(one) < 5 for one in texts):
            raise unsupported("the comparison of a date with a text of so few digits")
        timed = kinds <= {"time", "str"}
        if timed or "time" not in kinds:
            left, right = (instant(one, timed) for one in (first, second))
            return f"({left} {operator} {right})"
    return f"({number(first)} {operator} {number(second)})"


def instant(expr: Expr, timed: bool) -> str:
    """An expression in a comparison of datetimes or, if ``timed``, of times."""
    shown = text(expr) if expr.type.kind == "bin" else expr.sql
    return f"m_instant({expr.instant or shown}, {int(timed)})"


def quotient_digits(first: int, second: int) -> int:
    """The digits after the point that MySQL computes of a quotient, in words of nine."""
    words = [-(-scale // 9) * 9 for scale in (first, second)]
    return -(-(sum(words) + max(0, 4 - (sum(words) - first - second))) // 9) * 9


def calculated(operator: str, first: Expr, second: Expr, database: str) -> Expr:
    """``first operator second`` for the operators + - * / % and DIV."""
    left, right = number(first), number(second)
    kinds = [number_type(first.type), number_type(second.type)]
    scales = [kind.scale or 0 for kind in kinds]
    double = any(kind.kind == "dbl" for kind in kinds)
    unsigned = any(kind.kind == "int" and kind.unsigned for kind in kinds)
    if operator == "DIV":
        sql = f"m_intdiv({left}, {right})"
        return Expr(f"m_natural({sql})", INT._replace(unsigned=True)) if unsigned and not double else Expr(sql, INT)
    if operator == "%":
        return call("MOD", [first, second], compared, database)
    if operator == "/":
        if double:
            unfixed = any(kind.kind == "dbl" and kind.scale is None for kind in kinds)
            return Expr(f"m_div({left}, {right})", Type("dbl", None if unfixed or max(scales) > 26 else max(scales) + 4))
        inner = quotient_digits(*scales)
        return Expr(f"m_div_dec({left}, {right}, {inner})", decimal(scales[0] + 4)._replace(inner=inner))
    if double:
        unfixed = any(kind.kind == "dbl" and kind.scale is None for kind in kinds)
        return Expr(
            f"m_finite(0.0 + {left} {operator} {right})" if operator == "*" else f"m_finite({left} {operator} {right})",
            Type("dbl", None if unfixed else max(scales)),
        )
    if all(kind.kind == "int" for kind in kinds):
        sql = f"({left} {operator} {right})"
        return Expr(f"m_natural{sql}", INT._replace(unsigned=True)) if unsigned else Expr(sql, INT)
    digits = [scale if kind.inner is None else kind.inner for kind, scale in zip(kinds, scales, strict=True)]
    shown = decimal(sum(scales) if operator == "*" else max(scales))
    if any(kind.inner is not None for kind in kinds):
        shown = shown._replace(inner=sum(digits) if operator == "*" else max(digits))
    return Expr(f"m_exact({left} {operator} {right})", shown)


def cast(made: Expr, kind: str, sizes: list[int]) -> Expr:
    """CAST of an expression.

    Args:
        made: the expression.
        kind: the type, as sqlglot names it.
        sizes: the numbers in parentheses after the type.

    Raises:
        Refusal: the type is not translated.
    """
    if kind in ("BIGINT", "INT"):
        value = made.sql if made.type.kind in ("str", "int", "null") else whole(made)
        return Expr(f"m_int({value})", INT)
    if kind in ("UBIGINT", "UINT"):
        value = made.sql if made.type.kind in ("str", "int", "null") else whole(made)
        return Expr(f"m_unsigned({value})", INT._replace(unsigned=True))
    if kind == "DECIMAL":
        precision, scale = (*sizes, 0)[:2] if sizes else (10, 0)
        if scale > precision or precision > 65:
            raise unsupported(f"DECIMAL({precision}, {scale})")
        plain = made.type.kind in ("str", "int", "dec", "dbl", "null") and made.number is None
        return Expr(f"m_cast_dec({made.sql if plain else number(made)}, {precision}, {scale})", decimal(scale))
    if kind in ("DOUBLE", "FLOAT"):
        return Expr(f"CAST({number(made)} AS REAL)", DOUBLE)
    if kind in ("CHAR", "VARCHAR", "NCHAR"):
        return Expr(f"m_cut({text(made)}, {sizes[0]})" if sizes else text(made), TEXT._replace(scale=0))
    if kind == "CHARACTER_SET":
        return Expr(text(made), TEXT)
    if kind == "BINARY" and sizes:
        raise unsupported("CAST AS BINARY with a length")
    if kind == "BINARY":
        return Expr(f"CAST({text(made) if made.type.kind != 'bin' else made.sql} AS BLOB)", BINARY._replace(scale=0))
    if kind == "DATE":
        return cast_moment(made, DATE)
    if kind in ("DATETIME", "TIME", "TIMESTAMP"):
        scale = sizes[0] if sizes else 0
        name = "time" if kind == "TIME" else "datetime"
        return cast_moment(made, Type(name, scale))
    raise unsupported(f"CAST AS {kind}")
