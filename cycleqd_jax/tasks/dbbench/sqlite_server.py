"""A SQLite database in memory that answers JSON requests. It runs in the sandbox.

Every request and every answer is one line:

- ``{"build": {"sql": text, "insert": text, "rows": [[…]]}}`` → ``{"error": text or null}``; the
  error of the CREATE begins with "CREATE: "
- ``{"sql": [text, …], "codes": […] or null, "seconds": s, "characters": n, "commit": bool}`` → ``{"output": text, "timed_out":
  bool, "failed": bool}``: the rows of the last statement as ``str()`` of the ``fetchall()`` of MySQL's driver, or the text of
  the error; at most n + 1 characters. The codes are the types of the columns
- ``{"commit": true}`` and ``{"rollback": true}`` → ``{}``: end a transaction that statements without ``commit`` have begun
- ``{"md5": text}`` → ``{"md5": text}``: the fingerprint of the rows of a query, null if it fails or has no rows
"""

import datetime
import decimal
import hashlib
import importlib
import json
import re
import sqlite3
import sys
import time

from cycleqd_jax.tasks.dbbench.sqlite_values import DEADLINE, FUNCTIONS, Fault, decimal_text, order, padded_order

ALLOWED_PRAGMAS = ("table_info", "table_list", "table_xinfo", "index_list", "index_info")
LENGTH_LIMIT = 4_000_000
FAULTS = []  # the error of the function that failed last
PACKAGE = "cycleqd_jax.tasks.dbbench"


def authorize(action, first, second, _database, _trigger):
    """Denies all actions that reach outside the database."""
    if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA and (first or "").lower() not in ALLOWED_PRAGMAS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in ("load_extension", "fts3_tokenizer"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def quoted(name):
    """``name`` as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def guarded(name, module, aware):
    """A function that keeps the message of its error, which SQLite does not show. Its module is loaded by the first call."""
    function = None

    def call(*args):
        nonlocal function
        if not aware and None in args:
            return None
        try:
            if function is None:
                importlib.import_module(f"{PACKAGE}.{module}")
                function = FUNCTIONS[name]
            return function(*args)
        except Fault as fault:
            FAULTS.append(str(fault))
            raise
        except Exception:
            FAULTS.append(unsupported(f"{name.removeprefix('m_').upper()} of these arguments"))
            raise

    return call


def unsupported(what):
    """The error of what MySQL may support and these functions do not."""
    return f"1235 (42000): This version of MySQL doesn't yet support '{what}'"


def aggregate(name):
    """An aggregate that keeps the message of its error."""

    class Guarded:
        def __init__(self):
            self.inner = importlib.import_module(f"{PACKAGE}.sqlite_aggregates").AGGREGATES[name]()

        def step(self, *args):
            try:
                self.inner.step(*args)
            except Fault as fault:
                FAULTS.append(str(fault))
                raise

        def finalize(self):
            try:
                return self.inner.finalize()
            except Fault as fault:
                FAULTS.append(str(fault))
                raise

        value = finalize  # of a window up to the current row

        def inverse(self, *_):
            raise NotImplementedError  # every window begins with the first row

    return Guarded


def extend(connection, functions, aggregates):
    """Registers MySQL's functions, aggregates and collations."""
    for name, (module, aware, varying) in functions.items():
        connection.create_function(name, -1, guarded(name, module, aware), deterministic=not varying)
    for name in aggregates:
        connection.create_aggregate(name, -1, aggregate(name))
    connection.create_window_function("m_running", -1, aggregate("m_total"))
    connection.create_collation("mysql", order)
    connection.create_collation("mysqlbin", lambda first, second: padded_order(first.rstrip(" "), second.rstrip(" ")))


def build(connection, sql, insert, rows):
    """Creates and fills the table as AgentBench does: one CREATE, one INSERT of all rows (one ragged row makes it fail)."""
    try:
        connection.execute(sql)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        return f"CREATE: {error}"
    try:
        if len({len(row) for row in rows}) > 1:
            raise sqlite3.OperationalError("a row has more or fewer cells than there are columns")
        connection.executemany(insert, rows)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        return str(error)
    return None


def shown(value, code):
    """A value as the driver of MySQL gives it."""
    if value is None or code in ("str", "null"):
        return value
    if code == "int":
        if isinstance(value, float):
            raise Fault("1690 (22003): BIGINT value is out of range")
        return value
    if code == "dbl":
        return float(value) + 0.0  # MySQL has no negative zero
    if code[0] == "f":
        return float(f"{value + 0.0:.{code[1:]}f}")
    if code[0] == "d" and code[1:].isdecimal():
        scale = int(code[1:])
        if isinstance(value, float) and abs(value) * 10**scale > 9e15:
            raise Fault("1235 (42000): This version of MySQL doesn't yet support 'decimals of more than 15 digits'")
        return decimal.Decimal(decimal_text(value, scale))
    if code == "bin":
        return bytearray(value if isinstance(value, bytes) else str(value).encode())
    if code == "time":
        sign = -1 if value.startswith("-") else 1
        hours, minutes, seconds = value.lstrip("-").split(":")
        return sign * datetime.timedelta(hours=int(hours), minutes=int(minutes), seconds=float(seconds))
    try:
        numbers = [int(part) for part in re.split(r"[-: .]", value)]
        if code == "date":
            return datetime.date(*numbers[:3])
        if len(numbers) == 7:
            numbers[6] = int(value.partition(".")[2].ljust(6, "0"))
        return datetime.datetime(*numbers)  # pyright: ignore[reportArgumentType]
    except ValueError:
        return value


def run(connection, sql, codes, seconds, characters, commit):
    """Executes statements; with ``commit`` as if in a session of their own: commits them, and drops temporary objects.

    Rows are fetched until their text has the length that is shown.
    """
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    DEADLINE[0] = deadline
    FAULTS.clear()
    failed = True
    try:
        if not connection.in_transaction:
            connection.execute("BEGIN")
        for statement in sql[:-1]:
            connection.execute(statement)
        cursor = connection.execute(sql[-1])
        parts, length = [], 0
        if codes is not None:
            for row in cursor:
                parts.append(str(tuple(map(shown, row, codes))))
                length += len(parts[-1]) + 2
                if length > characters:
                    break
        cursor.close()
        output = "[" + ", ".join(parts) + "]"
        if commit:
            settle(connection)
        failed = False
    except Fault as fault:
        output = str(fault)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
        output = described(error)
    finally:
        connection.set_progress_handler(None, 0)
        if failed and connection.in_transaction:
            connection.execute("ROLLBACK")
    return {"output": output[: characters + 1], "timed_out": time.monotonic() > deadline, "failed": failed}


def described(error):
    """An error of SQLite, in the form of MySQL's errors where it has the same one."""
    message = str(error)
    if "user-defined" in message:
        return FAULTS[-1] if FAULTS else unsupported("a function of these arguments")
    if message == "integer overflow":
        return "1690 (22003): BIGINT value is out of range"
    if message.startswith(("Expression tree", "too many", "string or blob", "parser stack", "at most", "circular", "misuse")):
        return unsupported(message.replace("function m_", "function "))
    if isinstance(error, UnicodeError):
        return unsupported("texts that are not UTF-8")
    unique = re.match(r"UNIQUE constraint failed: (.*)", message)
    if unique:
        return f"1062 (23000): Duplicate entry for key '{unique[1]}'"
    null = re.match(r"NOT NULL constraint failed: (?:.*)\.(.*)", message)
    if null:
        return f"1048 (23000): Column '{null[1]}' cannot be null"
    return message or "out of memory"


def settle(connection):
    """Commits, and drops temporary objects."""
    if connection.in_transaction:
        connection.execute("COMMIT")
    for kind, name in connection.execute("SELECT type, name FROM sqlite_temp_master").fetchall():
        if kind in ("table", "view", "trigger") and not name.startswith("sqlite_"):
            connection.execute(f"DROP {kind} IF EXISTS temp.{quoted(name)}")


def fingerprint(connection, query):
    """MySQL's MD5(GROUP_CONCAT(rowhash ORDER BY rowhash)) of SUBSTRING(MD5(CONCAT_WS(',', columns)), 1, 5), or None."""
    hashes = []
    try:
        for row in connection.execute(query):
            text = ",".join(plain(cell) for cell in row if cell is not None)
            hashes.append(hashlib.md5(text.encode()).hexdigest()[:5])
    except (sqlite3.Error, sqlite3.Warning, MemoryError):
        return None
    return hashlib.md5(",".join(sorted(hashes)).encode()).hexdigest() if hashes else None


def plain(cell):
    """A cell as text."""
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)


def main(functions, aggregates):
    """Answers requests until standard input ends.

    Args:
        functions: for each function its module, whether it is called with NULL, and whether equal arguments give other results.
        aggregates: names of the aggregates.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LENGTH_LIMIT)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    extend(connection, functions, aggregates)
    for line in sys.stdin:
        request = json.loads(line)
        if "build" in request:
            answer = {"error": build(connection, **request["build"])}
            connection.set_authorizer(authorize)
        elif "sql" in request:
            answer = run(connection, **request)
        elif "rollback" in request:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            answer = {}
        elif "commit" in request:
            if connection.in_transaction:
                connection.execute("COMMIT")
            answer = {}
        else:
            answer = {"md5": fingerprint(connection, request["md5"])}
        print(json.dumps(answer), flush=True)
