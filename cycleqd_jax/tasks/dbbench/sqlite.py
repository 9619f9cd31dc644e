"""DBBench on SQLite: a database in memory, in the sandbox."""

from __future__ import annotations

import functools
from importlib import resources

from cycleqd_jax.sandbox import Limits, Sandbox
from cycleqd_jax.tasks.dbbench.databases import LONGEST_OUTPUT, Ran, Table, truncated, unqualified

__all__ = ["SqliteDatabase"]


class SqliteDatabase:
    """One table in one SQLite database; every column is TEXT and compared case-insensitively, as in MySQL."""

    def __init__(self, sandbox: Sandbox, limits: Limits, seconds: float, table: Table) -> None:
        """Starts the database and builds the table.

        Args:
            sandbox: runs the database process.
            limits: limits of that process, for all statements together.
            seconds: time limit of one statement.
            table: the table. If it can't be created, the database has no table, as in AgentBench.

        Raises:
            Killed: the table can't be built within the limits.
            InfraError: the sandbox is broken.
        """
        self._seconds = seconds
        self._table = table
        self._session = sandbox.session(_server(), limits=limits)
        try:
            self._session.request({"build": {"name": table.name, "columns": table.columns, "rows": table.rows}})
        except BaseException:
            self._session.close()
            raise

    def run(self, sql: str) -> Ran:
        """Executes one statement."""
        sql = unqualified(sql, self._table.name)
        result = self._session.request({"sql": sql, "seconds": self._seconds, "characters": LONGEST_OUTPUT})
        return Ran(truncated(result["output"]), result["timed_out"])

    def md5(self) -> str | None:
        """The fingerprint, computed in Python by MySQL's rule."""
        return self._session.request({"md5": {"name": self._table.name, "columns": self._table.columns}})["md5"]

    def close(self) -> None:
        """Ends the process."""
        self._session.close()


@functools.cache
def _server() -> str:
    return resources.files("cycleqd_jax.tasks.dbbench").joinpath("sqlite_server.py").read_text(encoding="utf-8")
