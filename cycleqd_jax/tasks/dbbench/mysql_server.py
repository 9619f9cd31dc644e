"""The administration of a MySQL or MariaDB server: connections, and temporary schemas and users."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

from cycleqd_jax.sandbox import InfraError, Killed
from cycleqd_jax.tasks.dbbench.mysql_address import Address
from cycleqd_jax.types import InputError

__all__ = ["MySqlServer", "TemporaryAccount"]

_ADVICE = (
    "start a server (apt-get install mariadb-server, or docker run mariadb:10.11; docs/how-to/mysql.md) or correct the "
    "address in option dsn or CYCLEQD_MYSQL_DSN"
)
_RIGHTS = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, REFERENCES, CREATE VIEW, SHOW VIEW"  # on its own schema only
)
_REFUSED = (1045, 1203, 1226, 1820, 1862)  # wrong password, too many connections of the user, expired password
_NEEDED = "grant the account ALL PRIVILEGES ON *.* WITH GRANT OPTION, on a server that is used for nothing else"
# Letters and digits only: in GRANT an underscore matches any character.
_SCHEMA, _USER = "cycleqddb", "cycleqdus"
_NAME = re.compile(rf"(?:{_SCHEMA}|{_USER})([0-9a-f]{{8}})[0-9a-f]{{14}}")
_LEFTOVER_SECONDS = 12 * 3600
_CONNECT_SECONDS = 10.0
_ADMIN_SECONDS = 60.0
_ROLLBACKS = 20
_MOST_CONNECTIONS = 8  # of the administrator


@dataclasses.dataclass(frozen=True)
class TemporaryAccount:
    """A temporary schema, and a user with rights on that schema only.

    Attributes:
        schema: name of the schema.
        user: name of the user.
        password: password of the user.
    """

    schema: str
    user: str
    password: str = dataclasses.field(repr=False)


class MySqlServer:
    """Any MySQL (8.0 or later) or MariaDB (10.5 or later) server. Thread-safe; connects when it is first used.

    The first connection drops leftover schemas and users of runs that were killed: those with names of the form used here that
    are older than twelve hours.

    Attributes:
        maria: whether the server is MariaDB.
        exclusive: held by texts that may use state of the whole server, so that episodes do not see each other's.
    """

    def __init__(self, address: Address) -> None:
        """Stores the address without connecting.

        Raises:
            InputError: the driver is not installed.
        """
        try:
            import pymysql
        except ImportError:
            raise InputError(
                "expected the package pymysql, the driver of MySQL servers, got none; run pip install 'cycleqd_jax[mysql]'"
            ) from None
        self._driver = pymysql
        self._address = address
        self._idle: list[Any] = []
        self._turn = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._ready = False
        self._leftover: set[TemporaryAccount] = set()
        self.maria = False
        self.exclusive = threading.Lock()

    def create_account(self) -> TemporaryAccount:
        """Creates an empty schema and its user.

        Raises:
            InfraError: the server can't be reached, or the account lacks the rights.
        """
        self._prepare()
        name = f"{int(time.time()):08x}{secrets.token_hex(7)}"
        # Some servers require upper and lower case letters, a digit and a special character in a password.
        account = TemporaryAccount(_SCHEMA + name, _USER + name, "Aa1-" + secrets.token_hex(16))
        try:
            self.admin(
                f"CREATE DATABASE {account.schema} CHARACTER SET utf8mb4",
                # More than one connection: the server may still be closing the previous one.
                f"CREATE USER {account.user}@'%' IDENTIFIED BY '{account.password}' WITH MAX_USER_CONNECTIONS 4",
                f"GRANT {_RIGHTS} ON {account.schema}.* TO {account.user}@'%'",
            )
        except BaseException:
            self.drop(account)
            raise
        return account

    def drop(self, account: TemporaryAccount) -> None:
        """Drops a schema and its user. If the server is gone, :meth:`close` or a later run drops them."""
        try:
            self.admin(f"DROP DATABASE IF EXISTS {account.schema}", f"DROP USER IF EXISTS {account.user}@'%'")
        except InfraError:
            with self._lock:
                self._leftover.add(account)
            return
        with self._lock:
            self._leftover.discard(account)

    def login(self, account: TemporaryAccount, *, init: str, read_seconds: float) -> Any:
        """A connection of the account that accepts several statements in one text.

        Raises:
            Killed: the account has locked its own account.
            InfraError: the server can't be reached, or refuses the connection.
        """
        from pymysql.constants.CLIENT import MULTI_STATEMENTS

        try:
            return self._connect(
                account.user, account.password, init=init, client_flag=MULTI_STATEMENTS, read_timeout=read_seconds
            )
        except (self._driver.MySQLError, RuntimeError, OSError) as error:
            if error.args and error.args[0] in _REFUSED:
                raise Killed(f"its account is locked: {_text_of(error)}") from error
            raise self._broken(error) from error

    def admin(self, *statements: str) -> list[tuple]:
        """Executes statements as administrator and returns the rows of the last one.

        Raises:
            InfraError: the server can't be reached, or refuses a statement.
        """
        with self._administrator() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def roll_back_prepared(self) -> None:
        """Rolls back all prepared XA transactions. Episodes may not have any, and the server is used for nothing else."""
        for attempt in range(_ROLLBACKS):
            if self.maria:
                found = [row[3] for row in self.admin("XA RECOVER FORMAT = 'SQL'")]
            else:
                rows = self.admin("XA RECOVER CONVERT XID")
                found = [f"X'{text[2:][: 2 * g]}',X'{text[2:][2 * g :]}',{f}" for f, g, _, text in rows]
            if not found:
                return
            time.sleep(0.05 * attempt)  # the server may still be closing the session that has prepared them
            for identity in map(_decoded, found):
                with contextlib.suppress(InfraError):
                    self.admin(f"XA ROLLBACK {identity}")

    def kill(self, thread: int) -> None:
        """Ends a connection and its statement; does nothing if the connection has already ended."""
        with self._administrator() as connection, contextlib.suppress(self._driver.MySQLError):
            connection.cursor().execute(f"KILL {thread:d}")

    def usage(self, thread: int, schema: str) -> tuple[int, int]:
        """The bytes of memory of a connection, and the bytes of the tables of a schema on disk."""
        if self.maria:
            memory = f"SELECT memory_used FROM information_schema.processlist WHERE id = {thread:d}"
            spaces = "innodb_sys_tablespaces"
        else:
            memory = (
                "SELECT SUM(current_number_of_bytes_used) FROM performance_schema.memory_summary_by_thread_by_event_name "
                f"JOIN performance_schema.threads USING (thread_id) WHERE processlist_id = {thread:d}"
            )
            spaces = "innodb_tablespaces"
        disk = f"SELECT SUM(file_size) FROM information_schema.{spaces} WHERE name LIKE '{schema}/%'"
        ((used, size),) = self.admin(f"SELECT ({memory}), ({disk})")
        return int(used or 0), int(size or 0)

    def close(self) -> None:
        """Drops leftover schemas and users and closes the connections. The server may be used again afterwards."""
        for account in list(self._leftover):
            self.drop(account)
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            with contextlib.suppress(self._driver.MySQLError):
                connection.close()

    # ------------------------------------------------------------------------------------------------ connections

    def _connect(self, user: str, password: str, *, init: str | None = None, **options: Any) -> Any:
        address = self._address
        return self._driver.connect(
            host=address.host or None,
            port=address.port,
            unix_socket=address.socket,
            user=user,
            password=password.encode(),
            charset="utf8mb4",
            init_command=init,
            connect_timeout=_CONNECT_SECONDS,
            write_timeout=_ADMIN_SECONDS,
            ssl=self._tls,
            ssl_disabled=address.socket is not None or (self._ready and self._tls is None),
            local_infile=False,
            **options,
        )

    @contextlib.contextmanager
    def _administrator(self) -> Iterator[Any]:
        """A connection of the administrator for the current thread."""
        with self._turn:
            connection = self._checked_out()
            try:
                yield connection
            except self._driver.MySQLError as error:
                self._discard(connection)
                raise self._broken(error) from error
            except BaseException:
                self._discard(connection)
                raise
            with self._lock:
                self._idle.append(connection)

    def _checked_out(self) -> Any:
        """An idle connection if one still works, else a new connection."""
        while True:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            try:
                connection.ping(reconnect=False)
                return connection
            except self._driver.MySQLError:
                self._discard(connection)
        # A short limit: an administrator must not wait for the locks of an episode.
        init = "SET lock_wait_timeout = 20, sql_mode = 'NO_ENGINE_SUBSTITUTION'"
        address = self._address
        try:
            return self._connect(address.user, address.password, init=init, autocommit=True, read_timeout=_ADMIN_SECONDS)
        except (self._driver.MySQLError, RuntimeError, OSError) as error:
            raise self._broken(error) from error

    def _discard(self, connection: Any) -> None:
        with contextlib.suppress(self._driver.MySQLError):
            connection.close()

    def _broken(self, error: BaseException) -> InfraError:
        code = error.args[0] if error.args else None
        place = self._address.place
        if code in (1044, 1142, 1227, 1410):
            return InfraError(f"expected an account with all rights at {place}, got a refusal ({_text_of(error)}); {_NEEDED}")
        if code in (1045, 1698):
            return InfraError(f"expected a known account at {place}, got a refusal ({_text_of(error)}); {_ADVICE}")
        return InfraError(f"expected a working MySQL or MariaDB server at {place}, got an error ({_text_of(error)}); {_ADVICE}")

    # ------------------------------------------------------------------------------------------------ first connection

    def _prepare(self) -> None:
        """Checks the server at the first use, and drops leftover schemas and users."""
        with self._lock:
            if self._ready:
                return
        if self._address.socket is not None:
            with socket.socket(socket.AF_UNIX) as probe:  # the driver leaks sockets that can't connect
                try:
                    probe.connect(self._address.socket)
                except OSError as error:
                    raise self._broken(error) from error
        elif self._address.ssl_ca is not None:
            try:
                self._tls = ssl.create_default_context(cafile=self._address.ssl_ca)
            except OSError as error:  # ssl.SSLError too
                raise InputError(
                    f"expected a certificate at {self._address.ssl_ca}, got {error}; correct ssl_ca in the server's address"
                ) from error
        (version,) = self.admin("SELECT VERSION()")[0]
        encrypted = any(value for _, value in self.admin("SHOW STATUS LIKE 'Ssl_cipher'"))
        self._take_common_rights()
        self._sweep()
        with self._lock:
            self.maria = "mariadb" in version.lower()
            if encrypted and self._tls is None:  # made once, since it takes longer than a connection
                self._tls = ssl.create_default_context()
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE
            self._ready = True

    def _take_common_rights(self) -> None:
        """Revokes the rights of all accounts on the schemas ``test`` and ``test_…``, as mariadb-secure-installation does.

        Installers grant them, and episodes could exchange data through these schemas.

        Raises:
            InfraError: all accounts have other rights, or an anonymous account exists.
        """
        installed = "user IN ('', 'PUBLIC') AND db IN ('test', 'test\\\\_%')"
        if self.admin(f"SELECT 1 FROM mysql.db WHERE {installed}"):
            self.admin(f"DELETE FROM mysql.db WHERE {installed}", "FLUSH PRIVILEGES")
        writes = "'Y' IN (select_priv, insert_priv, create_priv)"
        common = [
            f"{table} {_decoded(row[0])}"
            for table, names, condition in (
                ("db", "db", "user IN ('', 'PUBLIC')"),
                ("tables_priv", "CONCAT(db, '.', table_name)", "user IN ('', 'PUBLIC')"),
                (
                    "user",
                    "CONCAT(user, '@', host)",
                    f"user = '' OR user = 'PUBLIC' AND {writes}",
                ),
            )
            for row in self.admin(f"SELECT DISTINCT {names} FROM mysql.{table} WHERE {condition}")
        ]
        if common:
            raise InfraError(
                "expected a server without anonymous accounts and rights of all accounts, through which episodes could "
                f"exchange data, got {', '.join(common)} in its tables of rights at {self._address.place}; run "
                "mariadb-secure-installation (mysql_secure_installation), or revoke them"
            )

    def _sweep(self) -> None:
        rows = self.admin("SELECT schema_name FROM information_schema.schemata UNION SELECT user FROM mysql.user")
        for (name,) in rows:
            match = _NAME.fullmatch(_decoded(name))
            if match is None or int(match.group(1), 16) > time.time() - _LEFTOVER_SECONDS:
                continue
            name = match.group()
            kind, whose = ("DATABASE", name) if name.startswith(_SCHEMA) else ("USER", f"{name}@'%'")
            with contextlib.suppress(InfraError):  # another run may drop them at the same time
                self.admin(f"DROP {kind} IF EXISTS {whose}")


def _text_of(error: BaseException) -> str:
    return str(error.args[1] if len(error.args) > 1 else error)


def _decoded(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
