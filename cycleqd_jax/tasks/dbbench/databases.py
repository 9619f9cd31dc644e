"""What a database of DBBench is, whichever server it lives on."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple, Protocol, runtime_checkable

__all__ = ["LONGEST_OUTPUT", "Database", "Ran", "Table", "truncated", "unqualified"]

LONGEST_OUTPUT = 800
"""Characters of an output that the model sees."""

_TOKENS = re.compile(
    r"'(?:[^'\\]|\\.|'')*'?"  # a closing mark that is missing must not make the search start over: that takes quadratic time
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
        name: its name.
        columns: their names.
        rows: cells as text.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Ran(NamedTuple):
    """The end of a statement.

    Attributes:
        output: the rows as ``str()`` of a list of tuples, or what the error says; not longer than the model may see.
        timed_out: it took too long.
    """

    output: str
    timed_out: bool


@runtime_checkable
class Database(Protocol):
    """A database for one episode, with the table of its problem. Each statement is a session of its own, then committed."""

    def run(self, sql: str) -> Ran:
        """Executes what a reply says.

        Raises:
            Killed: it went beyond a limit other than that of time: the fault of the statement.
            InfraError: the server is broken.
        """
        ...

    def md5(self) -> str | None:
        """AgentBench's fingerprint of the table; None where the table or a column is gone, or no row is left.

        Raises:
            Killed: what ran before keeps it from being taken.
            InfraError: the server is broken.
        """
        ...

    def close(self) -> None:
        """Throws the database away. Safe to call twice."""
        ...


def truncated(output: str) -> str:
    """An output as AgentBench shows it."""
    return output if len(output) <= LONGEST_OUTPUT else output[:LONGEST_OUTPUT] + "[TRUNCATED]"


def unqualified(sql: str, table: str) -> str:
    """``sql`` with ``t.t`` for ``t``: AgentBench's databases have the name of their table, ours don't."""
    escaped = table.replace("`", "``")
    if sql.count(escaped) < 2 or "." not in sql:
        return sql
    names = (table, f"`{escaped}`")
    kept: list[str] = []
    begin, dot = None, False  # where in ``kept`` a qualifier may have begun, and whether a dot has followed
    for token in _TOKENS.findall(sql):
        if token in names and begin is not None and dot:
            del kept[begin:]
            begin = None  # of t.t.c only the first is the database
        elif token in names:
            begin, dot = len(kept), False
        elif token == "." and begin is not None and not dot:
            dot = True
        elif not token.isspace():
            begin = None
        kept.append(token)
    return "".join(kept)
