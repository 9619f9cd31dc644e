"""The records of DBBench."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from cycleqd_jax.tasks.dbbench.databases import Table
from cycleqd_jax.tasks.records import Row

__all__ = ["CHANGES", "DbRecord", "parse_record"]

CHANGES = ("INSERT", "UPDATE", "DELETE")
"""Types of problem that are judged by the table; all others are judged by the answer."""


@dataclasses.dataclass(frozen=True)
class DbRecord:
    """One problem.

    Attributes:
        id: the id in the file.
        question: the description and the added description.
        description: the question in words.
        addition: remarks about the table, or an empty text.
        evidence: remarks about the question, or an empty text.
        kind: a type of change (:data:`CHANGES`) or of question.
        labels: the answers of a question, or the gold SQL of a change.
        md5: fingerprint of the table after the change; None for a question.
        query: machine-written SQL of a question (often wrong, not used for scoring), or None.
        table: the table of the database.
    """

    id: str
    question: str
    description: str
    addition: str
    evidence: str
    kind: str
    labels: tuple[str, ...]
    md5: str | None
    query: str | None
    table: Table


def parse_record(row: Row) -> DbRecord:
    """Parses a DBBench record; fields that scoring does not use are ignored."""
    kinds = row.texts("type")
    if len(kinds) != 1:
        raise row.error("exactly one text in field 'type'", json.dumps(kinds))
    kind = kinds[0]
    columns = []
    for column in row.get("table/table_info/columns", list):
        if not isinstance(column, dict) or not isinstance(column.get("name"), str):
            raise row.error("objects with a name in field 'table/table_info/columns'", json.dumps(column)[:80])
        columns.append(column["name"])
    rows = row.get("table/table_info/rows", list)
    if not columns or not all(isinstance(cells, list) for cells in rows):
        raise row.error("columns, and rows that are lists, in field 'table/table_info'", "other values")
    nested = next((cell for cells in rows for cell in cells if isinstance(cell, list | dict)), None)
    if nested is not None:
        raise row.error("cells that are texts, numbers, true, false or null", json.dumps(nested)[:80])
    labels = row.texts("label")
    md5 = None
    if kind in CHANGES:
        match = re.search(r"[0-9a-f]{32}", row.text("answer_md5"))
        if match is None:
            raise row.error("an MD5 in field 'answer_md5'", repr(row.text("answer_md5")))
        md5 = match.group()
        if len({name.lower() for name in columns}) < len(columns) or not all(columns):
            raise row.error("columns of different names, none empty", json.dumps(columns)[:200])
    if not labels:
        raise row.error("at least one text in field 'label'", "none")
    return DbRecord(
        id=row.id,
        question=row.text("description") + "\n" + row.text("add_description", ""),
        description=row.text("description"),
        addition=row.text("add_description", ""),
        evidence=evidence if isinstance(evidence := row.fields.get("evidence"), str) else "",
        kind=kind,
        labels=labels,
        md5=md5,
        query=None if kind in CHANGES else row.get("sql/query", str, None),
        table=Table(row.text("table/table_name"), tuple(columns), tuple(tuple(map(_cell, cells)) for cells in rows)),
    )


def _cell(value: Any) -> str | None:
    """A cell as MySQL's driver passes it to a column of texts, where AgentBench's tables have only such columns."""
    return None if value is None else str(int(value)) if isinstance(value, bool) else str(value)
