"""DBBench on a MySQL or MariaDB server: each episode has a temporary schema and user."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from typing import Any

from cycleqd_jax.sandbox import InfraError, Killed, Limits
from cycleqd_jax.tasks.dbbench.databases import LONGEST_OUTPUT, OUT_OF_SYNC, Ran, Table, truncated, unqualified
from cycleqd_jax.tasks.dbbench.mysql_server import MySqlServer, TemporaryAccount
from cycleqd_jax.tasks.dbbench.statements import ends_session, is_dynamic, refused, uses_locks

__all__ = ["SQL_MODE", "MySqlDatabase"]

SQL_MODE = "NO_ENGINE_SUBSTITUTION"
"""The default SQL mode. It is not strict, so that changes may compare texts with numbers."""

# Errors of tables that can't be created: names (1059, 1103, 1166), columns (1060, 1113, 1117, 1118), ragged rows (1136), cells
# (1366, 1406).
_TABLE_ERRORS = (1059, 1060, 1103, 1113, 1117, 1118, 1136, 1166, 1366, 1406)
_DISK_ERRORS = (3, 20, 28, 1021, 1026, 1030, 1114, 1296)  # the disk is full or not writable
_DENIED = (1040, 1044, 1142, 1227)  # no connection left, rights are missing
_TIMEOUTS = (1969, 3024)  # the errors of MariaDB and MySQL at their own time limit
_FIRST_POLL, _POLL = 0.25, 0.1  # seconds
_GRACE_SECONDS = 1.0  # how long after the server's own time limit this process stops a statement
_LAST_SECONDS = 5.0  # how much later the connection is closed if KILL has no effect
_MOST_ROWS, _MOST_CHARACTERS = 20_000, 20_000_000  # largest part of a result that is read, though less is shown


class MySqlDatabase:
    """One table in one schema of a server. Between statements there is no connection.

    A statement is executed as by AgentBench's client: in its own session, and committed if it succeeds. If a text contains
    several statements, all of them are executed, but the client fails with "commands out of sync" and does not commit. Outputs
    show the names of AgentBench for the schema (the name of the table) and the user (``root``).
    """

    def __init__(self, server: MySqlServer, limits: Limits, seconds: float, sql_mode: str, table: Table) -> None:
        """Creates the schema, the user and the table.

        Args:
            server: the server.
            limits: limits of the memory of a connection and of the disk space of the schema.
            seconds: time limit of one statement.
            sql_mode: SQL mode of all sessions.
            table: the table. If it can't be created, the database has no table, as in AgentBench.

        Raises:
            Killed: the server can't build the table within the limits.
            InfraError: the server is broken.
        """
        self._server = server
        self._limits = limits
        self._seconds = seconds
        self._table = table
        self._sql_mode = sql_mode
        self._used = False  # whether a statement of a reply has been executed
        self._account: TemporaryAccount | None = server.create_account()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def run(self, sql: str) -> Ran:
        """Executes one or several statements."""
        if not sql:
            return Ran("[]", False)
        self._used = True
        refusal = refused(sql)
        if refusal is not None:
            return Ran(truncated(refusal), False)
        sql = unqualified(sql, self._table.name)
        dynamic = is_dynamic(sql)
        with self._server.exclusive if dynamic or uses_locks(sql) else contextlib.nullcontext():
            began = time.monotonic()
            try:
                text, code = self._execute(sql)
            finally:
                if dynamic:
                    self._server.roll_back_prepared()
        timed_out = code in _TIMEOUTS or time.monotonic() - began >= self._seconds
        return Ran(truncated(self._masked(text)), timed_out)

    def md5(self) -> str | None:
        """The fingerprint, by the query of the benchmark, with the rights of the account: the table may have become a view."""
        columns = ",".join(map(quoted, self._table.columns))
        text, code = self._execute(
            "SELECT MD5(GROUP_CONCAT(rowhash ORDER BY rowhash)) AS hash "
            f"FROM (SELECT SUBSTRING(MD5(CONCAT_WS(',', {columns})), 1, 5) AS rowhash FROM {quoted(self._table.name)}) AS sub"
        )
        match = re.fullmatch(r"\[\('([0-9a-f]{32})',\)\]", text)
        return None if match is None or code else match.group(1)

    def close(self) -> None:
        """Drops the schema and the user."""
        account, self._account = self._account, None
        if account is not None:
            self._server.drop(account)

    def _build(self) -> None:
        """Creates the table with one CREATE and one INSERT of all rows, as AgentBench does; stops if the server refuses."""
        table = self._table
        listed = ", ".join(f"{quoted(column)} TEXT" for column in table.columns)
        names = ", ".join(map(quoted, table.columns))
        rows = ", ".join("(" + ", ".join(map(_literal, row)) + ")" for row in table.rows)
        statements = [f"CREATE TABLE {quoted(table.name)} ({listed})"]
        if rows:
            statements.append(f"INSERT INTO {quoted(table.name)} ({names}) VALUES {rows}")
        for statement in statements:
            text, code = self._execute(statement)
            if code in _TABLE_ERRORS:
                return
            if code in _DENIED:
                raise InfraError(f"expected to build the table {table.name!r}, got: {text}; check the server")
            if code is not None:
                raise Killed(f"the server does not build the table {table.name!r}: {text}")

    def _execute(self, sql: str) -> tuple[str, int | None]:
        """The output of AgentBench's client, and the number of the error or None."""
        began = time.monotonic()
        with (
            self._opened() as session,
            _Watch(self._server, session.thread, self._schema, self._limits, self._seconds) as watch,
        ):
            text, code = session.execute(sql)
        if watch.failure is not None:
            raise watch.failure
        if watch.excess is not None and watch.excess != "time":
            raise Killed(f"a statement exceeded its limit of {watch.excess}")
        if session.lost and watch.excess is None and time.monotonic() - began < self._seconds:
            self._server.admin("SELECT 1")  # raises InfraError if the server is gone
            if ends_session(sql):
                raise Killed("a statement ended its own session")
            raise InfraError(
                f"expected the server to execute a statement, got a lost connection ({text}); check its memory and disk"
            )
        if code in _DISK_ERRORS:  # if the disk is full for the administrator too, this raises InfraError
            self._server.drop(self._server.create_account())
        return text, code

    @property
    def _schema(self) -> str:
        if self._account is None:
            raise Killed("the database is closed")
        return self._account.schema

    def _opened(self) -> _Session:
        """A new session.

        Raises:
            Killed: statements of this episode have made it impossible.
            InfraError: the server is broken.
        """
        try:
            return self._session()
        except InfraError as error:
            if not self._used:
                raise
            self._server.admin("SELECT 1")  # raises InfraError if the server does not answer its administrator either
            raise Killed(f"the account can't log in any more: {error}") from error

    def _session(self) -> _Session:
        schema = self._schema
        assert self._account is not None
        server, seconds = self._server, self._seconds
        settings = [
            f"sql_mode = '{self._sql_mode},NO_DIR_IN_CREATE'",
            "group_concat_max_len = 1048576",
            f"lock_wait_timeout = {int(seconds) + 1}",
        ]
        if server.maria:
            settings += [
                f"max_statement_time = {seconds}",
                f"max_session_mem_used = {self._limits.memory_mb << 20}",
                f"tmp_disk_table_size = {self._limits.disk_mb << 20}",
            ]
        else:
            settings += [f"max_execution_time = {max(1, int(1000 * seconds))}"]
        read_seconds = seconds + _GRACE_SECONDS + _LAST_SECONDS
        return _Session(server.login(self._account, init="SET " + ", ".join(settings), read_seconds=read_seconds), schema)

    def _masked(self, text: str) -> str:
        assert self._account is not None
        return text.replace(self._account.schema, self._table.name).replace(self._account.user, "root")


class _Session:
    """A connection that may be closed in the middle of a result.

    Attributes:
        thread: number of the connection on the server.
        lost: whether the connection was lost. An error of such a number is no proof, because statements can signal it.
    """

    def __init__(self, connection: Any, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self.thread: int = connection.thread_id()
        self.lost = False

    def execute(self, sql: str) -> tuple[str, int | None]:
        """The rows or the text of the error, and the number of the error or None."""
        from pymysql import MySQLError
        from pymysql.cursors import SSCursor

        cursor = self._connection.cursor(SSCursor)
        done: str | None = None
        try:
            cursor.execute(f"USE {self._schema}")
            cursor.execute(sql)
            text, complete = _shown(cursor)
            done = text
            if not complete:
                return text, None
            while cursor.nextset():
                done = OUT_OF_SYNC
                if not _shown(cursor)[1]:
                    break
            if done is not OUT_OF_SYNC:
                self._connection.commit()
            return done, None
        except MySQLError as error:
            self.lost = not self._connection.open
            code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
            if done is not None and not self.lost and code not in _TIMEOUTS:
                return OUT_OF_SYNC, None  # a later one of several statements failed
            return _described(error), code
        except (
            Exception
        ) as error:  # the driver can't convert a cell, or does not understand what a statement made the server send
            return str(error) or type(error).__name__, None
        finally:
            _abandon(cursor)

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection.open:
            self._connection.close()


class _Watch:
    """Ends a connection that exceeds its limits, even if a statement has changed the server's own limits.

    Attributes:
        excess: ``"time"``, ``"memory"`` or ``"disk"`` if that limit was exceeded, else None.
        failure: the error if the server could not be queried, else None.
    """

    def __init__(self, server: MySqlServer, thread: int, schema: str, limits: Limits, seconds: float) -> None:
        self.excess: str | None = None
        self.failure: InfraError | None = None
        self._server, self._thread, self._schema, self._limits = server, thread, schema, limits
        self._deadline = time.monotonic() + seconds + _GRACE_SECONDS
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._poll, name="db-watch", daemon=True)

    def _poll(self) -> None:
        pause = _FIRST_POLL
        try:
            while not self._over.wait(pause) and self.excess is None:
                pause = _POLL
                memory, disk = self._server.usage(self._thread, self._schema)
                if time.monotonic() > self._deadline:
                    self.excess = "time"
                elif memory > self._limits.memory_mb << 20:
                    self.excess = "memory"
                elif disk > self._limits.disk_mb << 20:
                    self.excess = "disk"
                if self.excess is not None:
                    self._server.kill(self._thread)
        except InfraError as error:
            self.failure = error

    def __enter__(self) -> _Watch:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()


def quoted(name: str) -> str:
    """``name`` as a quoted identifier."""
    return "`" + name.replace("`", "``") + "`"


def _literal(cell: str | None) -> str:
    """A cell as an expression with the same value in every SQL mode."""
    if cell is None:
        return "NULL"
    return f"_utf8mb4 x'{cell.encode().hex()}'" if cell else "''"


def _shown(cursor: Any) -> tuple[str, bool]:
    """The first rows of a result as text, and whether the result was read to its end."""
    if cursor.description is None:
        return "[]", True
    parts: list[str] = []
    shown = size = 0
    for count, row in enumerate(cursor.fetchall_unbuffered()):
        size += sum(len(cell) for cell in row if isinstance(cell, str | bytes))
        if shown <= 2 * LONGEST_OUTPUT:  # more than is shown, because names may be replaced by shorter ones
            # AgentBench's client returns bytearray for binary values.
            parts.append(str(tuple(bytearray(cell) if isinstance(cell, bytes) else cell for cell in row)))
            shown += len(parts[-1]) + 2
        elif count >= _MOST_ROWS or size > _MOST_CHARACTERS:
            return "[" + ", ".join(parts) + "]", False
    return "[" + ", ".join(parts) + "]", True


def _described(error: Any) -> str:
    """An error in the format of AgentBench's client: ``1146 (42S02): Table 't.u' doesn't exist``."""
    number, text = (*error.args, "", "")[:2]
    return f"{number} ({getattr(error, 'sqlstate', None) or 'HY000'}): {text}"


def _abandon(cursor: Any) -> None:
    """Discards the unread rest of a result; otherwise the driver and the cursor would read it when they are closed."""
    if cursor._result is not None:
        cursor._result.unbuffered_active = False
    cursor._result = None
    cursor.connection = None
