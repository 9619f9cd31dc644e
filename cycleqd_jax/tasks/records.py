"""Reading of benchmark records: JSON Lines (or one JSON list), checked field by field before anything expensive starts."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.files import digest
from cycleqd_jax.types import InputError

__all__ = ["Row", "read_rows", "split_evenly"]

_TYPE_NAMES = {str: "a text", list: "a list", dict: "an object", int: "an integer", bool: "true or false"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One record as it stands in its file.

    Attributes:
        fields: the JSON object.
        where: file and line, for error messages.
    """

    fields: Mapping[str, Any]
    where: str

    @property
    def id(self) -> str:
        """What tells the record from others: its ``id`` or ``task_id``, else a digest of its content."""
        for name in ("id", "task_id"):
            if isinstance(self.fields.get(name), str | int):
                return str(self.fields[name])
        return self.fingerprint

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the record's content."""
        return digest(self.fields)

    def error(self, expected: str, got: str) -> InputError:
        """The error for a record that isn't as ``expected``."""
        return InputError(f"{self.where}: expected {expected}, got {got}; mend or remove the record")

    def get(self, name: str, kind: type, default: Any = dataclasses.MISSING) -> Any:
        """A field that must be of JSON type ``kind``.

        Args:
            name: of the field; ``"table/table_info/rows"`` goes into objects.
            kind: ``str``, ``list``, ``dict``, ``int`` or ``bool``.
            default: returned where the field is missing or null; without it the field must be there.

        Raises:
            InputError: naming file, line and field.
        """
        value: Any = self.fields
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None and default is not dataclasses.MISSING:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"{_TYPE_NAMES[kind]} in field {name!r}", "nothing" if value is None else _shown(value))
        return value

    def text(self, name: str, default: Any = dataclasses.MISSING) -> str:
        """A field that must be a text."""
        return self.get(name, str, default)

    def texts(self, name: str, default: Any = dataclasses.MISSING) -> tuple[str, ...]:
        """A field that must be a list of texts."""
        values = self.get(name, list, default)
        for value in values:
            if not isinstance(value, str):
                raise self.error(f"only texts in field {name!r}", _shown(value))
        return tuple(values)


def read_rows(path: str | Path) -> list[Row]:
    """The records of a file, JSON Lines or one JSON list, packed by gzip if its name says so; blank lines are skipped.

    Raises:
        InputError: where the file is missing, unreadable, empty or malformed, naming file and line (in a list: the item), or
            where two records have the same id.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"expected a file of records, got no file at {path}; check the path in the configuration")
    try:
        packed = path.read_bytes()
        content = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"expected a readable UTF-8 file of records at {path}, got {error}") from error
    rows = _parse_list(path, content) if content.lstrip().startswith("[") else _parse_lines(path, content)
    if not rows:
        raise InputError(f"expected at least one record in {path}, got an empty file")
    seen: dict[str, str] = {}
    for row in rows:
        if row.id in seen:
            raise row.error(f"an id of its own (id {row.id} is also at {seen[row.id]})", f"id {row.id} again")
        seen[row.id] = row.where
    return rows


def split_evenly(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Two halves: the rows whose ids have the smaller SHA-256 digests train, the others test; both in the order of the digests.

    The halves differ in size by at most one (test has the odd one), and don't depend on the order of the file, which is often
    by kind: the first rows of a half are a fair sample of it.

    Raises:
        InputError: where there are fewer than two rows.
    """
    if len(rows) < 2:
        raise InputError(f"expected at least two records to split into train and test, got one, at {rows[0].where}")
    order = sorted(rows, key=lambda row: (hashlib.sha256(row.id.encode()).digest(), row.id))
    return order[: len(rows) // 2], order[len(rows) // 2 :]


def _parse_lines(path: Path, content: str) -> list[Row]:
    # Not splitlines(): JSON texts may hold U+2028 and the like unescaped.
    rows = []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            rows.append(_row(f"{path}, line {number}", _loads(line, f"{path}, line {number}")))
    return rows


def _parse_list(path: Path, content: str) -> list[Row]:
    return [_row(f"{path}, item {n}", item) for n, item in enumerate(_loads(content, str(path)), start=1)]


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected valid JSON, got {error or 'too deep nesting'}; mend or remove it") from error


def _row(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a record (a JSON object), got {_shown(value)}; mend or remove it")
    row = Row(value, where)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = error.object[max(0, error.start - 20) : error.end + 20]
        raise row.error("characters that UTF-8 has in all texts", f"a lone surrogate at {found!a}") from error
    except RecursionError as error:
        raise row.error("valid JSON", "too deep nesting") from error
    return row


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
