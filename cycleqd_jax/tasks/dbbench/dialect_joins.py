"""Translates the tables and joins of FROM for SQLite."""

from __future__ import annotations

from typing import Any

from cycleqd_jax.tasks.dbbench.dialect_expressions import Expressions
from cycleqd_jax.tasks.dbbench.dialect_grammar import syntax_error
from cycleqd_jax.tasks.dbbench.dialect_names import Scope, Source, check_parts
from cycleqd_jax.tasks.dbbench.dialect_operators import checked_length, collated, compared
from cycleqd_jax.tasks.dbbench.dialect_types import Expr, Refusal, quoted, row_name, truth, unsupported

__all__ = ["Joins"]

_PLACE, _ROW = '"cycleqd place"', '"cycleqd row"'  # names that no column has


class Joins:
    """Adds the tables of one FROM to the scope of its expressions.

    Attributes:
        position: the place of a row in the first table, as text of SQLite.
        rows: for the alias of each table of a change SQLite's number of its rows, as text of SQLite.
    """

    def __init__(self, expressions: Expressions, *, numbered: bool = False, changes: bool = False) -> None:
        """Stores the scope.

        Args:
            expressions: the expressions of the query.
            numbered: whether :attr:`position` is needed.
            changes: whether :attr:`rows` is needed.
        """
        self.expressions = expressions
        self.scope = expressions.scope
        self.position = ""
        self.rows: dict[str, str] = {}
        self._numbered, self._changes = numbered, changes

    def __call__(self, first: Any, joins: list) -> str:
        """The tables of FROM, as text of SQLite.

        Args:
            first: the first table.
            joins: the joins that follow it.

        Raises:
            Refusal: there is no such table, or a part is not translated.
        """
        sql = self._source(first)
        for join in [*(first.args.get("joins") or []), *joins]:
            check_parts(join, {"this", "on", "using", "side", "kind", "method"})
            side, kind = join.side.upper(), join.kind.upper()
            if side not in ("", "LEFT", "RIGHT") or kind not in ("", "INNER", "OUTER", "CROSS", "STRAIGHT", "STRAIGHT_JOIN"):
                raise unsupported(f"{side} {kind} JOIN".replace("  ", " ").strip())
            before = list(self.scope.sources)
            right = self._source(join.this)
            word = {"": "CROSS JOIN", "LEFT": "LEFT JOIN", "RIGHT": "RIGHT JOIN"}[side]
            tests = self._shared(join, before, self.scope.sources[len(before) :], side)
            if join.args.get("on") is not None:
                self.expressions.clause = "ON"
                tests.append(truth(self.expressions(join.args["on"])))
            if side and not tests:
                raise Refusal("1064 (42000): You have an error in your SQL syntax; an outer join has no condition")
            sql += f" {word} {right}" + (f" ON {' AND '.join(tests)}" if tests else "")
            for nested in join.this.args.get("joins") or []:
                raise unsupported(f"a join in parentheses ({nested.key})")
        return sql

    def _shared(self, join: Any, before: list[Source], after: list[Source], side: str) -> list[str]:
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

    def _source(self, node: Any) -> str:
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
            made = self.expressions.query(node.this, around, inner=True)
            names = [one.name for one in node.args["alias"].args.get("columns") or []]
            columns = [c._replace(name=n) for c, n in zip(made.columns, names, strict=False)] if names else made.columns
            seen = [column.name.lower() for column in columns]
            repeated = next((name for i, name in enumerate(seen) if name in seen[:i]), None)
            if repeated is not None:
                raise Refusal(f"1060 (42S21): Duplicate column name '{columns[seen.index(repeated)].name}'")
            scope.sources.append(Source(given, alias, columns, False))
            return self._rows(f"({made.sql})", alias)
        if not isinstance(node, exp.Table) or not isinstance(node.this, exp.Identifier):
            raise unsupported("this table")
        check_parts(node, {"this", "db", "alias", "joins", "hints"})
        if any(hint.expressions for hint in node.args.get("hints") or []):
            raise unsupported("hints about an index")
        name = given or node.name
        if any(source.name == name for source in scope.sources):
            raise Refusal(f"1066 (42000): Not unique table/alias: '{name}'")
        if node.args.get("db") is None and node.name in scope.common_tables:
            made = scope.common_tables[node.name]
            checked_length(Expr(made.sql, made.columns[0].type))
            scope.sources.append(Source(name, alias, made.columns, False))
            return self._rows(f"({made.sql})", alias)
        relation = scope.relation(node)
        kinds = {column.name.lower(): column.type for column in relation.columns}
        scope.sources.append(Source(name, alias, list(relation.columns), not relation.view))
        if node.args.get("alias") is not None and node.args["alias"].args.get("columns"):
            raise syntax_error("(")
        if self._changes and not relation.view:
            self.rows[alias] = f"{alias}.{row_name(relation)}"
        if relation.main is not None and not any(column.auto for column in relation.columns):
            order = ", ".join(collated(Expr(quoted(name), kinds[name.lower()])) for name in relation.main.columns)
            row = ""
            if self._changes:
                row, self.rows[alias] = f", {row_name(relation)} AS {_ROW}", f"{alias}.{_ROW}"
            return self._rows(f"(SELECT *{row} FROM {quoted(relation.name)} ORDER BY {order} LIMIT -1)", alias)
        if relation.view or self.position:
            return self._rows(quoted(relation.name), alias)
        if self._numbered:
            self.position = f"{alias}.{row_name(relation)}"
        return f"{quoted(relation.name)} AS {alias}"

    def _rows(self, sql: str, alias: str) -> str:
        """The rows of a table or of a query under an alias."""
        if not self._numbered or self.position:
            return f"{sql} AS {alias}"
        self.position = f"{alias}.{_PLACE}"
        return f"(SELECT *, row_number() OVER () AS {_PLACE} FROM {sql}) AS {alias}"
