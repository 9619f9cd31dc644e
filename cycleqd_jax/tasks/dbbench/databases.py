"""The interface of the databases of DBBench, and text functions that both backends use."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple, Protocol, runtime_checkable

__all__ = ["LONGEST_OUTPUT", "OUT_OF_SYNC", "Database", "Ran", "Table", "truncated", "unqualified"]

LONGEST_OUTPUT = 800
"""Number of characters of an output that the model sees."""

OUT_OF_SYNC = "Commands out of sync; you can't run this command now"
"""What MySQL's driver says after several statements in one, unless all rows of the first are read."""

_TOKENS = re.compile(
    r"'(?:[^'\\]|\\.|'')*'?"  # without the "?" a missing closing quote would cost quadratic time
    r'|"(?:[^"\\]|\\.|"")*"?'
    r"|`(?:[^`]|``)*`?"
    r"|/\*(?:[^*]|\*(?!/))*(?:\*/)?"
    r"|--\s[^\n]*|#[^\n]*|[\w$]+|\s+|.",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Table:
    """The table of a problem.

    Attributes:
        name: name of the table.
        columns: names of the columns.
        rows: the cells as text; None is NULL.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]


class Ran(NamedTuple):
    """The result of a statement.

    Attributes:
        output: the rows as ``str()`` of a list of tuples, or the text of the error; truncated to the length that models see.
        timed_out: whether the time limit was exceeded.
    """

    output: str
    timed_out: bool


@runtime_checkable
class Database(Protocol):
    """The database of one episode, with the table of its problem. Each statement runs in its own session and is committed."""

    def run(self, sql: str) -> Ran:
        """Executes the statement of a reply.

        Raises:
            Killed: the statement exceeded a limit other than the time limit.
            InfraError: the server is broken.
        """
        ...

    def md5(self) -> str | None:
        """AgentBench's fingerprint of the table; None if the table or a column is gone, or no row is left.

        Raises:
            Killed: an earlier statement makes it impossible to compute.
            InfraError: the server is broken.
        """
        ...

    def close(self) -> None:
        """Drops the database. Safe to call twice."""
        ...


def truncated(output: str) -> str:
    """An output truncated as in AgentBench."""
    return output if len(output) <= LONGEST_OUTPUT else output[:LONGEST_OUTPUT] + "[TRUNCATED]"


def unqualified(sql: str, table: str) -> str:
    """``sql`` with ``t`` in place of ``t.t``: in AgentBench a database has the name of its table, here it has another name."""
    escaped = table.replace("`", "``")
    if sql.count(escaped) < 2 or "." not in sql:
        return sql
    names = (table, f"`{escaped}`")
    kept: list[str] = []
    begin, dot = None, False  # index in ``kept`` where a qualifier may begin, and whether a dot followed it
    for token in _TOKENS.findall(sql):
        if token in names and begin is not None and dot:
            del kept[begin:]
            begin = None  # in t.t.c only the first t is the database
        elif token in names:
            begin, dot = len(kept), False
        elif token == "." and begin is not None and not dot:
            dot = True
        elif not token.isspace():
            begin = None
        kept.append(token)
    return "".join(kept)
