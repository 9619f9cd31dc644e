"""DBBench on SQLite, in memory, in a box of the sandbox."""

from __future__ import annotations

import functools
from importlib import resources

from cycleqd_jax.sandbox import InfraError, Killed, Limits, Sandbox
from cycleqd_jax.tasks.dbbench.databases import LONGEST_OUTPUT, Ran, Table, truncated, unqualified

__all__ = ["SqliteDatabase"]


class SqliteDatabase:
    """One table in one SQLite database: every column TEXT, compared without regard to the case of letters as in MySQL."""

    def __init__(self, sandbox: Sandbox, limits: Limits, seconds: float, table: Table) -> None:
        """Starts the database and builds the table.

        Args:
            sandbox: where it lives.
            limits: of its process, for all statements together.
            seconds: of one statement.
            table: what it holds. Where it can't be built, it isn't there, as in AgentBench.

        Raises:
            InfraError: the sandbox is broken.
        """
        self._seconds = seconds
        self._table = table
        self._session = sandbox.session(_server(), limits=limits)
        try:
            self._session.request({"build": {"name": table.name, "columns": table.columns, "rows": table.rows}})
        except Killed as killed:  # nothing of the model's has run yet
            raise InfraError(f"the database of {table.name!r} could not be built: {killed}") from killed

    def run(self, sql: str) -> Ran:
        """Executes one statement."""
        sql = unqualified(sql, self._table.name)
        result = self._session.request({"sql": sql, "seconds": self._seconds, "characters": LONGEST_OUTPUT})
        return Ran(truncated(result["output"]), result["timed_out"])

    def md5(self) -> str | None:
        """The fingerprint, computed in Python as MySQL does."""
        return self._session.request({"md5": {"name": self._table.name, "columns": self._table.columns}})["md5"]

    def close(self) -> None:
        """Ends the process."""
        self._session.close()


@functools.cache
def _server() -> str:
    return resources.files("cycleqd_jax.tasks.dbbench").joinpath("server.py").read_text(encoding="utf-8")
