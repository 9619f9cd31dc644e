"""Translates statements of MySQL for SQLite, with sqlglot. It runs outside the sandbox and executes nothing.

Every part of a statement is translated by a rule of its own. A part without a rule is an error in the reply: a statement is
never executed in another sense than MySQL's. The types of MySQL's expressions are known from the catalog, so comparisons
and conversions follow its rules, and results have its types.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from cycleqd_jax.tasks.dbbench.dialect_parser import ONLY_A_COMMENT, parse
from cycleqd_jax.tasks.dbbench.dialect_types import Catalog, Column, Expr, Refusal, Relation, literal, quoted, text, unsupported

if TYPE_CHECKING:
    from cycleqd_jax.tasks.dbbench.dialect_sessions import Assigned

__all__ = ["VERSION", "Statement", "fingerprint_sql", "table_relation", "translate"]

VERSION = 6
"""Part of the fingerprints of tasks. Raise it with each change of the results of statements."""

_DENIED = re.compile(r"\s*(?:LOCK|GRANT|REVOKE|FLUSH|LOAD|KILL|SHUTDOWN|INSTALL)\b", re.IGNORECASE)
_MAINTENANCE = re.compile(r"\s*(HANDLER|ANALYZE|OPTIMIZE|CHECK|REPAIR|CHECKSUM|HELP)\b", re.IGNORECASE)
# What CREATE, ALTER and DROP may be followed by.
_DEFINED = frozenset((
    "AGGREGATE", "ALGORITHM", "DATABASE", "DEFINER", "EVENT", "FULLTEXT", "FUNCTION", "IGNORE", "INDEX", "LOGFILE", "ONLINE",
    "OR", "PACKAGE", "PROCEDURE", "SCHEMA", "SEQUENCE", "SERVER", "SPATIAL", "SQL", "TABLE", "TABLESPACE", "TEMPORARY",
    "TRIGGER", "UNIQUE", "VIEW",
))  # fmt: skip
_DO = re.compile(r"\s*DO\s+\d+\s*\Z", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Statement:
    """A translated statement.

    Attributes:
        sql: statements of SQLite, executed together.
        codes: for each column of the last one's result how it is shown; None if it has no result.
        rows: a result that needs no execution, or None.
        catalog: the tables after the statement, or None if it does not change them.
        assigned: what SET changes, else None.
    """

    sql: tuple[str, ...] = ()
    codes: tuple[str, ...] | None = None
    rows: str | None = None
    catalog: Catalog | None = None
    assigned: Assigned | None = None


def table_relation(name: str, columns: tuple[str, ...]) -> Relation:
    """The table of a problem: every column is TEXT."""
    from cycleqd_jax.tasks.dbbench.dialect_types import TEXT

    return Relation(name, tuple(Column(column, TEXT) for column in columns))


def fingerprint_sql(catalog: Catalog, table: str, columns: tuple[str, ...]) -> str | None:
    """The query of the texts that make the fingerprint of a table; None if the table or a column is gone."""
    relation = catalog.get(table)
    if relation is None:
        return None
    known = {column.name.lower(): (index, column) for index, column in enumerate(relation.columns)}
    shown = []
    for name in columns:
        if name.lower() not in known:
            return None
        index, column = known[name.lower()]
        shown.append(text(Expr(f"c{index}" if relation.view else quoted(column.name), column.type)))
    return f"SELECT {', '.join(shown)} FROM main.{quoted(table)}"


def translate(sql: str, catalog: Catalog, database: str) -> Statement:
    """Translates one statement.

    Args:
        sql: the statement, as :func:`~cycleqd_jax.tasks.dbbench.dialect_parser.split` returns it.
        catalog: the tables.
        database: name of the database.

    Raises:
        Refusal: the statement has an error, or a part that is not translated.
    """
    try:
        return _translated(sql, catalog, database)
    except (RecursionError, MemoryError):
        raise unsupported("statements that are nested so deeply") from None
    except Refusal:
        raise
    except Exception as error:  # a tree of an unknown form
        raise unsupported(f"this statement ({type(error).__name__})") from None


def _translated(sql: str, catalog: Catalog, database: str) -> Statement:
    from sqlglot import exp

    from cycleqd_jax.tasks.dbbench.dialect_changes import delete, insert, update
    from cycleqd_jax.tasks.dbbench.dialect_grammar import syntax_error
    from cycleqd_jax.tasks.dbbench.dialect_names import Scope
    from cycleqd_jax.tasks.dbbench.dialect_queries import query
    from cycleqd_jax.tasks.dbbench.dialect_sessions import assignments, missing_savepoint, transaction
    from cycleqd_jax.tasks.dbbench.dialect_show import describe, show
    from cycleqd_jax.tasks.dbbench.dialect_tables import alter, create, drop_index

    if sql == ONLY_A_COMMENT or _DO.match(sql):
        return Statement(rows="[]")
    change = transaction(sql)
    if change is not None and change.kind in ("undo", "release"):
        raise missing_savepoint(sql)  # each text has a session of its own
    if change is not None and change.kind != "implicit":
        return Statement(rows="[]")
    if re.match(r"\s*SET\b", sql, re.IGNORECASE):
        assigned = assignments(sql, Scope(catalog, database))
        return Statement(assigned.sql, rows=None if assigned.sql else "[]", assigned=assigned)
    if _DENIED.match(sql):
        raise Refusal(f"1044 (42000): Access denied for user 'root'@'%' to database '{database}'")
    maintenance = _MAINTENANCE.match(sql)
    if maintenance:
        raise unsupported(maintenance[1].upper())
    node: Any
    node, replaces = parse(sql)
    scope = Scope(catalog, database)
    if isinstance(node, exp.Query):
        made = query(node, scope)
        if isinstance(node, exp.Select) and node.args.get("into") is not None:
            raise unsupported("SELECT … INTO")
        return Statement((made.sql,), tuple(column.type.code for column in made.columns))
    if isinstance(node, exp.Insert):
        return Statement((insert(node, scope, replaces),))
    if isinstance(node, exp.Update):
        return Statement(tuple(update(node, scope)))
    if isinstance(node, exp.Delete):
        return Statement(tuple(delete(node, scope)))
    if isinstance(node, exp.Create):
        statements, relation = create(node, scope)
        return Statement(
            tuple(statements),
            catalog=None if relation is None else {**catalog, relation.name: relation},
            rows=None if statements else "[]",
        )
    if isinstance(node, exp.Alter):
        statements, relation, old = alter(node, scope)
        return Statement(tuple(statements), catalog={**{n: r for n, r in catalog.items() if n != old}, relation.name: relation})
    if isinstance(node, exp.Drop) and str(node.args.get("kind")).upper() == "INDEX":
        statements, relation = drop_index(node, scope)
        return Statement(tuple(statements), catalog={**catalog, relation.name: relation}, rows=None if statements else "[]")
    if isinstance(node, exp.Drop):
        return _drop(node, catalog, database)
    if isinstance(node, exp.TruncateTable):
        emptied = [scope.relation(one) for one in node.expressions]
        counters = [one.name for one in emptied if any(column.auto for column in one.columns)]
        return Statement(
            (
                *(f"DELETE FROM sqlite_sequence WHERE name = {literal(name)}" for name in counters),
                *(f"DELETE FROM {quoted(one.name)}" for one in emptied),
            )
        )
    if isinstance(node, exp.Show):
        return Statement(rows=str(show(node, scope)))
    if isinstance(node, exp.Describe) and isinstance(node.this, exp.Table):
        return Statement(rows=str(describe(scope.relation(node.this))))
    if isinstance(node, exp.Use):
        if node.this is not None and node.this.name == database:
            return Statement(rows="[]")
        raise Refusal(f"1044 (42000): Access denied for user 'root'@'%' to database '{getattr(node.this, 'name', '')}'")
    words = sql.upper().split(maxsplit=2)
    if isinstance(node, exp.Command) and words[0] in ("CREATE", "ALTER", "DROP"):
        if words[1:2] in (["USER"], ["ROLE"]):
            raise Refusal(
                "1227 (42000): Access denied; you need (at least one of) the CREATE USER privilege(s) for this operation"
            )
        if words[1:] and words[1] not in _DEFINED:
            raise syntax_error(sql[len(words[0]) :].lstrip())
    if isinstance(node, exp.Command | exp.Describe):
        raise unsupported(sql.split()[0].upper() + (" of a query" if isinstance(node, exp.Describe) else ""))
    raise syntax_error(sql)


def _drop(node: Any, catalog: Catalog, database: str) -> Statement:
    kind = str(node.args.get("kind") or "").upper()
    if kind not in ("TABLE", "VIEW"):
        raise Refusal(f"1044 (42000): Access denied for user 'root'@'%' to database '{database}'")
    left, statements, missing = dict(catalog), [], []
    for table in node.args.get("tables") or [node.this]:
        relation = left.get(table.name)
        if relation is None or relation.view != (kind == "VIEW"):
            missing.append(f"{database}.{table.name}")
            continue
        statements.append(f"DROP {kind} {quoted(relation.name)}")
        del left[table.name]
    if missing and not node.args.get("exists"):
        number = "1051 (42S02): Unknown table" if kind == "TABLE" else "4092 (42S02): Unknown VIEW:"
        raise Refusal(f"{number} '{','.join(missing)}'")
    return Statement(tuple(statements), catalog=left, rows=None if statements else "[]")
