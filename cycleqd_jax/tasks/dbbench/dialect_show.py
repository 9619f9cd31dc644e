"""Answers SHOW and DESCRIBE from the catalog."""

from __future__ import annotations

from typing import Any

from cycleqd_jax.tasks.dbbench.dialect_grammar import syntax_error
from cycleqd_jax.tasks.dbbench.dialect_names import Scope, check_parts
from cycleqd_jax.tasks.dbbench.dialect_types import PRIMARY, Catalog, Column, Refusal, Relation, unsupported

__all__ = ["describe", "show"]


def describe(relation: Relation, like: str | None = None, *, full: bool = False) -> list[tuple]:
    """The rows of DESCRIBE and SHOW COLUMNS."""
    rows = []
    _check_types(relation)
    for column in relation.columns:
        if like is not None and not _matches(column.name, like):
            continue
        default = column.default.strip("'").replace("''", "'") if column.default is not None else None
        row = (
            column.name,
            column.declared,
            "YES" if column.nullable else "NO",
            _key_of(column, relation),
            default,
            "auto_increment" * column.auto,
        )
        if full:
            collation = "utf8mb4_general_ci" if column.type.kind == "str" else None
            row = (*row[:2], collation, *row[2:], "select,insert,update,references", "")
        rows.append(row)
    return rows


def _check_types(relation: Relation) -> None:
    if any(column.guessed for column in relation.columns):
        raise unsupported("the types of columns that a query has made")


def _key_of(column: Column, relation: Relation) -> str:
    """What DESCRIBE shows of the keys of a column."""
    if relation.main is not None and column.name in relation.main.columns:
        return "PRI"
    keys = [key for key in relation.keys if key.columns[0] == column.name]
    if any(key.unique and len(key.columns) == 1 for key in keys):
        return "UNI"
    return "MUL" if keys else ""


def show(node: Any, scope: Scope) -> list[tuple]:
    """The rows of SHOW."""
    what = str(node.this).upper()
    like_node = node.args.get("like")
    like = str(like_node.this) if like_node is not None else None
    check_parts(node, {"this", "like", "target", "full", "db", "json"})
    catalog: Catalog = scope.catalog
    if node.args.get("db") is not None and node.args["db"].name != scope.database:
        if what in ("INDEX", "COLUMNS", "CREATE TABLE"):
            target, whole = node.args.get("target"), f"'{node.args['db'].name}'.'"
            raise Refusal(f"1142 (42000): SELECT command denied to user 'root'@'localhost' for table {whole}{target.name}'")
        raise Refusal(f"1044 (42000): Access denied for user 'root'@'%' to database '{node.args['db'].name}'")
    if what == "TABLES":
        names = sorted(name for name in catalog if like is None or _matches(name, like, exact=True))
        return [(name, "VIEW" if catalog[name].view else "BASE TABLE") if node.args.get("full") else (name,) for name in names]
    if what == "DATABASES":
        return [(name,) for name in (scope.database, "information_schema") if like is None or _matches(name, like, exact=True)]
    if what in ("COLUMNS", "CREATE TABLE", "INDEX"):
        target = node.args.get("target")
        if target is None or (what == "INDEX" and like is not None):
            raise syntax_error("")
        name = target.name
        if name not in catalog:
            raise Refusal(f"1146 (42S02): Table '{scope.database}.{name}' doesn't exist")
        relation = catalog[name]
        if what == "COLUMNS":
            return describe(relation, like, full=bool(node.args.get("full")))
        if what == "CREATE TABLE" and not relation.view:
            return [(name, _shown_create(relation))]
        if what == "INDEX":
            if relation.keys:  # the server estimates the number of different values
                raise unsupported("SHOW INDEX of a table with keys")
            return []
    if what in ("WARNINGS", "ERRORS", "TRIGGERS", "EVENTS", "OPEN TABLES"):
        return []
    raise unsupported(f"SHOW {what}")


def _shown_create(relation: Relation) -> str:
    def name(text: str) -> str:
        return "`" + text.replace("`", "``") + "`"

    lines = []
    _check_types(relation)
    for column in relation.columns:
        line = f"  {name(column.name)} {column.declared}" + ("" if column.nullable else " NOT NULL")
        if column.default is not None:
            line += f" DEFAULT {column.default}"
        elif column.nullable:
            line += " DEFAULT NULL"
        lines.append(line + " AUTO_INCREMENT" * column.auto)
    known = {column.name.lower(): column for column in relation.columns}
    for key in relation.keys:
        parts = zip(key.columns, key.lengths, strict=True)
        shown = ",".join(name(part) + f"({length})" * (length > 0) for part, length in parts)
        kind = "PRIMARY KEY" if key.name == PRIMARY else f"{'UNIQUE ' * key.unique}KEY {name(key.name)}"
        lines.append(f"  {kind} ({shown}){' USING HASH' * key.hashed(known)}")
    body = ",\n".join(lines)
    return f"CREATE TABLE {name(relation.name)} (\n{body}\n) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci"


def _matches(name: str, pattern: str, *, exact: bool = False) -> bool:
    from cycleqd_jax.tasks.dbbench.sqlite_values import like

    return bool(like(name, pattern, "\\", int(exact)))
