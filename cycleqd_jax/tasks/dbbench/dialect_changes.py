"""Translates INSERT, REPLACE, UPDATE and DELETE of MySQL for SQLite."""

from __future__ import annotations

from typing import Any

from cycleqd_jax.tasks.dbbench.dialect_expressions import Expressions
from cycleqd_jax.tasks.dbbench.dialect_joins import Joins
from cycleqd_jax.tasks.dbbench.dialect_names import Scope, Source, check_parts
from cycleqd_jax.tasks.dbbench.dialect_operators import checked_length, collated
from cycleqd_jax.tasks.dbbench.dialect_queries import limit_clause, query
from cycleqd_jax.tasks.dbbench.dialect_types import (
    Column,
    Expr,
    Refusal,
    Relation,
    quoted,
    row_name,
    stored,
    truth,
    unsupported,
)

__all__ = ["delete", "insert", "update"]

_NEW = '"cycleqd new values"'  # a name that no table has
_IGNORED = {"is_function", "stored", "by_name", "exists", "partition", "settings", "default", "overwrite", "source"}


def implicit(column: Column) -> str:
    """The value of a column that has none, by its default."""
    if column.default is not None and column.default != "NULL":
        return column.default.replace("current_timestamp()", "m_now('datetime')")
    if column.nullable or column.auto:
        return "NULL"
    empty = {"int": "0", "dec": "0", "dbl": "0.0", "str": "''", "bin": "x''", "date": "'0000-00-00'", "time": "'00:00:00'"}
    return empty.get(column.type.kind, "'0000-00-00 00:00:00'")


def _table(node: Any, scope: Scope) -> Relation:
    relation = scope.relation(node)
    if relation.view:
        raise unsupported(f"changes to the view {relation.name}")
    return relation


def _column(relation: Relation, name: str) -> Column:
    found = next((column for column in relation.columns if column.name.lower() == name.lower()), None)
    if found is None:
        raise Refusal(f"1054 (42S22): Unknown column '{name}' in 'field list'")
    return found


def _value(node: Any, column: Column, translate: Expressions, *, one_row: bool) -> str:
    """A value for a column."""
    from sqlglot import exp

    name = node.name.upper() if isinstance(node, exp.Var | exp.Column) and not getattr(node, "table", "") else ""
    if isinstance(node, exp.Var) and name == "DEFAULT":
        return implicit(column)
    made = translate(node)
    if made.type.kind == "null" and not column.nullable and not column.auto:
        if one_row:
            raise Refusal(f"1048 (23000): Column '{column.name}' cannot be null")
        return implicit(column._replace(default=None))
    value = stored(made, column)
    if column.auto:
        value = f"nullif({value}, 0)"
    return checked_length(Expr(value, column.type)).sql


def insert(node: Any, scope: Scope, replaces: bool) -> str:
    """INSERT and REPLACE."""
    from sqlglot import exp

    check_parts(node, {"this", "expression", "conflict", "ignore", *_IGNORED})
    if node.args.get("overwrite") or node.args.get("partition") or node.args.get("exists"):
        raise unsupported("this INSERT")
    target, names = (
        (node.this.this, [one.name for one in node.this.expressions]) if isinstance(node.this, exp.Schema) else (node.this, [])
    )
    relation = _table(target, scope)
    columns = [_column(relation, name) for name in names] or list(relation.columns)
    repeated = next((c.name for i, c in enumerate(columns) if c in columns[:i]), None)
    if repeated is not None:
        raise Refusal(f"1110 (42000): Column '{repeated}' specified twice")
    missing = [column for column in relation.columns if column not in columns]
    word = "REPLACE" if replaces else "INSERT OR IGNORE" if node.args.get("ignore") else "INSERT"
    listed = ", ".join(quoted(column.name) for column in [*columns, *missing])
    head = f"{word} INTO {quoted(relation.name)} ({listed}) "
    extra = [implicit(column) for column in missing]
    translate = Expressions(scope, query)
    translate.clause = "INSERT"
    own = Source(relation.name, "new", list(relation.columns), True)
    source = node.expression
    if isinstance(source, exp.Values):
        rows = []
        for number, row in enumerate(source.expressions, 1):
            cells = row.expressions if isinstance(row, exp.Tuple) else [row]
            if not cells and not names:
                rows.append([implicit(column) for column in relation.columns])
                continue
            if len(cells) != len(columns):
                raise Refusal(f"1136 (21S01): Column count doesn't match value count at row {number}")
            one = len(source.expressions) == 1
            scope.sources[:] = [own]  # a value may be a column: what the row has there so far
            scope.overrides = {own.expr(i).sql: Expr(implicit(c), c.type) for i, c in enumerate(relation.columns)}
            values = []
            for cell, column in zip(cells, columns, strict=True):
                values.append(_value(cell, column, translate, one_row=one))
                scope.overrides[own.expr(relation.columns.index(column)).sql] = Expr(f"({values[-1]})", column.type)
            rows.append(values + extra)
        body = "VALUES " + ", ".join(f"({', '.join(row)})" for row in rows)
    elif source is not None:
        made = query(source, Scope(scope.catalog, scope.database))
        if len(made.columns) != len(columns):
            raise Refusal("1136 (21S01): Column count doesn't match value count at row 1")
        pairs = list(zip(made.columns, columns, strict=True))
        fixed = any(mine.type.code[0] == "f" and column.type.kind == "str" for mine, column in pairs)
        if fixed and any(table.name == relation.name for table in source.find_all(exp.Table)):
            raise unsupported("INSERT … SELECT of rounded numbers from the table itself")  # zeros of a temporary table
        cells = [
            stored(Expr(f"c{i}", mine.type), column) for i, (mine, column) in enumerate(zip(made.columns, columns, strict=True))
        ]
        body = f"SELECT {', '.join([*cells, *extra])} FROM ({made.sql}) WHERE true"
    else:
        body = f"VALUES ({', '.join(implicit(column) for column in relation.columns)})"
    return head + body + _on_duplicate(node, scope, relation)


def _on_duplicate(node: Any, scope: Scope, relation: Relation) -> str:
    conflict = node.args.get("conflict")
    if conflict is None:
        return ""
    if not conflict.args.get("duplicate"):
        raise unsupported("ON CONFLICT")
    if not any(key.unique for key in relation.keys):
        return ""
    inner = Scope(scope.catalog, scope.database)
    inner.sources.append(Source(relation.name, quoted(relation.name), list(relation.columns), True))
    translate = Expressions(inner, query)
    translate.values = {c.name.lower(): Expr(f"excluded.{quoted(c.name)}", c.type) for c in relation.columns}
    pairs = []
    for assignment in conflict.expressions:
        column = _column(relation, assignment.this.name)
        pairs.append(f"{quoted(column.name)} = {_value(assignment.expression, column, translate, one_row=True)}")
    return f" ON CONFLICT DO UPDATE SET {', '.join(pairs)}"


def _from(node: Any, scope: Scope) -> tuple[str, Expressions, dict[str, str]]:
    """The FROM of a change of one or several tables, its expressions, and the numbers of the rows of each alias."""
    expressions = Expressions(scope, query)
    joins = Joins(expressions, changes=True)
    return joins(node.this, []), expressions, joins.rows


def _chosen(node: Any, translate: Expressions, from_sql: str, selected: str) -> str:
    """The query of the rows that a statement changes; ``selected`` is the list after its SELECT."""
    sql = f"SELECT {selected} FROM {from_sql}"
    if node.args.get("where") is not None:
        translate.clause = "WHERE"
        sql += f" WHERE {truth(translate(node.args['where'].this))}"
    if node.args.get("order") is not None:
        translate.clause = "ORDER"
        terms = [
            collated(translate(term.this)) + " DESC" * bool(term.args.get("desc")) for term in node.args["order"].expressions
        ]
        sql += f" ORDER BY {', '.join(terms)}"
    return sql + limit_clause(node)


def update(node: Any, scope: Scope) -> list[str]:
    """UPDATE of one table, or of one table of a join."""
    check_parts(node, {"this", "expressions", "where", "order", "limit"})
    from_sql, translate, numbers = _from(node, scope)
    targets: dict[str, Source] = {}
    pairs: list[tuple[Column, str]] = []
    translate.clause = "INSERT"
    plain = len(scope.sources) == 1
    for assignment in node.expressions:
        if type(assignment).__name__ != "EQ" or type(assignment.this).__name__ != "Column":
            raise unsupported("this assignment")
        name = assignment.this
        found = scope.find(name.name, name.table, "SELECT")
        if found is None:
            raise scope.unknown(name, "SELECT")
        for source in scope.sources:
            for index, column in enumerate(source.columns):
                if source.expr(index).sql == found[0].sql or (column.name.lower() == name.name.lower() and plain):
                    targets[source.alias] = source
                    value = _value(assignment.expression, column, translate, one_row=False)
                    pairs.append((column, value))
                    if plain:
                        scope.overrides[source.expr(index).sql] = Expr(f"({value})", column.type)
    if len(targets) != 1:
        raise unsupported("an UPDATE of several tables")
    scope.overrides.clear()
    (target,) = targets.values()
    relation = next(one for one in scope.catalog.values() if one.name == _physical(node, target))
    if relation.view or not target.real:
        raise unsupported(f"changes to the view {relation.name}")
    row = row_name(relation)
    condition = truth(translate(node.args["where"].this)) if node.args.get("where") is not None else ""
    name = quoted(relation.name)
    if plain:
        values = ", ".join(f"{value} AS v{i}" for i, (_, value) in enumerate(pairs))
        shown = ", ".join(f"{quoted(column.name)} = {_NEW}.v{i}" for i, (column, _) in enumerate(pairs))
        # The new values are computed before the first row is changed.
        rows = _chosen(node, translate, from_sql, f"{values}, {numbers[target.alias]} AS r")
        return [f"UPDATE {name} SET {shown} FROM ({rows}) AS {_NEW} WHERE {name}.{row} = {_NEW}.r"]
    chosen = _chosen(node, translate, from_sql, numbers[target.alias])
    shown = ", ".join(
        f"{quoted(column.name)} = (SELECT {value} FROM {from_sql} WHERE {numbers[target.alias]} = {_NEW}.{row}"
        + (f" AND {condition}" if condition else "")
        + " LIMIT 1)"
        for column, value in pairs
    )
    return [f"UPDATE {name} AS {_NEW} SET {shown} WHERE {_NEW}.{row} IN ({chosen})"]


def _physical(node: Any, target: Source) -> str:
    """The name of the table that a source stands for."""
    for one in [node.this, *(join.this for join in node.this.args.get("joins") or [])]:
        if type(one).__name__ == "Table" and (one.alias or one.name) == target.name:
            return one.name
    raise unsupported("this change")


def delete(node: Any, scope: Scope) -> list[str]:
    """DELETE from one table, or from one table of a join."""
    check_parts(node, {"this", "tables", "where", "order", "limit", "cluster", "using"})
    if node.args.get("using"):
        raise unsupported("DELETE … USING")
    from_sql, translate, numbers = _from(node, scope)
    tables = node.args.get("tables") or []
    if not tables and len(scope.sources) != 1:
        raise unsupported("this DELETE")
    if len(tables) > 1:
        raise unsupported("a DELETE from several tables")
    name = tables[0].name if tables else scope.sources[0].name
    target = next((source for source in scope.sources if source.name == name), None)
    if target is None:
        raise Refusal(f"1109 (42S02): Unknown table '{name}' in MULTI DELETE")
    relation = scope.catalog[_physical(node, target)]
    if relation.view:
        raise unsupported(f"changes to the view {relation.name}")
    row = row_name(relation)
    chosen = _chosen(node, translate, from_sql, numbers[target.alias])
    return [f"DELETE FROM {quoted(relation.name)} WHERE {row} IN ({chosen})"]
