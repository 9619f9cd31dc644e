"""Translates queries of MySQL for SQLite: names, joins, groups, orders, unions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from cycleqd_jax.tasks.dbbench.dialect_aggregates import aggregates_in
from cycleqd_jax.tasks.dbbench.dialect_expressions import Expressions
from cycleqd_jax.tasks.dbbench.dialect_joins import Joins
from cycleqd_jax.tasks.dbbench.dialect_names import Query, Scope, Source, check_parts
from cycleqd_jax.tasks.dbbench.dialect_operators import collated
from cycleqd_jax.tasks.dbbench.dialect_types import (
    Column,
    Expr,
    Refusal,
    Type,
    common,
    converted,
    truth,
    unfixed,
    unsupported,
)

if TYPE_CHECKING:
    from sqlglot import exp

__all__ = ["limit_clause", "query"]

_SELECT_PARTS = {
    "expressions", "from_", "joins", "where", "group", "having", "order", "limit", "offset", "distinct", "with_", "locks",
    "operation_modifiers", "kind", "hint",
}  # fmt: skip
_MOST_UNITED = 40
_UNION_PARTS = {"this", "expression", "distinct", "order", "limit", "offset", "with_", "by_name"}


def query(node: Any, scope: Scope, *, inner: bool = False) -> Query:
    """Translates a query.

    Args:
        node: SELECT, UNION, or one of them in parentheses.
        scope: an empty scope.
        inner: whether the order of its rows does not matter, as in FROM.

    Raises:
        Refusal: it has an error, or a part that is not translated.
    """
    from sqlglot import exp

    if isinstance(node, exp.Subquery) and node.args.get("alias") is None:
        if any(node.args.get(part) for part in ("order", "limit", "offset", "joins")):
            plain = exp.Subquery(this=node.this)
            made = query(plain, Scope(scope.catalog, scope.database, scope))
            return _limited(node, scope, made, inner)
        return query(node.this, scope, inner=inner)
    if not isinstance(node, exp.Query):
        raise unsupported(f"{getattr(node, 'key', 'this')} as a query")
    if node.args.get("with_") is not None:
        _with(node.args["with_"], scope)
    if isinstance(node, exp.SetOperation):
        return _union(node, scope, inner)
    if not isinstance(node, exp.Select):
        raise unsupported(node.key)
    return _Select(node, scope, inner).made()


def _with(node: exp.With, scope: Scope) -> None:
    if node.args.get("recursive"):
        raise unsupported("WITH RECURSIVE")
    for table in node.expressions:
        made = query(table.this, Scope(scope.catalog, scope.database, scope), inner=True)
        names = [one.name for one in table.args["alias"].args.get("columns") or []]
        if names:
            if len(names) != len(made.columns):
                raise Refusal("1353 (HY000): View's SELECT and view's field list have different column counts")
            made = made._replace(columns=[c._replace(name=n) for c, n in zip(made.columns, names, strict=True)])
        scope.common_tables[table.alias] = made


def _union(node: Any, scope: Scope, inner: bool) -> Query:
    from sqlglot import exp

    if not isinstance(node, exp.Union):
        raise unsupported(node.key.upper())
    check_parts(node, _UNION_PARTS)
    sides, kinds, left = [], [], node
    while isinstance(left, exp.Union) and (left is node or not any(left.args.get(k) for k in ("order", "limit", "offset"))):
        sides.append(left.expression)
        kinds.append(bool(left.args.get("distinct")))
        left = left.this
    sides.append(left)
    if len(sides) > _MOST_UNITED:
        raise unsupported(f"a UNION of more than {_MOST_UNITED} queries")
    made = [query(one, Scope(scope.catalog, scope.database, scope), inner=True) for one in reversed(sides)]
    kinds.reverse()
    if len({len(one.columns) for one in made}) > 1:
        raise Refusal("1222 (21000): The used SELECT statements have a different number of columns")
    types = [common([one.columns[i].type for one in made]) for i in range(len(made[0].columns))]
    columns = [
        column._replace(type=kind, guessed=len({(one.columns[i].declared, one.columns[i].guessed) for one in made}) > 1)
        for i, (column, kind) in enumerate(zip(made[0].columns, types, strict=True))
    ]
    shown = [_as_types(one, columns) for one in made]
    text = shown[0]
    for distinct, one in zip(kinds, shown[1:], strict=True):
        text = f"SELECT * FROM ({text}) UNION ALL SELECT * FROM ({one})"
        if distinct:
            listed = ", ".join(f"{collated(Expr(f'c{i}', kind))} AS c{i}" for i, kind in enumerate(types))
            text = f"SELECT DISTINCT {listed} FROM ({text})"
    return _limited(node, scope, Query(text, columns, False), inner)


def _as_types(one: Query, columns: list[Column]) -> str:
    listed = [
        f"{_united(Expr(f'c{i}', mine.type), column.type)} AS c{i}"
        for i, (mine, column) in enumerate(zip(one.columns, columns, strict=True))
    ]
    return f"SELECT {', '.join(listed)} FROM ({one.sql})"


def _united(expr: Expr, target: Type) -> str:
    return unfixed(expr) if target.kind == "str" else converted(expr, target)


def _limited(node: Any, scope: Scope, made: Query, inner: bool) -> Query:
    """A query with the ORDER BY and LIMIT that stand after a union or after parentheses."""
    outside = Scope(scope.catalog, scope.database, scope.parent)
    alias = scope.alias()
    outside.sources.append(Source("", alias, made.columns, False))
    expressions = Expressions(outside, query)
    expressions.clause = "ORDER"
    limit = limit_clause(node)
    text = f"SELECT * FROM ({made.sql}) AS {alias}"
    if node.args.get("order") is not None and (limit or not inner):
        terms = []
        for term in node.args["order"].expressions:
            position = _position(term.this, len(made.columns))
            one = expressions(term.this) if position is None else Expr(f"{alias}.c{position}", made.columns[position].type)
            terms.append(collated(one) + " DESC" * bool(term.args.get("desc")))
        text += f" ORDER BY {', '.join(terms)}"
    elif not limit:
        return made
    return made._replace(sql=text + limit)


def limit_clause(node: Any) -> str:
    """The LIMIT or FETCH of a statement as text of SQLite, empty if there is none."""
    from sqlglot import exp

    limit, offset = node.args.get("limit"), node.args.get("offset")
    if type(limit).__name__ == "Fetch":
        options = limit.args.get("limit_options")
        if options is not None and any(options.args.get(part) for part in ("percent", "with_ties")):
            raise unsupported("this FETCH")
        limit = exp.Limit(expression=limit.args.get("count") or exp.Literal.number(1))
    values = []
    for part in (limit, offset):
        if part is None:
            continue
        value = part.expression
        if type(part).__name__ not in ("Limit", "Offset"):
            raise unsupported("this LIMIT")
        if type(value).__name__ != "Literal" or value.is_string or not re.fullmatch(r"\d{1,20}", str(value.this)):
            raise Refusal("1064 (42000): You have an error in your SQL syntax; LIMIT and OFFSET need a whole number")
        values.append(str(min(int(str(value.this)), 2**62)))
    if limit is None:
        if offset is not None:
            raise unsupported("OFFSET without LIMIT")
        return ""
    return f" LIMIT {values[0]}" + (f" OFFSET {values[1]}" if offset is not None else "")


def _position(node: Any, count: int, clause: str = "order clause") -> int | None:
    """The index of the column that a number in ORDER BY or GROUP BY names."""
    from sqlglot import exp

    negative = isinstance(node, exp.Neg)
    node = node.this if negative else node
    if not isinstance(node, exp.Literal) or node.is_string or not str(node.this).isdecimal():
        return None
    if negative or not 1 <= int(str(node.this)) <= count:
        raise Refusal(f"1054 (42S22): Unknown column '{'-' * negative}{node.this}' in '{clause}'")
    return int(str(node.this)) - 1


class _Select:
    """The translation of one SELECT."""

    def __init__(self, node: Any, scope: Scope, inner: bool) -> None:
        self.node, self.scope, self.inner = node, scope, inner
        self.expressions = Expressions(scope, query)
        self.place = "0"  # of a row in the first table

    def made(self) -> Query:
        """The query.

        Raises:
            Refusal: it has an error, or a part that is not translated.
        """
        from sqlglot import exp

        node, translate = self.node, self.expressions
        check_parts(node, _SELECT_PARTS)
        if not node.expressions:
            raise Refusal("1064 (42000): You have an error in your SQL syntax; SELECT has no expressions")
        if node.args.get("kind") or node.args.get("hint"):
            raise unsupported("this SELECT")
        if isinstance(node.args.get("distinct"), exp.Distinct) and node.args["distinct"].args.get("on"):
            raise unsupported("DISTINCT ON")
        source = self._from()
        where = ""
        if node.args.get("where") is not None:
            translate.clause = "WHERE"
            where = truth(translate(node.args["where"].this))
        translate.clause = "SELECT"
        shown = self._selected()
        order, having, group = node.args.get("order"), node.args.get("having"), node.args.get("group")
        ordered = [term.this for term in order.expressions] if order is not None else []
        aggregated = group is not None or any(
            aggregates_in(one)
            for one in [
                *(item for item, _ in shown if not isinstance(item, Expr)),
                *ordered,
                *([having] if having is not None else []),
            ]
        )
        aliases = {name.lower(): item for item, name in shown if name and not isinstance(item, Expr)}
        terms, directions = [], []
        if group is not None:
            directions = [isinstance(one, exp.Ordered) and bool(one.args.get("desc")) for one in group.expressions]
            terms = self._group_terms(group, shown, aliases)
        if aggregated:
            translate.group = {one.sql for one in terms}
        values = [(item if isinstance(item, Expr) else translate(item), name) for item, name in shown]
        values = [
            (self._grouped(value) if isinstance(item, Expr) else value, name)
            for (value, name), (item, _) in zip(values, shown, strict=True)
        ]
        named: dict[str, str] = {}
        for (item, name), (value, _) in zip(shown, values, strict=True):
            if name and named.setdefault(name.lower(), value.sql) != value.sql:
                translate.ambiguous.add(name.lower())
            if isinstance(item, exp.Expr) and name:
                translate.aliases.setdefault(name.lower(), value)
                if aggregates_in(item):
                    translate.totals.add(name.lower())
        distinct = node.args.get("distinct") is not None
        columns = self._columns(values)
        listed = ", ".join(f"{collated(value) if distinct else value.sql} AS c{i}" for i, (value, _) in enumerate(values))
        sql = f"SELECT {'DISTINCT ' if distinct else ''}{listed}{source}"
        if having is not None:
            translate.visible = {item.sql for item, _ in shown if isinstance(item, Expr)} | {one.sql for one in terms}
            for item, _ in shown:
                found = self.scope.find(item.name, item.table, "SELECT") if isinstance(item, exp.Column) else None
                translate.visible |= set() if found is None else {found[0].sql}
            translate.clause = "HAVING"
            test = truth(translate(having.this))
            if aggregated:
                having_sql = f" HAVING {test}"
            else:
                where, having_sql = f"{where} AND {test}" if where else test, ""
        else:
            having_sql = ""
        if where:
            sql += f" WHERE {where}"
        if terms:
            sql += f" GROUP BY {', '.join(map(collated, terms))}"
        sql += having_sql
        limit = limit_clause(node)
        if order is not None and (limit or not self.inner):
            sql += self._order_clause(order, values, terms, directions)
        elif order is None and any(directions):
            pairs = zip(terms, directions, strict=True)
            sql += " ORDER BY " + ", ".join(collated(term) + " DESC" * down for term, down in pairs)
        single = (aggregated and group is None) or limit in (" LIMIT 1", " LIMIT 0") or node.args.get("from_") is None
        return Query(sql + limit, columns, single)

    def _columns(self, values: list[tuple[Expr, str]]) -> list[Column]:
        """The columns of the result. A column of a table stays as it is declared."""
        known = {source.expr(i).sql: column for source in self.scope.sources for i, column in enumerate(source.columns)}
        columns = []
        for value, name in values:
            column = known.get(value.sql.removeprefix("m_first(").removesuffix(")") if self.expressions.group else value.sql)
            if column is None or column.type != value.type or not column.nullable:
                columns.append(Column(name, value.type, _declared(value), guessed=True))
            else:
                columns.append(column._replace(name=name, default=None, auto=False))
        return columns

    def _grouped(self, value: Expr) -> Expr:
        """A column of ``*`` in a query that groups."""
        group = self.expressions.group
        return value if group is None else Expr(f"m_first({value.sql})", value.type)

    def _from(self) -> str:
        node = self.node.args.get("from_")
        if node is None or (
            node.this.name.lower() == "dual" and not node.this.args.get("joins") and type(node.this).__name__ == "Table"
        ):
            return ""
        numbered = self.node.args.get("group") is not None and self.node.args.get("order") is not None
        joins = Joins(self.expressions, numbered=numbered)
        tables = joins(node.this, self.node.args.get("joins") or [])
        self.place = joins.position
        return f" FROM {tables}"

    def _group_terms(self, group: Any, shown: list, aliases: dict) -> list[Expr]:
        from sqlglot import exp

        check_parts(group, {"expressions"})
        translate, terms = self.expressions, []
        translate.clause = "GROUP"
        for one in group.expressions:
            one = one.this if isinstance(one, exp.Ordered) else one
            position = _position(one, len(shown), "group statement")
            if position is not None:
                one = shown[position][0]
            elif isinstance(one, exp.Column) and not one.table and self.scope.find(one.name, "", "GROUP") is None:
                one = aliases.get(one.name.lower(), one)
            if isinstance(one, Expr):
                terms.append(one)
                continue
            for column in list(one.find_all(exp.Column)):
                name = column.name.lower()
                if (
                    not column.table
                    and name in aliases
                    and self.scope.find(column.name, "", "GROUP") is None
                    and column is not one
                ):
                    column.replace(exp.Paren(this=aliases[name].copy()))
            if aggregates_in(one):
                raise Refusal("1056 (42000): Can't group on this column")
            terms.append(translate(one))
        translate.clause = "SELECT"
        return terms

    def _order_clause(self, order: Any, values: list[tuple[Expr, str]], groups: list[Expr], directions: list[bool]) -> str:
        """ORDER BY; the server shows groups that are equal in it in the order of their first rows, or sorted."""
        from sqlglot import exp

        self.expressions.clause = "ORDER"
        terms, kept = [], []
        for term in order.expressions:
            position = _position(term.this, len(values))
            self.expressions.nested = not isinstance(term.this.unnest(), exp.Column)
            value = self.expressions(term.this) if position is None else values[position][0]
            if value.type.kind == "null" or value.value is not None:
                continue
            kept.append(value)
            terms.append(collated(value) + " DESC" * bool(term.args.get("desc")))
        if groups and not terms:  # the server does not sort the groups then
            raise unsupported("ORDER BY of a constant after GROUP BY")
        begins = [one.sql for one in kept] == [self._grouped(one).sql for one in groups[: len(kept)]]
        if groups and (self.expressions.sorts or begins):
            terms += [collated(one) + " DESC" * down for one, down in zip(groups, directions, strict=True)]
        elif groups:
            terms.append(f"min({self.place})")
        return f" ORDER BY {', '.join(terms)}" if terms else ""

    def _selected(self) -> list[tuple[Any, str]]:
        """The selected expressions with their names; the columns of ``*`` are already translated."""
        from sqlglot import exp

        shown: list[tuple[Any, str]] = []
        for item in self.node.expressions:
            star = item if isinstance(item, exp.Star) else item.this if isinstance(item, exp.Column) else None
            if isinstance(star, exp.Star):
                check_parts(star, set())
                table = item.table if isinstance(item, exp.Column) else ""
                sources = [source for source in self.scope.sources if not table or source.name == table]
                if not sources:
                    raise (
                        Refusal(f"1051 (42S02): Unknown table '{table}'") if table else Refusal("1096 (HY000): No tables used")
                    )
                for source in sources:
                    for index, column in enumerate(source.columns):
                        if table or (source.alias, column.name.lower()) not in self.scope.hidden:
                            shown.append((source.expr(index), column.name))
            elif isinstance(item, exp.Alias):
                shown.append((item.this, item.alias))
            elif isinstance(item, exp.Aliases | exp.PropertyEQ):
                raise unsupported("this expression")
            else:
                shown.append((item, item.name if isinstance(item, exp.Column) else item.sql("mysql")[:64]))
        return shown


def _declared(value: Expr) -> str:
    """The type of a column that CREATE TABLE … SELECT makes."""
    kind, scale = value.type.kind, value.type.scale
    return {
        "int": "bigint(21)", "dec": f"decimal(65,{scale})", "dbl": "double", "str": "text", "bin": "blob", "date": "date",
        "datetime": "datetime", "time": "time", "null": "binary(0)",
    }[kind]  # fmt: skip
