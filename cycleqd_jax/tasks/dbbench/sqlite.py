"""DBBench on SQLite: a database in memory, in the sandbox, that follows MySQL's rules."""

from __future__ import annotations

import base64
import functools
import importlib
import json
import marshal
import zlib
from importlib import resources

from cycleqd_jax.sandbox import Limits, Sandbox
from cycleqd_jax.tasks.dbbench.databases import LONGEST_OUTPUT, OUT_OF_SYNC, Ran, Table, truncated, unqualified
from cycleqd_jax.tasks.dbbench.dialect import Statement, fingerprint_sql, table_relation, translate
from cycleqd_jax.tasks.dbbench.dialect_parser import split
from cycleqd_jax.tasks.dbbench.dialect_sessions import Assigned, Transaction, missing_savepoint, transaction, uses_variables
from cycleqd_jax.tasks.dbbench.dialect_tables import create_table_sql
from cycleqd_jax.tasks.dbbench.dialect_types import Catalog, Refusal, quoted, unsupported

__all__ = ["SqliteDatabase"]

_PACKAGE = "cycleqd_jax.tasks.dbbench"
_LIBRARY = (
    "sqlite_values",
    "sqlite_numbers",
    "sqlite_texts",
    "sqlite_aggregates",
    "sqlite_dates",
    "sqlite_clocks",
    "sqlite_formats",
)
# Only this process writes the script, and the same Python executes it, so the compiled form of its modules is valid there.
# Most statements need few functions, so a module is loaded when one of its functions is called.
_LOADER = """
import base64, importlib.machinery, marshal, sys, types, zlib
codes, parents, functions, aggregates = marshal.loads(base64.b64decode({data!r}))
class Finder:
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name in codes else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(marshal.loads(zlib.decompress(codes[module.__name__])), module.__dict__)
sys.meta_path.insert(0, Finder())
for name in parents:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
from {package}.sqlite_server import main
main(functions, aggregates)
"""


class SqliteDatabase:
    """One table in one SQLite database; every column is TEXT.

    Statements are translated outside the sandbox and executed inside. A statement that can't be translated is an error in its
    output. If a text contains several statements, all of them are executed, but as with AgentBench's client the output is
    "commands out of sync" and what they changed since the last commit is undone.
    """

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
        self._catalog: Catalog = {}
        self._session = sandbox.session(_server(), limits=limits)
        try:
            self._build(table)
        except BaseException:
            self._session.close()
            raise

    def run(self, sql: str) -> Ran:
        """Executes one or several statements."""
        if not sql:
            return Ran("[]", False)
        sql = unqualified(sql, self._table.name)
        try:
            statements = split(sql)
            if len(statements) == 1:
                return self._execute(_translation(statements[0], self._key(), self._table.name), commit=True)[0]
        except Refusal as refusal:
            return Ran(truncated(str(refusal)), False)
        return self._execute_all(statements)

    def md5(self) -> str | None:
        """The fingerprint, computed in Python by MySQL's rule."""
        query = fingerprint_sql(self._catalog, self._table.name, self._table.columns)
        return None if query is None else self._session.request({"md5": query})["md5"]

    def close(self) -> None:
        """Ends the process."""
        self._session.close()

    def _build(self, table: Table) -> None:
        names = [column.lower() for column in table.columns]
        if not all(names) or len(set(names)) < len(names) or not table.name or "\0" in table.name + "".join(names):
            return
        relation = table_relation(table.name, table.columns)
        marks = ", ".join("?" * len(table.columns))
        ragged = any(len(row) != len(names) for row in table.rows)
        request = {
            "sql": create_table_sql(relation),
            "insert": f"INSERT INTO {quoted(table.name)} VALUES ({marks})",
            "rows": () if ragged else table.rows,
        }
        try:
            json.dumps(request, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which neither SQLite nor MySQL stores
            return
        error = self._session.request({"build": request})["error"]
        if error is None or not error.startswith("CREATE: "):
            self._catalog = {table.name: relation}

    def _key(self) -> tuple:
        return tuple(self._catalog.items())

    def _execute(self, statement: Statement, *, commit: bool) -> tuple[Ran, bool]:
        """The result of a statement, and whether it failed."""
        if statement.rows is not None:
            ran, failed = Ran(truncated(statement.rows), False), False
        else:
            result = self._session.request(
                {
                    "sql": statement.sql,
                    "codes": statement.codes,
                    "seconds": self._seconds,
                    "characters": LONGEST_OUTPUT,
                    "commit": commit or statement.catalog is not None,
                }
            )
            ran, failed = Ran(truncated(result["output"]), result["timed_out"]), result["failed"]
        if statement.catalog is not None and not failed:
            self._catalog = statement.catalog
        return ran, failed

    def _execute_all(self, statements: list[str]) -> Ran:
        first: Ran | None = None
        session = _Session()
        try:
            for number, text in enumerate(statements):
                ran, failed = self._step(text, session)
                if ran.timed_out or (failed and first is None):
                    return ran
                if failed:
                    # What follows may be committed on a server, so the table may be another than there.
                    if ran.output.startswith("1235 ") and (session.automatic or any(map(_commits, statements[number:]))):
                        return ran
                    break
                first = first or ran
        finally:
            self._session.request({"rollback": True})
        return Ran(OUT_OF_SYNC, False)

    def _step(self, text: str, session: _Session) -> tuple[Ran, bool]:
        """The result of one of several statements of a text, and whether it failed."""
        change: Transaction | None = None
        try:
            change = transaction(text)
            if change is not None and change.kind in ("savepoint", "undo", "release"):
                done = session.savepoint(change, text)
                return self._execute(Statement((done,)) if done else Statement(rows="[]"), commit=False)
            session.check(text, change)
            statement = _translation(text, self._key(), self._table.name)
        except Refusal as refusal:
            if change is not None and change.kind == "implicit" and not str(refusal).startswith(("1064 ", "1235 ")):
                self._end(session, "commit")  # the server understands it, so it commits first
            return Ran(truncated(str(refusal)), False), True
        if change is not None and change.kind != "unlock":  # it ends the transaction, whether it fails or not
            self._end(session, "rollback" if change.kind == "rollback" else "commit")
            session.inside = change.kind == "begin" or change.chained
        if statement.assigned is not None:
            if statement.assigned.automatic and not session.automatic:
                self._end(session, "commit")
            session.set(statement.assigned)
        defines = change is not None and change.kind == "implicit"
        return self._execute(statement, commit=defines or not session.open)

    def _end(self, session: _Session, how: str) -> None:
        """Commits or rolls back the transaction."""
        self._session.request({how: True})
        session.points.clear()
        session.inside = False


class _Session:
    """The state of the session of a text of several statements.

    Attributes:
        automatic: whether every statement outside BEGIN and COMMIT is committed.
        inside: whether a transaction was begun.
        points: the savepoints: their names as they are compared, and in SQLite.
    """

    def __init__(self) -> None:
        self.automatic = self.inside = False
        self.points: list[tuple[str, str]] = []
        self._count = 0
        self._variables = self._settings = False

    @property
    def open(self) -> bool:
        """Whether statements belong to a transaction."""
        return self.inside or not self.automatic

    def set(self, assigned: Assigned) -> None:
        """Remembers what SET has changed."""
        if assigned.automatic is not None:
            self.automatic = assigned.automatic
        self._variables |= assigned.variables
        self._settings |= assigned.settings

    def check(self, text: str, change: Transaction | None) -> None:
        """Refuses a statement whose result depends on a SET before it."""
        if self._settings and (change is None or change.kind == "implicit"):
            raise unsupported("a statement after SET in one text")
        if self._variables and uses_variables(text):
            raise unsupported("variables that are set in the same text")

    def savepoint(self, change: Transaction, text: str) -> str | None:
        """The statement of SQLite for SAVEPOINT, ROLLBACK TO or RELEASE; None if it does nothing there.

        Raises:
            Refusal: there is no such savepoint.
        """
        names = [name for name, _ in self.points]
        if change.kind == "savepoint":
            if not self.open:
                return None
            if change.name in names:
                del self.points[names.index(change.name)]
            self._count += 1
            self.points.append((change.name, f"point {self._count}"))
            return f"SAVEPOINT {quoted(self.points[-1][1])}"
        if change.name not in names:
            raise missing_savepoint(text)
        index = names.index(change.name)
        if change.kind == "release":
            del self.points[index:]
            return None  # SQLite's own savepoint ends with the transaction
        del self.points[index + 1 :]
        return f"ROLLBACK TO {quoted(self.points[index][1])}"


def _commits(text: str) -> bool:
    """Whether a server may commit something when it executes a statement."""
    try:
        change = transaction(text)
    except Refusal as refusal:
        return str(refusal).startswith("1235 ")
    return "autocommit" in text.lower() if change is None else change.kind in ("begin", "commit", "implicit")


@functools.lru_cache(4096)
def _translation(sql: str, catalog: tuple, database: str) -> Statement:
    """The translation of a statement; during evolution many replies are equal."""
    return translate(sql, dict(catalog), database)


@functools.cache
def _server() -> str:
    folder = resources.files(_PACKAGE)
    codes = {}
    for name in (*_LIBRARY, "sqlite_server"):
        source = folder.joinpath(f"{name}.py").read_text(encoding="utf-8")
        code = compile(source, f"<{name}>", "exec", optimize=2, dont_inherit=True)
        codes[f"{_PACKAGE}.{name}"] = zlib.compress(marshal.dumps(code), 9)
    modules = {name: importlib.import_module(f"{_PACKAGE}.{name}") for name in _LIBRARY}
    values = modules["sqlite_values"]
    functions = {
        name: (function.__module__.rpartition(".")[2], name in values.NULL_AWARE, name in values.VARYING)
        for name, function in values.FUNCTIONS.items()
    }
    words = _PACKAGE.split(".")
    parents = [".".join(words[: i + 1]) for i in range(len(words))]
    data = marshal.dumps((codes, parents, functions, tuple(modules["sqlite_aggregates"].AGGREGATES)))
    return _LOADER.format(package=_PACKAGE, data=base64.b64encode(data).decode())
