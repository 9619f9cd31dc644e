"""Translates MySQL's window functions for SQLite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cycleqd_jax.tasks.dbbench.dialect_aggregates import AGGREGATES, aggregate
from cycleqd_jax.tasks.dbbench.dialect_operators import collated
from cycleqd_jax.tasks.dbbench.dialect_types import INT, Expr, Refusal, Type, unsupported

__all__ = ["window"]

_RANKS = frozenset(("ROW_NUMBER", "RANK", "DENSE_RANK"))
_SHARES = frozenset(("PERCENT_RANK", "CUME_DIST"))
_NEEDS_ORDER = frozenset(("RANK", "DENSE_RANK", "PERCENT_RANK", "CUME_DIST", "NTILE", "LAG", "LEAD"))


def window(node: Any, translate: Callable[[Any], Expr], clause: str) -> Expr:
    """A call of a window function.

    Args:
        node: the call with its OVER.
        translate: translates the expressions in it.
        clause: the clause that it is in.

    Raises:
        Refusal: it has an error, or a part that is not translated.
    """
    name = str(getattr(node.this, "this", "")).upper()
    if clause not in ("SELECT", "ORDER"):
        raise Refusal("4015 (HY000): Window function is allowed only in SELECT list and ORDER BY clause")
    if type(node.this).__name__ != "Anonymous" or node.args.get("alias"):
        raise unsupported("this window function")
    parts = ", ".join(collated(translate(one)) for one in node.args.get("partition_by") or [])
    order = node.args.get("order")
    ordered = order.expressions if order is not None else []
    if not ordered and name in _NEEDS_ORDER:
        raise Refusal(f"4018 (HY000): No order list in window specification for '{name.lower()}'")
    terms = [collated(translate(term.this)) + " DESC" * bool(term.args.get("desc")) for term in ordered]
    inside = f"PARTITION BY {parts} " * bool(parts) + f"ORDER BY {', '.join(terms)}" * bool(terms)
    if node.args.get("spec") is not None:
        if name in _RANKS or name in _SHARES or name in ("NTILE", "LAG", "LEAD"):
            raise unsupported(f"a frame of {name}")
        inside += _frame(node.args["spec"])
    made = _function(name, [*node.this.expressions], translate)
    return Expr(f"{made.sql} OVER ({inside})", made.type)


def _function(name: str, args: list[Any], translate: Callable[[Any], Expr]) -> Expr:
    """The function before OVER."""
    from sqlglot import exp

    if name in _RANKS | _SHARES and not args:
        return Expr(f"{name.lower()}()", INT if name in _RANKS else Type("dbl", 10))
    literal = [one.name for one in args if isinstance(one, exp.Literal) and not one.is_string and one.name.isdecimal()]
    if name == "NTILE" and len(args) == len(literal) == 1 and int(literal[0]) > 0:
        return Expr(f"ntile({literal[0]})", INT)
    if name in ("LAG", "LEAD") and 1 <= len(args) <= 2 and (len(args) == 1 or args[1].name in literal):
        value = translate(args[0])
        return Expr(f"{name.lower()}({value.sql}, {args[1].name if len(args) == 2 else 1})", value.type)
    if name in ("FIRST_VALUE", "LAST_VALUE") and len(args) == 1:
        value = translate(args[0])
        return Expr(f"{name.lower()}({value.sql})", value.type)
    if name == "COUNT" and len(args) == 1 and isinstance(args[0], exp.Star):
        return Expr("count(*)", INT)
    if name in ("COUNT", "SUM", "AVG", "MIN", "MAX") and name in AGGREGATES and not isinstance(args[0], exp.Distinct):
        made = aggregate(name, [translate(one) for one in args], 0)
        return made._replace(sql=made.sql.replace("m_total(", "m_running(", 1)) if name in ("SUM", "AVG") else made
    raise unsupported(f"the window function {name}")


def _frame(spec: Any) -> str:
    """ROWS or RANGE, from the first row of the partition."""
    kind, start, side = (str(spec.args.get(part) or "").upper() for part in ("kind", "start", "start_side"))
    end, end_side = spec.args.get("end"), str(spec.args.get("end_side") or "").upper()
    shown = "CURRENT ROW" if end is None else str(getattr(end, "name", end)).upper()
    if kind not in ("ROWS", "RANGE") or (start, side) != ("UNBOUNDED", "PRECEDING") or spec.args.get("exclude"):
        raise unsupported("this frame of a window")
    if shown.isdecimal() and kind == "ROWS" and end_side:
        shown = f"{shown} {end_side}"
    elif shown == "UNBOUNDED" and end_side == "FOLLOWING":
        shown = "UNBOUNDED FOLLOWING"
    elif shown != "CURRENT ROW":
        raise unsupported("this frame of a window")
    return f" {kind} BETWEEN UNBOUNDED PRECEDING AND {shown}"
