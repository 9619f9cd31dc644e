"""Statements with an effect on the whole server are refused, and errors that statements signal are no outages."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cycleqd_jax.sandbox import Killed, Limits
from cycleqd_jax.tasks.dbbench.databases import Table
from cycleqd_jax.tasks.dbbench.mysql import SQL_MODE, MySqlDatabase
from cycleqd_jax.tasks.dbbench.statements import is_dynamic, refused

from .db_records import outcome

REFUSED = [
    "XA START 'order'",
    "xa begin 'order', 'b', 7",
    "XA/* of mine */RECOVER",
    "XA -- now\n RECOVER",
    "/*!50000 XA */ /*M!100000 COMMIT 'order' */",
    "SET @a = 1; XA END 'order'; XA PREPARE 'order'",
    "BEGIN NOT ATOMIC XA START 'order'; END",
    "SET sql_mode = 'NO_BACKSLASH_ESCAPES'; SELECT '\\'; XA RECOVER; -- '",
    "CREATE TABLE t (a INT) PARTITION BY HASH(a) PARTITIONS 8192",
    "CREATE TABLE t (a INT) PARTITION BY RANGE(a) SUBPARTITION BY HASH(a) SUBPARTITIONS 33 (PARTITION a VALUES LESS THAN (1), "
    "PARTITION b VALUES LESS THAN (2))",
    f"ALTER TABLE t PARTITION BY LIST(a) ({', '.join(f'PARTITION p{n} VALUES IN ({n})' for n in range(65))})",
]
ALLOWED = [
    "SELECT xa, `prepare` FROM t WHERE plan = 'prepare meals from scratch'",
    "SELECT CASE WHEN a THEN xa ELSE b END FROM t",
    "SELECT ROW_NUMBER() OVER (PARTITION BY a ORDER BY b) FROM t",
    "CREATE TABLE t (a INT) PARTITION BY HASH(a) PARTITIONS 4",
    "UPDATE t SET note = 'execute, immediate'",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_refused(sql):
    assert (refused(sql) or "").startswith("1227 (42000): Access denied; ")


@pytest.mark.parametrize("sql", ALLOWED)
def test_allowed(sql):
    assert refused(sql) is None


@pytest.mark.parametrize(
    "sql",
    [
        "PREPARE p FROM @text",
        "PREPARE `p` FROM CONCAT('X', 'A RECOVER')",
        "EXECUTE /* at */ IMMEDIATE 'SELECT 1'",
        "SET NAMES gbk; SELECT '縗\\'; PREPARE p FROM @text; -- '",
    ],
)
def test_dynamic(sql):
    assert is_dynamic(sql)
    assert not any(map(is_dynamic, ALLOWED[1:]))


@pytest.mark.parametrize(
    "piece", ["XA ", "XA/*", "/*!", "*/", "XA #", "XA -- ", "PREPARE `", "PARTITION p VALUES ", "'\\'", "\\"]
)
def test_long_texts_are_quick(piece):
    began = time.monotonic()
    refused(piece * (100_000 // len(piece)))
    assert time.monotonic() - began < 5


# ------------------------------------------------------------------------------------------------ on a server


@pytest.fixture
def database(server):
    database = MySqlDatabase(server, Limits(), 3.0, SQL_MODE, Table("shop", ("item",), (("tea",),)))
    yield database
    database.close()


def test_no_transaction_outlives_its_episode(server, database):
    output = outcome(database, "XA START 'left'; INSERT INTO shop VALUES ('jam'); XA END 'left'; XA PREPARE 'left'")
    assert output.startswith("1227")
    assert server.admin("XA RECOVER") == []
    assert outcome(database, "SELECT item FROM shop") == "[('tea',)]"


def test_transactions_of_dynamic_statements_are_rolled_back(server, database):
    hidden = "; ".join(
        f"EXECUTE IMMEDIATE CONCAT('X', {quoted!r})"
        for quoted in ("A START 0x6c,0x66,3", "A END 0x6c,0x66,3", "A PREPARE 0x6c,0x66,3")
    )
    outcome(
        database,
        hidden.replace(
            "; EXECUTE IMMEDIATE CONCAT('X', 'A END", "; INSERT INTO shop VALUES ('jam'); EXECUTE IMMEDIATE CONCAT('X', 'A END"
        ),
    )
    assert server.admin("XA RECOVER") == []
    assert outcome(database, "SELECT item FROM shop") == "[('tea',)]"
    began = time.monotonic()
    database.close()
    assert time.monotonic() - began < 2


def test_episodes_do_not_see_the_locks_of_others(server, database):
    other = MySqlDatabase(server, Limits(), 3.0, SQL_MODE, Table("shop", ("item",), (("tea",),)))
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(outcome, other, "SELECT GET_LOCK('gate', 0), SLEEP(1)")
        time.sleep(0.5)
        assert outcome(database, "SELECT IS_FREE_LOCK('gate')") == "[(1,)]"
        assert held.result() == "[(1, 0)]"
    other.close()


@pytest.mark.parametrize(
    "sql",
    [
        "COMMIT RELEASE",
        "ROLLBACK /* now */ RELEASE",
        "SELECT 1; COMMIT WORK RELEASE",
        "SET completion_type = 'RELEASE'; ROLLBACK; SELECT 1",
        "EXECUTE IMMEDIATE CONCAT('COM', 'MIT REL', 'EASE')",
    ],
)
def test_a_text_that_ends_its_session_ends_the_episode_at_most(database, sql):
    ended = outcome(database, sql)  # an InfraError would end the run
    assert isinstance(ended, Killed) or ended.startswith("Commands out of sync")


@pytest.mark.parametrize("number", [1021, 1053, 1205, 2006, 2013, 2055, 1044, 1045, 1040])
def test_errors_that_statements_signal_are_output(database, number):
    sql = f"SIGNAL SQLSTATE '08S01' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'gone'"
    for text in (sql, f"BEGIN NOT ATOMIC {sql}; END"):
        assert outcome(database, text) == f"{number} (08S01): gone"
    assert outcome(database, f"SELECT 1; {sql}").startswith("Commands out of sync")
    assert outcome(database, "SELECT item FROM shop") == "[('tea',)]"
