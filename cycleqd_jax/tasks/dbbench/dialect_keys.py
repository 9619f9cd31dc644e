"""The keys of tables: what definitions say of them, their names and their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cycleqd_jax.tasks.dbbench.dialect_names import Scope
from cycleqd_jax.tasks.dbbench.dialect_types import PRIMARY, Column, Key, Refusal, Relation, unsupported

__all__ = ["arranged", "create_index", "is_auto_key", "key_of", "without_key"]

_LONGEST = 768
"""Number of characters of a text that InnoDB puts into a key."""
_NO_PREFIX = Refusal(
    "1089 (HY000): Incorrect prefix key; the used key part isn't a string, the used length is longer than the key part, or the "
    "storage engine doesn't support unique prefix keys"
)


def key_of(node: Any) -> Key | None:
    """The key that a part of CREATE TABLE or of ALTER TABLE defines, without a name if it has none; None if it is no key.

    Raises:
        Refusal: it is not translated.
    """
    from sqlglot import exp

    if isinstance(node, exp.Constraint):
        made = key_of(node.expressions[0]) if len(node.expressions) == 1 else None
        return made if made is None or made.name else made._replace(name=node.name)
    if isinstance(node, exp.PrimaryKey):
        if node.args.get("options"):
            raise unsupported("options of a key")
        return _key(PRIMARY, node.expressions, unique=True)
    if isinstance(node, exp.UniqueColumnConstraint):
        if not isinstance(node.this, exp.Schema) or any(
            node.args.get(part) for part in ("index_type", "on_conflict", "options")
        ):
            raise unsupported("this UNIQUE")
        return _key(node.this.name, node.this.expressions, unique=True)
    if isinstance(node, exp.IndexColumnConstraint):
        if any(node.args.get(part) for part in ("kind", "index_type", "options", "expression", "granularity")):
            raise unsupported("options of a key")
        return _key(node.name, node.expressions, unique=False)
    return None


def create_index(node: Any, scope: Scope) -> tuple[Relation, list[Key], bool]:
    """CREATE INDEX: the table, its keys with the new one at the end, and whether it changes anything."""
    index = node.this
    relation = scope.relation(index.args["table"])
    parts = index.args.get("params")
    if relation.view:
        raise Refusal(f"1347 (HY000): '{scope.database}.{relation.name}' is not of type 'BASE TABLE'")
    if parts is None or any(part.args.get("desc") for part in parts.args.get("columns") or []) or parts.args.get("using"):
        raise unsupported("this CREATE INDEX")
    new = _key(index.name, [part.this for part in parts.args["columns"]], unique=bool(node.args.get("unique")))
    keys = list(relation.keys)
    same = next((key for key in keys if key.name.lower() == new.name.lower()), None)
    if same is not None and node.args.get("exists"):
        return relation, keys, False
    if same is not None and node.args.get("replace"):
        keys.remove(same)
    return relation, [*keys, new], True


def without_key(keys: list[Key], name: str, *, exists: bool) -> list[Key]:
    """Keys without one of them; ``exists``: it may be missing."""
    left = [key for key in keys if key.name.lower() != name.lower()]
    if len(left) == len(keys) and not exists:
        raise Refusal(f"1091 (42000): Can't DROP INDEX `{name}`; check that it exists")
    if any(key.name == PRIMARY for key in keys if key not in left):
        raise unsupported("DROP of the primary key")
    return left


def _key(name: str, parts: Sequence[Any], *, unique: bool) -> Key:
    from sqlglot import exp

    columns, lengths = [], []
    for part in parts:
        length = 0
        if isinstance(part, exp.Ordered):
            if part.args.get("desc"):
                raise unsupported("a key in descending order")
            part = part.this
        if isinstance(part, exp.ColumnPrefix):
            column, length = part.this.name, int(part.expression.name)
        elif isinstance(part, exp.Anonymous) and len(part.expressions) == 1 and part.expressions[0].name.isdecimal():
            column, length = str(part.this), int(part.expressions[0].name)
        elif isinstance(part, exp.Column | exp.Identifier):
            column = part.name
        else:
            raise unsupported("a key of this expression")
        columns.append(column)
        lengths.append(length)
    return Key(name, tuple(columns), unique, tuple(lengths))


def arranged(keys: Sequence[Key], columns: Sequence[Column]) -> tuple[Key, ...]:
    """Keys with their names, in the order in which the server shows them.

    Raises:
        Refusal: a key is wrong, or has a part that SQLite does not compare as the server does.
    """
    known = {column.name.lower(): column for column in columns}
    made: list[Key] = []
    for key in keys:
        key = _checked(key, known)
        names = {other.name.lower() for other in made}
        if key.name == PRIMARY and PRIMARY.lower() in names:
            raise Refusal("1068 (42000): Multiple primary key defined")
        if not key.name:
            free = (key.columns[0] + "_" * (n > 1) + str(n) * (n > 1) for n in range(1, len(keys) + 2))
            key = key._replace(name=next(name for name in free if name.lower() not in names))
        elif key.name.lower() in names:
            raise Refusal(f"1061 (42000): Duplicate key name '{key.name}'")
        elif key.name.upper() == PRIMARY and key.name != PRIMARY:
            raise Refusal(f"1280 (42000): Incorrect index name '{key.name}'")
        made.append(key)

    def rank(key: Key) -> int:
        if key.name == PRIMARY:
            return 0
        if not key.unique or key.hashed(known):
            return 3 if key.unique else 4
        return 1 if all(not known[part.lower()].nullable for part in key.columns) else 2

    return tuple(sorted(made, key=rank))


def _checked(key: Key, known: dict[str, Column]) -> Key:
    lengths = []
    for number, (part, length) in enumerate(zip(key.columns, key.lengths, strict=True)):
        column = known.get(part.lower())
        if column is None:
            raise Refusal(f"1072 (42000): Key column '{part}' doesn't exist in table")
        if part.lower() in [other.lower() for other in key.columns[:number]]:
            raise Refusal(f"1060 (42S21): Duplicate column name '{part}'")
        size = column.declared.partition("(")[2].rstrip(")")
        whole = int(size) if column.type.kind == "str" and size.isdecimal() else None
        if length and (column.type.kind not in ("str", "bin") or (whole is not None and length > whole)):
            raise _NO_PREFIX
        length = 0 if length == whole else length
        if length and key.unique:
            raise unsupported("unique keys of the first characters")
        if not length and whole is None and column.type.kind in ("str", "bin"):
            if key.name == PRIMARY:
                raise Refusal(f"1170 (42000): BLOB/TEXT column '{part}' used in key specification without a key length")
            length = 0 if key.unique else _LONGEST
        if (whole or 0) > _LONGEST:
            raise unsupported("keys of such long texts")
        lengths.append(length)
    return key._replace(columns=tuple(known[part.lower()].name for part in key.columns), lengths=tuple(lengths))


def is_auto_key(column: Column, keys: Sequence[Key]) -> bool:
    """Whether an AUTO_INCREMENT column is the primary key.

    Raises:
        Refusal: it is part of no key, or of another.
    """
    first = [key for key in keys if key.columns[0] == column.name]
    if not first:
        raise Refusal(
            "1075 (42000): Incorrect table definition; there can be only one auto column and it must be defined as a key"
        )
    if keys[0].name != PRIMARY or keys[0].columns != (column.name,):
        raise unsupported("AUTO_INCREMENT of a column that is not the primary key")
    return True
