"""Translates MySQL's definitions of tables, keys and views for SQLite."""

from __future__ import annotations

import dataclasses
from typing import Any

from cycleqd_jax.tasks.dbbench.dialect_expressions import Expressions
from cycleqd_jax.tasks.dbbench.dialect_grammar import syntax_error
from cycleqd_jax.tasks.dbbench.dialect_keys import arranged, create_index, is_auto_key, key_of, without_key
from cycleqd_jax.tasks.dbbench.dialect_names import Scope
from cycleqd_jax.tasks.dbbench.dialect_queries import query
from cycleqd_jax.tasks.dbbench.dialect_types import (
    INT,
    PRIMARY,
    Column,
    Expr,
    Key,
    Refusal,
    Relation,
    Type,
    literal,
    quoted,
    row_name,
    stored,
    unsupported,
)

__all__ = ["alter", "create", "create_table_sql", "drop_index"]

_WHOLE = {"TINYINT": "tinyint(4)", "SMALLINT": "smallint(6)", "MEDIUMINT": "mediumint(9)", "INT": "int(11)",
          "BIGINT": "bigint(20)", "UTINYINT": "tinyint(3) unsigned", "USMALLINT": "smallint(5) unsigned",
          "UMEDIUMINT": "mediumint(8) unsigned", "UINT": "int(10) unsigned", "UBIGINT": "bigint(20) unsigned",
          "BOOLEAN": "tinyint(1)"}  # fmt: skip
_TEXTS = {"TEXT": "text", "TINYTEXT": "tinytext", "MEDIUMTEXT": "mediumtext", "LONGTEXT": "longtext"}


def _typed(kind: Any) -> tuple[Type, str]:
    """A column's type, and how MySQL shows it."""
    if kind is None:
        raise unsupported("a column without a type")
    name = kind.this.name if hasattr(kind.this, "name") else str(kind.this)
    sizes = [str(size.this.this) for size in kind.expressions if hasattr(size, "this") and hasattr(size.this, "this")]
    if name in _WHOLE:
        return Type("int", 0, unsigned=name.startswith("U")), _WHOLE[name]
    if name in _TEXTS:
        return Type("str"), _TEXTS[name]
    if name in ("VARCHAR", "CHAR", "NCHAR", "NVARCHAR"):
        if name.endswith("VARCHAR") and not sizes:
            raise Refusal("1064 (42000): You have an error in your SQL syntax; a VARCHAR has no length")
        return Type("str"), f"{'varchar' if 'VAR' in name else 'char'}({sizes[0] if sizes else 1})"
    if name == "DECIMAL":
        precision, scale = (*sizes, "0")[:2] if sizes else ("10", "0")
        return Type("dec", int(scale)), f"decimal({precision},{scale})"
    if name in ("DOUBLE", "FLOAT"):
        if name == "FLOAT" or sizes:
            raise unsupported(f"columns of type {name}")
        return Type("dbl"), "double"
    if name == "DATE":
        return Type("date", 0), "date"
    if name in ("DATETIME", "TIME", "TIMESTAMP"):
        if name == "TIMESTAMP":
            raise unsupported("columns of type TIMESTAMP")
        return Type(name.lower(), int(sizes[0]) if sizes else 0), name.lower() + (f"({sizes[0]})" if sizes else "")
    raise unsupported(f"columns of type {name}")


def _defined(node: Any, scope: Scope) -> tuple[Column, str]:
    """A column of CREATE TABLE, and ``PRI`` or ``UNI`` if it is a key."""
    from sqlglot import exp

    kind, declared = _typed(node.args.get("kind"))
    column, key = Column(node.name, kind, declared), ""
    for constraint in node.args.get("constraints") or []:
        rule = constraint.kind
        if isinstance(rule, exp.NotNullColumnConstraint):
            column = column._replace(nullable=bool(rule.args.get("allow_null")))
        elif isinstance(rule, exp.PrimaryKeyColumnConstraint):
            column, key = column._replace(nullable=False), "PRI"
        elif isinstance(rule, exp.UniqueColumnConstraint):
            key = key or "UNI"
        elif isinstance(rule, exp.AutoIncrementColumnConstraint):
            column = column._replace(auto=True, nullable=False)
        elif isinstance(rule, exp.DefaultColumnConstraint):
            made = Expressions(Scope({}, scope.database), query)(rule.this)
            if made.sql == "m_now('datetime')":
                column = column._replace(default="current_timestamp()")
            elif made.value is None and made.type.kind != "null":
                raise unsupported("this DEFAULT")
            else:
                column = column._replace(default=None if made.type.kind == "null" else stored_default(made, column))
        elif not isinstance(rule, exp.CommentColumnConstraint):
            raise unsupported(f"{rule.key} of a column")
    return column, key


def stored_default(made: Expr, column: Column) -> str:
    """A default as an expression of SQLite."""
    return made.sql if column.type.numeric and made.type.numeric else literal(made.value or "")


def create_table_sql(relation: Relation, name: str | None = None) -> str:
    """The CREATE TABLE of SQLite for a table."""
    affinities = {"int": "INTEGER", "dec": "NUMERIC", "dbl": "REAL", "bin": "BLOB"}
    parts, keys = [], [key.columns for key in relation.keys if key.unique]
    for column in relation.columns:
        affinity = affinities.get(column.type.kind, "TEXT COLLATE mysql" if column.type.kind == "str" else "TEXT")
        part = f"{quoted(column.name)} {affinity}"
        if column.auto and is_auto_key(column, relation.keys):
            part += " PRIMARY KEY AUTOINCREMENT"
            keys = keys[1:]
        elif not column.nullable:
            part += " NOT NULL"
        parts.append(part)
    parts += [f"UNIQUE ({', '.join(map(quoted, key))})" for key in keys]
    return f"CREATE TABLE {quoted(name or relation.name)} ({', '.join(parts)})"


def create(node: Any, scope: Scope) -> tuple[list[str], Relation | None]:
    """CREATE TABLE and CREATE VIEW: the statements of SQLite, and the new table; None if it exists already."""
    from sqlglot import exp

    kind = str(node.args.get("kind") or "").upper()
    properties = node.args.get("properties")
    for one in properties.expressions if properties is not None else []:
        if isinstance(one, exp.TemporaryProperty):
            raise Refusal(f"1044 (42000): Access denied for user 'root'@'%' to database '{scope.database}'")
        if isinstance(one, exp.LikeProperty):
            continue
        if not isinstance(one, exp.EngineProperty | exp.CharacterSetProperty | exp.CollateProperty | exp.SchemaCommentProperty
                          | exp.AlgorithmProperty | exp.AutoIncrementProperty):  # fmt: skip
            raise unsupported(f"{one.key} of CREATE {kind}")
    if kind == "INDEX":
        relation, keys, changed = create_index(node, scope)
        return _with_keys(relation, keys) if changed else ([], None)
    if kind not in ("TABLE", "VIEW"):
        raise Refusal(f"1044 (42000): Access denied for user 'root'@'%' to database '{scope.database}'")
    target = node.this.this if isinstance(node.this, exp.Schema) else node.this
    name = target.name
    if target.args.get("db") is not None and target.args["db"].name != scope.database:
        raise Refusal(f"1044 (42000): Access denied for user 'root'@'%' to database '{target.args['db'].name}'")
    before: list[str] = []
    if name in scope.catalog:
        if node.args.get("exists"):
            return [], None
        if not node.args.get("replace"):
            raise Refusal(f"1050 (42S01): Table '{name}' already exists")
        before = [f"DROP {'VIEW' if scope.catalog[name].view else 'TABLE'} {quoted(name)}"]
    like = next(
        (one for one in (properties.expressions if properties is not None else []) if isinstance(one, exp.LikeProperty)), None
    )
    if like is not None:
        relation = dataclasses.replace(scope.relation(like.this), name=name)
        return [*before, create_table_sql(relation)], relation
    source = node.expression
    made = query(source, Scope(scope.catalog, scope.database)) if source is not None else None
    columns: list[Column] = []
    keys: list[Key] = []
    for one in node.this.expressions if isinstance(node.this, exp.Schema) else []:
        if isinstance(one, exp.ColumnDef):
            column, key = _defined(one, scope)
            columns.append(column)
            if key:
                keys.append(Key(PRIMARY if key == "PRI" else "", (column.name,), True, (0,)))
        elif kind == "VIEW" and isinstance(one, exp.Identifier):
            columns.append(Column(one.name, Type("str")))
        else:
            defined = key_of(one)
            if defined is None:
                raise unsupported(f"{one.key} of CREATE TABLE")
            keys.append(defined)
    seen = [column.name.lower() for column in [*columns, *(made.columns if made is not None and not columns else [])]]
    repeated = next((one for i, one in enumerate(seen) if one in seen[:i]), None)
    if repeated is not None:
        raise Refusal(f"1060 (42S21): Duplicate column name '{repeated}'")
    if kind == "VIEW":
        assert made is not None
        names = [column.name for column in columns] or [column.name for column in made.columns]
        shown = tuple(column._replace(name=new) for column, new in zip(made.columns, names, strict=False))
        return [*before, f"CREATE VIEW {quoted(name)} AS {made.sql}"], Relation(name, shown, view=True)
    if made is not None:
        if columns:
            raise unsupported("CREATE TABLE with columns and a SELECT")
        columns = [column._replace(default=None, auto=False) for column in made.columns]
    if not columns:
        raise Refusal("1113 (42000): A table must have at least 1 column")
    primary = [part.lower() for key in keys if key.name == PRIMARY for part in key.columns]
    columns = [column._replace(nullable=column.nullable and column.name.lower() not in primary) for column in columns]
    relation = Relation(name, tuple(columns), keys=arranged(keys, columns))
    statements = [*before, create_table_sql(relation)]
    if made is not None:
        statements.append(f"INSERT INTO {quoted(name)} SELECT * FROM ({made.sql})")
    return statements, relation


def alter(node: Any, scope: Scope) -> tuple[list[str], Relation, str]:
    """ALTER TABLE: the statements of SQLite, the new table, and the old name. The table is built anew."""
    from sqlglot import exp

    old = scope.relation(node.this)
    if old.view:
        raise Refusal(f"1347 (HY000): '{scope.database}.{old.name}' is not of type 'BASE TABLE'")
    columns = [(column, quoted(column.name)) for column in old.columns]
    keys, name = list(old.keys), old.name

    def place(wanted: str) -> int:
        index = next((i for i, (column, _) in enumerate(columns) if column.name.lower() == wanted.lower()), None)
        if index is None:
            raise Refusal(f"1054 (42S22): Unknown column '{wanted}' in '{old.name}'")
        return index

    def put(column: Column, value: str, position: Any, index: int) -> None:
        if position is not None:
            where = str(position.args.get("position") or "").upper()
            index = 0 if where == "FIRST" else place(position.this.name) + 1
        columns.insert(index, (column, value))

    from cycleqd_jax.tasks.dbbench.dialect_changes import implicit

    for action in node.args.get("actions") or []:
        if isinstance(action, exp.ColumnDef):
            column, key = _defined(action, scope)
            if key or column.auto:
                raise unsupported("ADD COLUMN with a key")
            if any(one.name.lower() == column.name.lower() for one, _ in columns):
                raise Refusal(f"1060 (42S21): Duplicate column name '{column.name}'")
            put(column, implicit(column), action.args.get("position"), len(columns))
        elif isinstance(action, exp.Drop) and str(action.args.get("kind")).upper() == "COLUMN":
            for dropped in action.args.get("tables") or [action.this]:
                index = next((i for i, (c, _) in enumerate(columns) if c.name.lower() == dropped.name.lower()), None)
                if index is None:
                    raise Refusal(f"1091 (42000): Can't DROP COLUMN `{dropped.name}`; check that it exists")
                if len(columns) == 1:
                    raise Refusal("1090 (42000): You can't delete all columns with ALTER TABLE; use DROP TABLE instead")
                if any(columns[index][0].name in key.columns for key in keys):
                    raise unsupported("DROP COLUMN of a key")
                del columns[index]
        elif isinstance(action, exp.ModifyColumn):
            renamed = action.args.get("rename_from")
            column, key = _defined(action.this, scope)
            index = place(renamed.name if renamed is not None else column.name)
            before, value = columns.pop(index)
            if key or column.auto or any(before.name in one.columns for one in keys):
                raise unsupported("a change of a key column")
            if before.type.kind == "str" and column.type.kind == "int":  # unlike INSERT, this cuts fractions
                value, before = f"m_int({value})", before._replace(type=INT)
            put(column, stored(Expr(value, before.type), column), action.this.args.get("position"), index)
        elif isinstance(action, exp.RenameColumn):
            index = place(action.this.name)
            column, value = columns[index]
            columns[index] = (column._replace(name=action.args["to"].name), value)
            new_name = action.args["to"].name
            keys = [
                key._replace(columns=tuple(new_name if part == column.name else part for part in key.columns)) for key in keys
            ]
        elif isinstance(action, exp.AddConstraint):
            for one in action.expressions:
                key = key_of(one)
                if key is None or key.name == PRIMARY:
                    raise unsupported("this ADD")
                keys.append(key)
        elif isinstance(action, exp.Drop) and str(action.args.get("kind")).upper() == "INDEX":
            for dropped in action.args.get("tables") or [action.this]:
                keys = without_key(keys, dropped.name, exists=bool(action.args.get("exists")))
        elif isinstance(action, exp.AlterRename):
            name = action.this.name
            if name in scope.catalog and name != old.name:
                raise Refusal(f"1050 (42S01): Table '{name}' already exists")
        else:
            raise unsupported(f"{getattr(action, 'key', 'this')} of ALTER TABLE")
    if not node.args.get("actions"):
        raise unsupported("this ALTER TABLE")
    kept = tuple(column for column, _ in columns)
    new = Relation(name, kept, keys=arranged(keys, kept))
    return _rebuilt(old, new, [value for _, value in columns]), new, old.name


def drop_index(node: Any, scope: Scope) -> tuple[list[str], Relation]:
    """DROP INDEX: the statements of SQLite, and the table without the key."""
    place = node.args.get("cluster")
    if place is None:
        raise syntax_error("")
    old = scope.relation(place.this)
    keys = without_key(list(old.keys), node.args["tables"][0].name, exists=bool(node.args.get("exists")))
    return _with_keys(old, keys)


def _with_keys(old: Relation, keys: list[Key]) -> tuple[list[str], Relation]:
    """A table with other keys."""
    new = dataclasses.replace(old, keys=arranged(keys, old.columns))
    if [key for key in new.keys if key.unique] == [key for key in old.keys if key.unique]:
        return [], new
    return _rebuilt(old, new, [quoted(column.name) for column in old.columns]), new


def _rebuilt(old: Relation, new: Relation, values: list[str]) -> list[str]:
    """The statements that put a new table in the place of an old one; ``values`` are those of its columns."""
    names = ", ".join(quoted(column.name) for column in new.columns)
    listed, scratch = ", ".join(values), "cycleqd new table"
    return [
        create_table_sql(new, scratch),
        f"INSERT INTO {quoted(scratch)} ({names}) SELECT {listed} FROM {quoted(old.name)} ORDER BY {row_name(old)}",
        f"DROP TABLE {quoted(old.name)}",
        f"ALTER TABLE {quoted(scratch)} RENAME TO {quoted(new.name)}",
    ]
