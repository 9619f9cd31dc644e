"""MySQL's aggregates: the types of their results, and their translation for SQLite."""

from __future__ import annotations

from typing import Any

from cycleqd_jax.tasks.dbbench.dialect_operators import collated, quotient_digits
from cycleqd_jax.tasks.dbbench.dialect_types import INT, Expr, Type, decimal, number, number_type, text, unsupported, whole

__all__ = ["AGGREGATES", "aggregate", "aggregates_in"]

AGGREGATES = frozenset((
    "COUNT", "SUM", "AVG", "MIN", "MAX", "GROUP_CONCAT", "STD", "STDDEV", "STDDEV_POP", "STDDEV_SAMP", "VARIANCE", "VAR_POP",
    "VAR_SAMP", "BIT_AND", "BIT_OR", "BIT_XOR",
))  # fmt: skip


def aggregates_in(node: Any) -> bool:
    """Whether an expression has an aggregate of its own query."""
    from sqlglot import exp

    def visit(one: Any) -> bool:
        if isinstance(one, exp.Query):
            return False
        if isinstance(one, exp.Window):  # the function itself belongs to the window
            return any(map(visit, [*one.this.iter_expressions(), *(p for p in one.iter_expressions() if p is not one.this)]))
        if isinstance(one, exp.GroupConcat) or (isinstance(one, exp.Anonymous) and str(one.this).upper() in AGGREGATES):
            return True
        return any(visit(child) for child in one.iter_expressions())

    return visit(node)


def aggregate(name: str, args: list[Expr], distinct: int) -> Expr:
    """A call of an aggregate other than GROUP_CONCAT and ``COUNT(*)``.

    Args:
        name: its name in capitals.
        args: its arguments.
        distinct: 1 for DISTINCT, else 0.

    Raises:
        Refusal: it is not translated, or called with the wrong number of arguments.
    """
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
        if distinct and arg.type.kind in ("str", "bin") and kind.scale is not None:
            raise unsupported(f"{name}(DISTINCT …) of CAST AS CHAR")  # a temporary table of the server rounds the numbers
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
