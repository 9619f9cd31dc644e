"""A MySQL or MariaDB server as its administrator sees it: address, connections, schemas and users to be thrown away."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cycleqd_jax.sandbox import InfraError, Killed
from cycleqd_jax.types import InputError

__all__ = ["Address", "Guest", "MySqlServer"]

LOST = (1053, 2006, 2013, 2055)
"""Errors of a server that went away or shuts down: not what a statement leads to, if nobody has ended it."""

_FORM = "mysql://user:password@host:port or mysql://user:password@/?unix_socket=/path"
_ADVICE = (
    "start one (apt-get install mariadb-server, or docker run mariadb:10.11; README, DBBench on MySQL) or correct the address "
    "in option dsn or CYCLEQD_MYSQL_DSN"
)
_RIGHTS = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, REFERENCES, CREATE VIEW, SHOW VIEW"  # on the own schema only
)
_REFUSED = (1045, 1203, 1226, 1820, 1862)  # wrong password, too many connections of the user's, password to be changed
_NEEDED = "give the account ALL PRIVILEGES ON *.* WITH GRANT OPTION, on a server that has nothing else to do"
# Letters and digits only: in GRANT an underscore stands for any character.
_SCHEMA, _USER = "cycleqddb", "cycleqdus"
_NAME = re.compile(rf"(?:{_SCHEMA}|{_USER})([0-9a-f]{{8}})[0-9a-f]{{14}}")
_LEFTOVER_SECONDS = 12 * 3600
_CONNECT_SECONDS = 10.0
_ADMIN_SECONDS = 60.0
_MOST_CONNECTIONS = 8  # of the administrator's


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server is, and who we are to it.

    Attributes:
        host: name or address; empty for a socket.
        port: of TCP.
        socket: path of a Unix socket, or None.
        user: an account that may create schemas and users.
        password: its password.
        ssl_ca: file with the certificates that the server's must be signed by; None takes any, as MySQL's own clients do.
    """

    host: str
    port: int
    socket: str | None
    user: str
    password: str = dataclasses.field(repr=False)
    ssl_ca: str | None = None

    @classmethod
    def parse(cls, where: str, dsn: Any) -> Address:
        """The address that ``mysql://user:password@host:port`` or ``mysql://user:password@/?unix_socket=/path`` means.

        Marks in names and passwords are written as in URLs (``%40`` for @); ``?ssl_ca=/path`` asks for a signed certificate.

        Raises:
            InputError: for anything else; ``where`` says where it was given. The password is not repeated.
        """
        problem = f"{where}: expected {_FORM}, got"
        if not isinstance(dsn, str):
            raise InputError(f"{problem} {type(dsn).__name__}")
        try:
            parts = urlsplit(dsn)
            query = parse_qs(parts.query, strict_parsing=bool(parts.query))
            port = parts.port
        except ValueError:
            raise InputError(f"{problem} something that is no such address") from None
        unknown = sorted(set(query) - {"unix_socket", "ssl_ca"})
        if parts.scheme != "mysql" or not parts.username or unknown or parts.path not in ("", "/") or parts.fragment:
            lacks = "unknown settings " + ", ".join(unknown) if unknown else "no such address"
            raise InputError(f"{problem} one with {lacks}" if unknown else f"{problem} something that is {lacks}")
        path = query.get("unix_socket", [None])[-1]
        if not parts.hostname and not path:
            raise InputError(f"{problem} one without host and socket")
        return cls(
            host=parts.hostname or "",
            port=port or 3306,
            socket=path,
            user=unquote(parts.username),
            password=unquote(parts.password or ""),
            ssl_ca=query.get("ssl_ca", [None])[-1],
        )

    @property
    def place(self) -> str:
        """As in messages."""
        return self.socket or f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Guest:
    """A schema, and a user who has rights on nothing else.

    Attributes:
        schema: its name.
        user: the user's.
        password: the user's.
    """

    schema: str
    user: str
    password: str = dataclasses.field(repr=False)


class MySqlServer:
    """Any MySQL (8.0 or later) or MariaDB (10.5 or later) server. Thread-safe; nothing is connected before it is needed.

    The first connection drops the schemas and users that dead runs have left: those named as ours, older than twelve hours.
    """

    def __init__(self, address: Address) -> None:
        """Takes the address.

        Raises:
            InputError: the driver is not installed.
        """
        try:
            import pymysql
        except ImportError:
            raise InputError(
                "expected the package pymysql, which speaks to MySQL servers, got none: pip install 'cycleqd_jax[mysql]'"
            ) from None
        self._driver = pymysql
        self._address = address
        self._idle: list[Any] = []
        self._turn = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._ready = False
        self._doomed: set[Guest] = set()
        self.maria = False

    def guest(self) -> Guest:
        """A new, empty schema and its user.

        Raises:
            InfraError: the server can't be reached, or the account may not do this.
        """
        self._prepare()
        name = f"{int(time.time()):08x}{secrets.token_hex(7)}"
        # A password that also passes servers that ask for letters of both cases, a digit and a mark.
        guest = Guest(_SCHEMA + name, _USER + name, "Aa1-" + secrets.token_hex(16))
        try:
            self.admin(
                f"CREATE DATABASE {guest.schema} CHARACTER SET utf8mb4",
                # A few at once: the server may still be busy ending the one before.
                f"CREATE USER {guest.user}@'%' IDENTIFIED BY '{guest.password}' WITH MAX_USER_CONNECTIONS 4",
                f"GRANT {_RIGHTS} ON {guest.schema}.* TO {guest.user}@'%'",
            )
        except BaseException:
            self.drop(guest)
            raise
        return guest

    def drop(self, guest: Guest) -> None:
        """Drops schema and user. What can't be dropped now (the server is gone) is left to :meth:`close`, or to a later run."""
        try:
            self.admin(f"DROP DATABASE IF EXISTS {guest.schema}", f"DROP USER IF EXISTS {guest.user}@'%'")
        except InfraError:
            with self._lock:
                self._doomed.add(guest)
            return
        with self._lock:
            self._doomed.discard(guest)

    def login(self, guest: Guest, *, init: str, read_seconds: float) -> Any:
        """A connection of the guest's, several statements at once allowed.

        Raises:
            Killed: the guest has made its own account useless.
            InfraError: the server can't be reached, or refuses.
        """
        from pymysql.constants.CLIENT import MULTI_STATEMENTS

        try:
            return self._connect(guest.user, guest.password, init=init, client_flag=MULTI_STATEMENTS, read_timeout=read_seconds)
        except (self._driver.MySQLError, RuntimeError, OSError) as error:
            if error.args and error.args[0] in _REFUSED:
                raise Killed(f"its account can't be used any more: {_said(error)}") from error
            raise self._broken(error) from error

    def admin(self, *statements: str) -> list[tuple]:
        """Executes statements as administrator, and returns the rows of the last.

        Raises:
            InfraError: the server can't be reached, or refuses.
        """
        with self._administrator() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def kill(self, thread: int) -> None:
        """Ends a connection and what it executes; one that has ended by itself is fine too."""
        with self._administrator() as connection, contextlib.suppress(self._driver.MySQLError):
            connection.cursor().execute(f"KILL {thread:d}")

    def usage(self, thread: int, schema: str) -> tuple[int, int]:
        """Bytes of memory that a connection holds, and bytes of the schema's tables on disk."""
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
        """Drops what could not be dropped before, and closes the connections. The server may be used again after it."""
        for guest in list(self._doomed):
            self.drop(guest)
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
        """One of the administrator's connections, for this thread alone."""
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
        """An idle connection that still answers, else a new one."""
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
        # Waiting for locks is for those whom the server has time for.
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
            return InfraError(f"the server at {place} refuses what databases need ({_said(error)}): {_NEEDED}")
        if code in (1045, 1698):
            return InfraError(f"the server at {place} does not know the account ({_said(error)}): {_ADVICE}")
        return InfraError(f"no MySQL or MariaDB server does its work at {place} ({_said(error)}): {_ADVICE}")

    # ------------------------------------------------------------------------------------------------ first connection

    def _prepare(self) -> None:
        """Looks at the server, once, and drops what dead runs have left."""
        with self._lock:
            if self._ready:
                return
        if self._address.socket is not None:
            with socket.socket(socket.AF_UNIX) as probe:  # the driver does not close those that it can't connect
                try:
                    probe.connect(self._address.socket)
                except OSError as error:
                    raise self._broken(error) from error
        elif self._address.ssl_ca is not None:
            try:
                self._tls = ssl.create_default_context(cafile=self._address.ssl_ca)
            except OSError as error:  # ssl.SSLError too
                raise InputError(
                    f"expected a certificate at {self._address.ssl_ca}, got {error}: correct ssl_ca in the server's address"
                ) from error
        (version,) = self.admin("SELECT VERSION()")[0]
        encrypted = any(value for _, value in self.admin("SHOW STATUS LIKE 'Ssl_cipher'"))
        everybody = self.admin("SELECT DISTINCT db FROM mysql.db WHERE user = ''")
        if everybody or self.admin("SELECT 1 FROM mysql.user WHERE user = ''"):
            raise InfraError(
                f"the server at {self._address.place} lets everybody in, or into the schema {_listed(everybody)}, where "
                "episodes could meet: run mariadb-secure-installation (mysql_secure_installation), which drops these accounts"
            )
        self._sweep()
        with self._lock:
            self.maria = "mariadb" in version.lower()
            if encrypted and self._tls is None:  # made once, since it takes longer than a connection does
                self._tls = ssl.create_default_context()
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE
            self._ready = True

    def _sweep(self) -> None:
        rows = self.admin("SELECT schema_name FROM information_schema.schemata UNION SELECT user FROM mysql.user")
        for (name,) in rows:
            match = _NAME.fullmatch(_text(name))
            if match is None or int(match.group(1), 16) > time.time() - _LEFTOVER_SECONDS:
                continue
            name = match.group()
            kind, whose = ("DATABASE", name) if name.startswith(_SCHEMA) else ("USER", f"{name}@'%'")
            with contextlib.suppress(InfraError):  # what another run is just dropping
                self.admin(f"DROP {kind} IF EXISTS {whose}")


def _said(error: BaseException) -> str:
    return str(error.args[1] if len(error.args) > 1 else error)


def _listed(rows: Sequence[tuple]) -> str:
    return ", ".join(_text(row[0]) for row in rows) or "-"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
