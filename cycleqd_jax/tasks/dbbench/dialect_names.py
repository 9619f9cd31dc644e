"""The names that the expressions of a query may use: tables, aliases and columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cycleqd_jax.tasks.dbbench.dialect_types import Catalog, Column, Expr, Refusal, Relation, quoted, unsupported

if TYPE_CHECKING:
    from sqlglot import exp

__all__ = ["Query", "Scope", "Source", "check_parts"]

_CLAUSES = {
    "SELECT": "field list", "WHERE": "where clause", "GROUP": "group statement", "HAVING": "having clause",
    "ORDER": "order clause", "ON": "on clause", "INSERT": "field list",
}  # fmt: skip


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

    def relation(self, node: exp.Table) -> Relation:
        """The table that a statement names."""
        found = self.catalog.get(node.name)
        if node.args.get("db") is not None and node.args["db"].name != self.database:
            if node.args["db"].name.lower() == "information_schema":
                raise unsupported("information_schema")
            raise Refusal(f"1142 (42000): SELECT command denied to user 'root'@'localhost' for table '{node.name}'")
        if found is None:
            raise Refusal(f"1146 (42S02): Table '{self.database}.{node.name}' doesn't exist")
        return found


def check_parts(node: Any, known: set[str]) -> None:
    """Refuses a statement with a part that is not translated."""
    for name, value in node.args.items():
        if value not in (None, False, []) and name not in known:
            raise unsupported(f"{name.strip('_')} in {node.key}")
