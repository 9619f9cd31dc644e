"""Reads benchmark records from JSON Lines or one JSON list and checks every field before anything expensive starts."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.files import digest
from cycleqd_jax.types import InputError

__all__ = ["Row", "by_digest", "checked_row", "read_rows", "split_evenly", "validation_slice"]

_LABELS = ("id", "task_id", "index")
"""Fields that number the records of a file and are not part of a problem."""

_TYPE_NAMES = {str: "a text", list: "a list", dict: "an object", int: "an integer", bool: "true or false"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One record of a file, not yet parsed.

    Attributes:
        fields: the JSON object.
        where: the file and the line, for error messages.
    """

    fields: Mapping[str, Any]
    where: str

    @property
    def id(self) -> str:
        """The record's ``id`` or ``task_id``; a digest of its content if it has neither, or empty ones."""
        for name in ("id", "task_id"):
            found = self.fields.get(name)
            if isinstance(found, str | int) and found != "":
                return str(found)
        return self.fingerprint

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the record's content."""
        return digest(self.fields)

    @functools.cached_property
    def problem(self) -> str:
        """SHA-256 of the content without ids: equal for a problem that is in two files, or in one file twice.

        Of a record that has nothing but ids, it is the fingerprint.
        """
        content = {name: value for name, value in self.fields.items() if name not in _LABELS}
        return digest(content) if content else self.fingerprint

    def error(self, expected: str, got: str) -> InputError:
        """An error that names the file and the line of the record. Of long values it shows the beginning."""
        return InputError(f"expected {expected}, got {_shortened(got)} in {self.where}; correct or remove the record")

    def get(self, name: str, kind: type, default: object = dataclasses.MISSING) -> Any:
        """The value of a field, which must have the JSON type ``kind``.

        Args:
            name: name of the field; ``"table/table_info/rows"`` is a path through nested objects.
            kind: ``str``, ``list``, ``dict``, ``int`` or ``bool``.
            default: returned if the field is missing or null; without a default the field is required.

        Raises:
            InputError: the field is missing or has another type; the message names the file, the line and the field.
        """
        value: object = self.fields
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None and default is not dataclasses.MISSING:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"{_TYPE_NAMES[kind]} in field {name!r}", "nothing" if value is None else _shown(value))
        return value

    def text(self, name: str, default: object = dataclasses.MISSING) -> str:
        """The value of a field that must be a text."""
        return self.get(name, str, default)

    def texts(self, name: str, default: object = dataclasses.MISSING) -> tuple[str, ...]:
        """The value of a field that must be a list of texts."""
        values = self.get(name, list, default)
        for value in values:
            if not isinstance(value, str):
                raise self.error(f"only texts in field {name!r}", _shown(value))
        return tuple(values)


def read_rows(path: str | Path) -> list[Row]:
    """The records of a file that holds JSON Lines or one JSON list, compressed if its name ends in ``.gz``.

    Blank lines are skipped.

    Raises:
        InputError: the file is missing, unreadable, empty or malformed, or two records have the same id. The message names
            the file and the line (in a list, the item).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"expected a file of records, got no file at {path}; check the path in the config")
    try:
        packed = path.read_bytes()
        content = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"expected a readable UTF-8 file of records, got {error} in {path}; replace the file") from error
    rows = _parse_list(path, content) if content.lstrip().startswith("[") else _parse_lines(path, content)
    if not rows:
        raise InputError(f"expected at least one record, got an empty file in {path}; replace the file")
    seen: dict[str, str] = {}
    for row in rows:
        if row.id in seen:
            raise row.error(f"a unique id (id {row.id} is also in {seen[row.id]})", f"id {row.id} again")
        seen[row.id] = row.where
    return rows


def split_evenly(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Splits rows into two halves, train and test, by the SHA-256 digests of their ids.

    The rows with the smaller digests are the train half. Both halves are in the order of the digests, so they do not depend on
    the order of the file, and the first rows of a half are a fair sample of it (published files are often sorted by kind).
    With an odd number of rows the test half has one more.

    Rows of the same problem (:attr:`Row.problem`) are all in one half. Where they do not fit into what is left of the train
    half, they are in the test half, and the next rows fill the train half. So it may be smaller than half of the rows. Where
    all rows are the same problem, both halves have it.

    Raises:
        InputError: there are fewer than two rows.
    """
    groups = _groups(rows)
    if len(groups) == 1:
        groups = [[row] for row in groups[0]]
    if len(groups) < 2:
        where = rows[0].where if rows else "the file"
        raise InputError(f"expected at least two records to split into train and test, got {len(groups)} in {where}; give more")
    train: list[Row] = []
    test: list[Row] = []
    for group in groups:
        half = train if len(train) + len(group) <= len(rows) // 2 else test
        half += group
    return train, test


def by_digest(rows: Sequence[Row]) -> list[Row]:
    """Rows in the order of the SHA-256 digests of their ids; rows of the same problem follow each other."""
    return [row for group in _groups(rows) for row in group]


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of every problem. Problems, and the rows of each, are in the order of the digests of their ids."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (hashlib.sha256(row.id.encode()).digest(), row.id)):
        groups.setdefault(row.problem, []).append(row)
    return [*groups.values()]


def validation_slice(count: int, train_size: int | None, validation_size: int | None, where: str) -> slice:
    """Which records of the train file or half are the validation problems: those after the train problems that the search uses.

    Args:
        count: number of records.
        train_size: number of train problems; None leaves the last ``validation_size`` records to validation.
        validation_size: number of validation problems; None takes all after the train problems, 0 takes none.
        where: the task and the file, for error messages.

    Raises:
        InputError: both sizes are None, or there are too few records.

    >>> from cycleqd_jax.tasks.records import validation_slice
    >>> validation_slice(100, 64, 32, "task 'a'")
    slice(64, 96, None)
    >>> validation_slice(100, None, 32, "task 'a'")
    slice(68, 100, None)
    """
    if validation_size == 0:
        return slice(count, count)
    if train_size is None and validation_size is None:
        raise InputError(f"expected a train_size or a validation_size, got null for both in {where}; give one of them")
    least = (1 if train_size is None else train_size) + (1 if validation_size is None else validation_size)
    if count < least:
        raise InputError(
            f"expected at least {least} train problems for train_size {_size(train_size)} and validation_size "
            f"{_size(validation_size)}, got {count} in {where}; decrease one of them, or set validation_size: 0 and "
            "export.method: best_elite"
        )
    start = count - (validation_size or 0) if train_size is None else train_size
    return slice(start, count if validation_size is None else start + validation_size)


def _size(size: int | None) -> str:
    return "null" if size is None else str(size)


def _parse_lines(path: Path, content: str) -> list[Row]:
    # Not splitlines(): JSON texts may contain unescaped line separators such as U+2028.
    rows = []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            rows.append(checked_row(f"{path}, line {number}", _loads(line, f"{path}, line {number}")))
    return rows


def _parse_list(path: Path, content: str) -> list[Row]:
    return [checked_row(f"{path}, item {n}", item) for n, item in enumerate(_loads(content, str(path)), start=1)]


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected valid JSON, got {error or 'too deep nesting'} in {where}; correct it") from error


def checked_row(where: str, value: Any) -> Row:
    """A record that was read from JSON.

    Args:
        where: its place, for messages.
        value: the value.

    Raises:
        InputError: it is no object, is nested too deeply, or has a text that UTF-8 can't encode.
    """
    if not isinstance(value, dict):
        raise InputError(f"expected a record (a JSON object), got {_shown(value)} in {where}; correct or remove it")
    row = Row(value, where)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = error.object[max(0, error.start - 20) : error.end + 20]
        raise row.error("texts that UTF-8 can encode", f"a lone surrogate at {found!a}") from error
    except RecursionError as error:
        raise row.error("valid JSON", "too deep nesting") from error
    return row


def _shown(value: Any) -> str:
    return _shortened(json.dumps(value, default=str), 80)


def _shortened(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
