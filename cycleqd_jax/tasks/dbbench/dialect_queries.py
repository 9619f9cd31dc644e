"""Translates queries of MySQL for SQLite: names, joins, groups, orders, unions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from cycleqd_jax.tasks.dbbench.dialect_expressions import Expressions, aggregates_in, checked_length, collated, compared
from cycleqd_jax.tasks.dbbench.dialect_types import (
    Catalog,
    Column,
    Expr,
    Refusal,
    Relation,
    Type,
    common,
    converted,
    quoted,
    truth,
    unfixed,
    unsupported,
)

if TYPE_CHECKING:
    from sqlglot import exp

__all__ = ["Query", "Scope", "Source", "check_parts", "query"]

_CLAUSES = {
    "SELECT": "field list", "WHERE": "where clause", "GROUP": "group statement", "HAVING": "having clause",
    "ORDER": "order clause", "ON": "on clause", "INSERT": "field list",
}  # fmt: skip
_SELECT_PARTS = {
    "expressions", "from_", "joins", "where", "group", "having", "order", "limit", "offset", "distinct", "with_", "locks",
    "operation_modifiers", "kind", "hint",
}  # fmt: skip
_MOST_UNITED = 40
_UNION_PARTS = {"this", "expression", "distinct", "order", "limit", "offset", "with_", "by_name"}


class Query(NamedTuple):
    """A translated query. Its columns are named ``c0``, ``c1``, … in SQLite.

    Attributes:
        sql: its text.
        columns: its columns, with the names that MySQL gives them.
        single: whether it never has more than one row.
    """

    sql: str
    columns: list[Column]
    single: bool


class Source(NamedTuple):
    """A table in FROM.

    Attributes:
        name: its name or alias in MySQL.
        alias: its alias in SQLite.
        columns: its columns.
        real: whether it is a table, whose columns have their own names; otherwise they are named ``c0``, ``c1``, …
    """

    name: str
    alias: str
    columns: list[Column]
    real: bool

    def expr(self, index: int) -> Expr:
        """A column as an expression."""
        name = quoted(self.columns[index].name) if self.real else f"c{index}"
        return Expr(f"{self.alias}.{name}", self.columns[index].type)


class Scope:
    """The names that the expressions of a query may use.

    Attributes:
        sources: the tables in FROM.
        parent: the scope of the query around this one.
        catalog: all tables.
        database: name of the database.
        overrides: values that replace columns, after earlier assignments of an UPDATE.
    """

    def __init__(self, catalog: Catalog, database: str, parent: Scope | None = None) -> None:
        self.sources: list[Source] = []
        self.parent = parent
        self.catalog = catalog
        self.database = database
        self.hidden: set[tuple[str, str]] = set()  # columns of USING that * shows once: (alias, name)
        self.overrides: dict[str, Expr] = {}
        self.common_tables: dict[str, Query] = dict(parent.common_tables) if parent else {}
        self.depth: int = parent.depth + 1 if parent else 0
        self.counter: list[int] = parent.counter if parent else [0]
        if self.depth > 12:
            raise unsupported("queries that are nested so deeply")

    def alias(self) -> str:
        """A fresh alias."""
        self.counter[0] += 1
        return f"s{self.counter[0]}"

    def find(self, name: str, table: str, clause: str) -> tuple[Expr, bool] | None:
        """A column, and whether it belongs to a query around this one; None if there is none."""
        found = []
        for source in self.sources:
            if table and source.name != table:
                continue
            for index, column in enumerate(source.columns):
                if column.name.lower() == name.lower() and (source.alias, name.lower()) not in self.hidden:
                    found.append(source.expr(index))
        if len(found) > 1:
            raise Refusal(f"1052 (23000): Column '{name}' in {_CLAUSES[clause]} is ambiguous")
        if found:
            override = self.overrides.get(found[0].sql)
            return found[0] if override is None else override, False
        if self.parent is not None:
            outer = self.parent.find(name, table, clause)
            return None if outer is None else (outer[0], True)
        return None

    def unknown(self, node: exp.Column, clause: str) -> Refusal:
        """The error of a column that does not exist."""
        shown = f"{node.table}.{node.name}" if node.table else node.name
        return Refusal(f"1054 (42S22): Unknown column '{shown}' in '{_CLAUSES[clause]}'")

    def subquery(self, node: Any) -> Query:
        """A query inside an expression."""
        return query(node, Scope(self.catalog, self.database, self), inner=True)

    def relation(self, node: exp.Table) -> Relation:
        """The table that a statement names."""
        found = self.catalog.get(node.name)
        if node.args.get("db") is not None and node.args["db"].name != self.database:
            raise Refusal(f"1142 (42000): SELECT command denied to user 'root'@'localhost' for table '{node.name}'")
        if found is None:
            raise Refusal(f"1146 (42S02): Table '{self.database}.{node.name}' doesn't exist")
        return found


def check_parts(node: Any, known: set[str]) -> None:
    """Refuses a statement with a part that is not translated."""
    for name, value in node.args.items():
        if value not in (None, False, []) and name not in known:
            raise unsupported(f"{name.strip('_')} in {node.key}")


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
    columns = [column._replace(type=kind) for column, kind in zip(made[0].columns, types, strict=True)]
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
    expressions = Expressions(outside, scope.database)
    expressions.clause = "ORDER"
    limit = _limit(node)
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


def _limit(node: Any) -> str:
    limit, offset = node.args.get("limit"), node.args.get("offset")
    values = []
    for part in (limit, offset):
        if part is None:
            continue
        value = part.expression
        if type(part).__name__ not in ("Limit", "Offset") or not re.fullmatch(r"\d{1,19}", str(getattr(value, "this", ""))):
            raise unsupported("this LIMIT")
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
        self.expressions = Expressions(scope, scope.database)

    def made(self) -> Query:
        from sqlglot import exp

        node, translate = self.node, self.expressions
        check_parts(node, _SELECT_PARTS)
        if not node.expressions:
            raise Refusal("1064 (42000): You have an error in your SQL syntax; SELECT has no expressions")
        if node.args.get("kind") or node.args.get("hint"):
            raise unsupported("this SELECT")
        if isinstance(node.args.get("distinct"), exp.Distinct) and node.args["distinct"].args.get("on"):
            raise unsupported("DISTINCT ON")
        source = self.from_clause()
        where = ""
        if node.args.get("where") is not None:
            translate.clause = "WHERE"
            where = truth(translate(node.args["where"].this))
        translate.clause = "SELECT"
        shown = self.selected()
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
        terms = []
        if group is not None:
            terms = self.group_terms(group, shown, aliases)
        if aggregated:
            translate.group = {one.sql for one in terms}
        values = [(item if isinstance(item, Expr) else translate(item), name) for item, name in shown]
        values = [
            (self._grouped(value) if isinstance(item, Expr) else value, name)
            for (value, name), (item, _) in zip(values, shown, strict=True)
        ]
        for (item, name), (value, _) in zip(shown, values, strict=True):
            if isinstance(item, exp.Expr) and name:
                translate.aliases.setdefault(name.lower(), value)
        distinct = node.args.get("distinct") is not None
        columns = [Column(name, value.type, _declared(value)) for value, name in values]
        listed = ", ".join(f"{collated(value) if distinct else value.sql} AS c{i}" for i, (value, _) in enumerate(values))
        sql = f"SELECT {'DISTINCT ' if distinct else ''}{listed}{source}"
        if having is not None:
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
        elif having_sql and group is None:
            pass
        sql += having_sql
        limit = _limit(node)
        if order is not None and (limit or not self.inner):
            sql += self.order_clause(order, values)
        single = (aggregated and group is None) or limit in (" LIMIT 1", " LIMIT 0") or node.args.get("from_") is None
        return Query(sql + limit, columns, single)

    def _grouped(self, value: Expr) -> Expr:
        """A column of ``*`` in a query that groups."""
        group = self.expressions.group
        return value if group is None else Expr(f"m_first({value.sql})", value.type)

    def group_terms(self, group: Any, shown: list, aliases: dict) -> list[Expr]:
        from sqlglot import exp

        check_parts(group, {"expressions"})
        translate, terms = self.expressions, []
        translate.clause = "GROUP"
        for one in group.expressions:
            position = _position(one, len(shown), "group statement")
            if position is not None:
                one = shown[position][0]
            elif isinstance(one, exp.Column) and not one.table and self.scope.find(one.name, "", "GROUP") is None:
                one = aliases.get(one.name.lower(), one)
            if isinstance(one, Expr):
                terms.append(one)
                continue
            if aggregates_in(one):
                raise Refusal("1056 (42000): Can't group on this column")
            terms.append(translate(one))
        translate.clause = "SELECT"
        return terms

    def order_clause(self, order: Any, values: list[tuple[Expr, str]]) -> str:
        self.expressions.clause = "ORDER"
        terms = []
        for term in order.expressions:
            position = _position(term.this, len(values))
            value = self.expressions(term.this) if position is None else values[position][0]
            if value.type.kind == "null" or value.value is not None:
                continue
            terms.append(collated(value) + " DESC" * bool(term.args.get("desc")))
        return f" ORDER BY {', '.join(terms)}" if terms else ""

    def selected(self) -> list[tuple[Any, str]]:
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

    # -------------------------------------------------------------------------------------------- FROM

    def from_clause(self) -> str:
        node = self.node.args.get("from_")
        if node is None or (
            node.this.name.lower() == "dual" and not node.this.args.get("joins") and type(node.this).__name__ == "Table"
        ):
            return ""
        return " FROM " + self.joined(node.this, self.node.args.get("joins") or [])

    def joined(self, first: Any, joins: list) -> str:
        sql = self.source(first)
        for join in [*(first.args.get("joins") or []), *joins]:
            check_parts(join, {"this", "on", "using", "side", "kind", "method"})
            side, kind = join.side.upper(), join.kind.upper()
            if side not in ("", "LEFT", "RIGHT") or kind not in ("", "INNER", "OUTER", "CROSS", "STRAIGHT", "STRAIGHT_JOIN"):
                raise unsupported(f"{side} {kind} JOIN".replace("  ", " ").strip())
            before = list(self.scope.sources)
            right = self.source(join.this)
            word = {"": "CROSS JOIN", "LEFT": "LEFT JOIN", "RIGHT": "RIGHT JOIN"}[side]
            tests = self.shared(join, before, self.scope.sources[len(before) :], side)
            if join.args.get("on") is not None:
                self.expressions.clause = "ON"
                tests.append(truth(self.expressions(join.args["on"])))
            if side and not tests:
                raise Refusal("1064 (42000): You have an error in your SQL syntax; an outer join has no condition")
            sql += f" {word} {right}" + (f" ON {' AND '.join(tests)}" if tests else "")
            for nested in join.this.args.get("joins") or []:
                raise unsupported(f"a join in parentheses ({nested.key})")
        return sql

    def shared(self, join: Any, before: list[Source], after: list[Source], side: str) -> list[str]:
        """The conditions of USING and NATURAL."""
        names = [one.name for one in join.args.get("using") or []]
        method = str(join.args.get("method") or "").upper()
        if method == "NATURAL":
            mine = {column.name.lower() for source in before for column in source.columns}
            names = [column.name for source in after for column in source.columns if column.name.lower() in mine]
        elif method:
            raise unsupported(f"{method} JOIN")
        if names and side == "RIGHT":
            raise unsupported("RIGHT JOIN … USING")
        tests = []
        for name in names:
            pair = []
            for group in (before, after):
                found = [
                    (source, index)
                    for source in group
                    for index, column in enumerate(source.columns)
                    if column.name.lower() == name.lower() and (source.alias, name.lower()) not in self.scope.hidden
                ]
                if len(found) != 1:
                    raise Refusal(f"1054 (42S22): Unknown column '{name}' in 'from clause'")
                pair.append(found[0][0].expr(found[0][1]))
            self.scope.hidden.add((after[0].alias, name.lower()))
            tests.append(compared("=", *pair))
        return tests

    def source(self, node: Any) -> str:
        """A table or a query in FROM."""
        from sqlglot import exp

        scope, alias = self.scope, self.scope.alias()
        given = node.alias
        if isinstance(node, exp.Subquery):
            check_parts(node, {"this", "alias", "joins"})
            if not given:
                raise Refusal("1248 (42000): Every derived table must have its own alias")
            around = Scope(scope.catalog, scope.database, scope.parent)
            around.common_tables = scope.common_tables
            made = query(node.this, around, inner=True)
            names = [one.name for one in node.args["alias"].args.get("columns") or []]
            columns = [c._replace(name=n) for c, n in zip(made.columns, names, strict=False)] if names else made.columns
            seen = [column.name.lower() for column in columns]
            repeated = next((name for i, name in enumerate(seen) if name in seen[:i]), None)
            if repeated is not None:
                raise Refusal(f"1060 (42S21): Duplicate column name '{columns[seen.index(repeated)].name}'")
            scope.sources.append(Source(given, alias, columns, False))
            return f"({made.sql}) AS {alias}"
        if not isinstance(node, exp.Table) or not isinstance(node.this, exp.Identifier):
            raise unsupported("this table")
        check_parts(node, {"this", "db", "alias", "joins", "hints"})
        name = given or node.name
        if any(source.name == name for source in scope.sources):
            raise Refusal(f"1066 (42000): Not unique table/alias: '{name}'")
        if node.args.get("db") is None and node.name in scope.common_tables:
            made = scope.common_tables[node.name]
            checked_length(Expr(made.sql, made.columns[0].type))
            scope.sources.append(Source(name, alias, made.columns, False))
            return f"({made.sql}) AS {alias}"
        relation = scope.relation(node)
        scope.sources.append(Source(name, alias, list(relation.columns), not relation.view))
        return f"{quoted(relation.name)} AS {alias}"


def _declared(value: Expr) -> str:
    """The type of a column that CREATE TABLE … SELECT makes."""
    kind, scale = value.type.kind, value.type.scale
    return {
        "int": "bigint(21)", "dec": f"decimal(65,{scale})", "dbl": "double", "str": "text", "bin": "blob", "date": "date",
        "datetime": "datetime", "time": "time", "null": "binary(0)",
    }[kind]  # fmt: skip
