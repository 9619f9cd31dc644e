"""Attacks by SQL on the machine through SQLite; each one is contained."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import time

import pytest

from cycleqd_jax.sandbox import Killed
from cycleqd_jax.tasks.dbbench.databases import Table
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


@pytest.fixture
def embedded(sandbox):
    limits = dataclasses.replace(sandbox.limits, wall_s=8.0, cpu_s=30.0)
    database = SqliteDatabase(sandbox, limits, 1.0, Table("staff", ("name",), (("Bob",), ("Eve",))))
    yield database
    database.close()


@pytest.mark.parametrize("statement", OUTSIDE)
def test_sqlite_reaches_nothing_outside(embedded, statement):
    output = outcome(embedded, statement)
    words = ("not authorized", "denied", "no such", "prohibited", "too many attached", "unsafe")
    assert any(word in output for word in words), output
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


@pytest.mark.parametrize("statement", BOMBS)
def test_sqlite_is_bounded(embedded, statement):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    output = outcome(embedded, statement)
    assert time.monotonic() - began < 15
    assert output is None or isinstance(output, Killed) or len(output) <= 811
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_sqlite_keeps_no_session_state_between_statements(embedded):
    """As in MySQL, where each statement has its own session."""
    assert outcome(embedded, "CREATE TEMP TRIGGER t AFTER INSERT ON main.staff BEGIN DELETE FROM staff; END") == "[]"
    assert outcome(embedded, "BEGIN") == "[]"
    assert outcome(embedded, "INSERT INTO staff VALUES ('Kim')") == "[]"
    assert "no transaction is active" in outcome(embedded, "ROLLBACK")
    assert outcome(embedded, "SELECT COUNT(*) FROM staff") == "[(3,)]"


def test_memory_of_sqlite(sandbox):
    limits = dataclasses.replace(sandbox.limits, memory_mb=100, wall_s=8.0, cpu_s=30.0)
    with contextlib.closing(SqliteDatabase(sandbox, limits, 5.0, Table("staff", ("name",), (("Bob",),)))) as database:
        output = outcome(database, f"CREATE TABLE big AS {COUNTING} SELECT randomblob(1000000) FROM c LIMIT 400")
        assert isinstance(output, Killed) or output == "out of memory"
