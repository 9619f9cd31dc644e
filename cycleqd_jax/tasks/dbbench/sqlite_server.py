"""A SQLite database in memory that answers JSON requests. A script for the sandbox; the package never imports it.

Every request and every answer is one line:

- ``{"build": {"name": …, "columns": […], "rows": [[…]]}}`` → ``{"error": text or null}``
- ``{"sql": text, "seconds": s, "characters": n}`` → ``{"output": text, "timed_out": bool}``: the rows as ``str()`` of the
  driver's ``fetchall()``, or the text of the error; at most n + 1 characters
- ``{"md5": {"name": …, "columns": […]}}`` → ``{"md5": text}``, null if the table or a column is gone or no row is left
"""

import hashlib
import json
import sqlite3
import sys
import time

ALLOWED_PRAGMAS = ("table_info", "table_list", "table_xinfo", "index_list", "index_info")
LENGTH_LIMIT = 4_000_000


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


def build(connection, name, columns, rows):
    """Creates and fills the table as AgentBench does: one CREATE, one INSERT of all rows (one ragged row makes it fail).

    Texts are compared case-insensitively, as in MySQL.
    """
    listed = ", ".join(f"{quoted(column)} TEXT COLLATE NOCASE" for column in columns)
    try:
        if not all(columns):
            raise sqlite3.OperationalError("a column has no name")
        connection.execute(f"CREATE TABLE {quoted(name)} ({listed})")
        if any(len(row) != len(columns) for row in rows):
            raise sqlite3.OperationalError("a row has more or fewer cells than there are columns")
        marks = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT INTO {quoted(name)} VALUES ({marks})", rows)
    except (sqlite3.Error, sqlite3.Warning) as error:
        return str(error)
    return None


def run(connection, sql, seconds, characters):
    """Executes one statement as if in a session of its own: commits it, and drops temporary objects.

    Rows are fetched until their text has the length that is shown.
    """
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    try:
        cursor = connection.execute(sql)
        parts, length = [], 0
        for row in cursor:
            parts.append(str(row))
            length += len(parts[-1]) + 2
            if length > characters:
                break
        cursor.close()
        output = "[" + ", ".join(parts) + "]"
        settle(connection)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
        output = str(error) or "out of memory"
    finally:
        connection.set_progress_handler(None, 0)
    return {"output": output[: characters + 1], "timed_out": time.monotonic() > deadline}


def settle(connection):
    """Commits, and drops temporary objects."""
    if connection.in_transaction:
        connection.execute("COMMIT")
    for kind, name in connection.execute("SELECT type, name FROM sqlite_temp_master").fetchall():
        if kind in ("table", "view", "trigger") and not name.startswith("sqlite_"):
            connection.execute(f"DROP {kind} IF EXISTS temp.{quoted(name)}")


def fingerprint(connection, name, columns):
    """MySQL's MD5(GROUP_CONCAT(rowhash ORDER BY rowhash)) of SUBSTRING(MD5(CONCAT_WS(',', columns)), 1, 5), or None."""
    listed = ", ".join(f"{quoted(name)}.{quoted(column)}" for column in columns)
    hashes = []
    try:
        for row in connection.execute(f"SELECT {listed} FROM main.{quoted(name)}"):
            text = ",".join(plain(cell) for cell in row if cell is not None)
            hashes.append(hashlib.md5(text.encode()).hexdigest()[:5])
    except (sqlite3.Error, sqlite3.Warning, MemoryError):
        return None
    return hashlib.md5(",".join(sorted(hashes)).encode()).hexdigest() if hashes else None


def plain(cell):
    """A cell as text."""
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)


def main():
    """Answers requests until standard input ends."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LENGTH_LIMIT)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    for line in sys.stdin:
        request = json.loads(line)
        if "build" in request:
            answer = {"error": build(connection, **request["build"])}
            connection.set_authorizer(authorize)
        elif "sql" in request:
            answer = run(connection, request["sql"], request["seconds"], request["characters"])
        else:
            answer = {"md5": fingerprint(connection, **request["md5"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
