"""Attacks by SQL on the machine through SQLite; each one is contained.

Replies are translated, so most attacks are refused before SQLite sees them. The limits inside the sandbox do not rely on that:
the same statements are also sent to SQLite as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import resource
import time

import pytest

from cycleqd_jax.sandbox import Killed
from cycleqd_jax.tasks.dbbench.databases import Ran, Table, truncated
from cycleqd_jax.tasks.dbbench.sqlite import SqliteDatabase

from .db_records import outcome

OUTSIDE = [
    "ATTACH DATABASE '/tmp/cycleqd-attack' AS other",
    "ATTACH 'file:/etc/passwd?mode=ro' AS other",
    "VACUUM INTO '/tmp/cycleqd-attack'",
    "SELECT load_extension('/tmp/x.so')",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('/tmp/cycleqd-attack', 'y')",
    "SELECT edit('x', 'sh')",
    "SELECT fts3_tokenizer('simple', x'0000000000000000')",
    "PRAGMA temp_store_directory = '/tmp'",
    "PRAGMA writable_schema = 1",
    "PRAGMA data_store_directory = '/tmp'",
    "PRAGMA hard_heap_limit = 0",
    "PRAGMA journal_mode = DELETE",
    "CREATE VIRTUAL TABLE x USING csv(filename='/etc/passwd')",
    "CREATE VIRTUAL TABLE x USING fsdir('/')",
    "DETACH DATABASE main",
]


class Untranslated:
    """A database whose statements are sent to SQLite as they are."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    def run(self, sql: str) -> Ran:
        request = {"sql": [sql], "codes": ["null"] * 100, "seconds": self._database._seconds, "characters": 800, "commit": True}
        result = self._database._session.request(request)
        return Ran(truncated(result["output"]), result["timed_out"])


@pytest.fixture
def untranslated(embedded):
    return Untranslated(embedded)


@pytest.fixture
def embedded(sandbox):
    limits = dataclasses.replace(sandbox.limits, wall_s=8.0, cpu_s=30.0)
    database = SqliteDatabase(sandbox, limits, 1.0, Table("staff", ("name",), (("Bob",), ("Eve",))))
    yield database
    database.close()


@pytest.mark.parametrize("statement", OUTSIDE)
def test_sqlite_reaches_nothing_outside(embedded, untranslated, statement):
    output = outcome(untranslated, statement)
    words = ("not authorized", "denied", "no such", "prohibited", "too many attached", "unsafe", "cannot VACUUM")
    assert any(word in output for word in words), output
    output = outcome(embedded, statement)
    assert re.match(r"1(064|044|305|235|193) \(", output), output
    assert not os.path.exists("/tmp/cycleqd-attack")


COUNTING = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
BOMBS = [
    f"{COUNTING} SELECT COUNT(*) FROM c",
    f"{COUNTING} SELECT MAX(hex(zeroblob(x))) FROM c",
    f"{COUNTING} SELECT x FROM c",
    f"{COUNTING} SELECT GROUP_CONCAT(x) FROM c",
    f"{COUNTING} SELECT COUNT(DISTINCT randomblob(100000) || x) FROM c",
    f"CREATE TABLE big AS {COUNTING} SELECT x, randomblob(100000) FROM c",
    f"INSERT INTO staff {COUNTING} SELECT hex(randomblob(1000000)) FROM c",
    "SELECT hex(zeroblob(1000000000))",
    "SELECT randomblob(2000000000)",
    "SELECT printf('%.*c', 200000000, 'x')",
    "SELECT replace(hex(zeroblob(1000000)), '0', hex(zeroblob(1000000)))",
    "SELECT 'a' LIKE '" + "%a" * 20_000 + "%'",
    "SELECT " + "(" * 5_000 + "1" + ")" * 5_000,
    "SELECT " + "1+" * 20_000 + "1",
    "SELECT group_concat(a.name) FROM " + ", ".join(f"sqlite_master a{i}" if i else "staff a" for i in range(70)),
    f"CREATE TRIGGER t AFTER INSERT ON staff BEGIN INSERT INTO staff {COUNTING} SELECT x FROM c; END; ",
    "CREATE VIEW v AS SELECT * FROM v; SELECT * FROM v",
]


MANY = ", ".join(f"staff a{i}" for i in range(40))
MYSQL_BOMBS = [
    f"SELECT COUNT(*) FROM {MANY}",
    f"SELECT a1.name FROM {MANY}",
    f"SELECT GROUP_CONCAT(a1.name, a2.name) FROM {MANY}",
    f"SELECT DISTINCT CONCAT(a1.name, RAND()) FROM {MANY}",
    f"CREATE TABLE big AS SELECT REPEAT('x', 100000) AS x FROM {MANY}",
    f"INSERT INTO staff SELECT REPEAT('x', 1000000) FROM {MANY}",
    f"UPDATE staff SET name = (SELECT MAX(RAND()) FROM {MANY})",
    f"DELETE FROM staff WHERE name IN (SELECT RAND() FROM {MANY})",
    "SELECT REPEAT('x', 1000000000)",
    "SELECT LPAD('x', 1000000000, 'y')",
    "SELECT SPACE(2000000000)",
    "SELECT REPLACE(REPEAT('a', 1000000), 'a', REPEAT('b', 1000000))",
    "SELECT CONCAT(REPEAT('a', 3000000), REPEAT('a', 3000000))",
    "SELECT FORMAT(1e300, 1000000000), ROUND(1e300, -2000000000), TRUNCATE(1e300, 2000000000)",
    "SELECT CAST(REPEAT('9', 3000000) AS DECIMAL(65, 30)), REPEAT('9', 3000000) + 0",
    "SELECT CONV(REPEAT('z', 3000000), 36, 2)",
    "SELECT REPEAT('a', 30) REGEXP '^(a+)+$b'",
    "SELECT REPEAT('a', 100000) LIKE CONCAT(REPEAT('%a', 50000), 'b')",
    "SELECT LOCATE(REPEAT('a', 1000000), REPEAT('a', 2000000))",
    "SELECT SLEEP(1000)",
    "SELECT POW(10, 400), EXP(1000)",
    "SELECT " + "(" * 30_000 + "1" + ")" * 30_000,
    "SELECT " + "NOT " * 10_000 + "1",
    "SELECT " + "- " * 10_000 + "1",
    "SELECT " + "1+" * 4_000 + "1",
    "SELECT " + "1 OR " * 4_000 + "1",
    "SELECT " + "a." * 4_000 + "a",
    "SELECT 1" + " UNION SELECT 1" * 2_000,
    "SELECT " + "CASE WHEN 1 THEN " * 2_000 + "1",
    "SELECT * FROM staff" + " JOIN staff" * 2_000,
    "SELECT " + "IF(1," * 2_000,
    "SELECT * FROM " + "(SELECT * FROM " * 35 + "staff" + ") x" * 35,
    "SELECT " + "/*!" * 20_000,
    "SELECT '" + "\\" * 50_000,
    "SELECT " + "/*" * 40_000,
    "INSERT INTO staff VALUES " + ", ".join(["('x')"] * 4_000),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("statement", MYSQL_BOMBS, ids=range(len(MYSQL_BOMBS)))
def test_statements_of_mysql_are_bounded(embedded, statement):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    output = outcome(embedded, statement)
    assert time.monotonic() - began < 15
    assert output is None or isinstance(output, Killed) or len(output) <= 811
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.exhaustive
@pytest.mark.parametrize("statement", BOMBS)
def test_sqlite_is_bounded(untranslated, statement):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    output = outcome(untranslated, statement)
    assert time.monotonic() - began < 15
    assert output is None or isinstance(output, Killed) or len(output) <= 811
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_sqlite_keeps_no_session_state_between_statements(embedded, untranslated):
    """As in MySQL, where each statement has its own session."""
    assert outcome(untranslated, "CREATE TEMP TRIGGER t AFTER INSERT ON main.staff BEGIN DELETE FROM staff; END") == "[]"
    assert outcome(embedded, "SET @x = 1") == "[]"
    assert outcome(embedded, "SELECT @x") == "[(None,)]"
    assert outcome(embedded, "BEGIN") == "[]"
    assert outcome(embedded, "INSERT INTO staff VALUES ('Kim')") == "[]"
    assert outcome(embedded, "ROLLBACK") == "[]"
    assert outcome(embedded, "SELECT COUNT(*) FROM staff") == "[(3,)]"


def test_memory_of_sqlite(sandbox):
    limits = dataclasses.replace(sandbox.limits, memory_mb=100, wall_s=8.0, cpu_s=30.0)
    with contextlib.closing(SqliteDatabase(sandbox, limits, 5.0, Table("staff", ("name",), (("Bob",),)))) as database:
        output = outcome(Untranslated(database), f"CREATE TABLE big AS {COUNTING} SELECT randomblob(1000000) FROM c LIMIT 400")
        assert isinstance(output, Killed) or output == "out of memory"
