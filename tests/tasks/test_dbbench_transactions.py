"""Several statements in one text, times with fractions, and forms of statements: the SQLite backend follows the server.

The expected outputs are those of MariaDB 10.11; the comparison at the end asks it again if there is one.
"""

from __future__ import annotations

import contextlib

import pytest

from cycleqd_jax.tasks.dbbench.databases import Table
from cycleqd_jax.tasks.dbbench.sqlite import SqliteDatabase

from .db_records import OUT_OF_SYNC
from .test_dbbench_comparison import LIMITS, alike, both

RACES = Table("races", ("runner", "lap"), (("Ann", "1:02:03"), ("Bo", "59.5"), ("Cy", "")))
ADD = "INSERT INTO races VALUES ('Di', '9')"
# Statements in one text, and the number of rows after them.
TEXTS = {
    ADD: 4,
    f"{ADD};": 4,
    f"{ADD}; -- one more": 3,
    f"{ADD}; # one more": 3,
    f"{ADD}; /* one more */": 3,
    f"{ADD}; {ADD}": 3,
    f"{ADD}; COMMIT": 4,
    f"BEGIN; {ADD}; COMMIT": 4,
    f"START TRANSACTION WITH CONSISTENT SNAPSHOT; {ADD}; COMMIT; {ADD}": 4,
    f"{ADD}; COMMIT AND CHAIN; {ADD}": 4,
    f"{ADD}; ROLLBACK; {ADD}; COMMIT": 4,
    f"{ADD}; BEGIN": 4,
    f"{ADD}; UNLOCK TABLES": 3,
    f"{ADD}; DROP TABLE nothing": 4,
    f"{ADD}; CREATE TABEL nothing": 3,
    f"SET autocommit = 1; {ADD}; ROLLBACK": 4,
    f"SET autocommit = ON; BEGIN; {ADD}": 3,
    f"SET autocommit = 0; {ADD}": 3,
    f"{ADD}; TRUNCATE races; {ADD}": 0,
    f"SAVEPOINT a; {ADD}; ROLLBACK TO a; RELEASE SAVEPOINT a; COMMIT": 3,
    f"{ADD}; SAVEPOINT a; {ADD}; ROLLBACK TO SAVEPOINT a; COMMIT": 4,
    f"{ADD}; SAVEPOINT a; {ADD}; ROLLBACK WORK TO `A`; {ADD}; COMMIT": 5,
    f"SAVEPOINT a; {ADD}; SAVEPOINT b; {ADD}; ROLLBACK TO b; ROLLBACK TO b; COMMIT": 4,
    f"SAVEPOINT a; SAVEPOINT b; {ADD}; ROLLBACK TO a; {ADD}; ROLLBACK TO b; COMMIT": 3,
    f"SAVEPOINT a; {ADD}; SAVEPOINT b; {ADD}; SAVEPOINT a; {ADD}; ROLLBACK TO a; COMMIT": 5,
    f"SAVEPOINT a; {ADD}; SAVEPOINT b; SAVEPOINT A; RELEASE SAVEPOINT b; COMMIT; ROLLBACK TO a": 4,
    f"SAVEPOINT a; RELEASE SAVEPOINT a; {ADD}; ROLLBACK TO a; COMMIT": 3,
    f"SAVEPOINT é; {ADD}; ROLLBACK TO E; {ADD}; COMMIT": 4,
    f"{ADD}; SAVEPOINT a; COMMIT; ROLLBACK TO a; {ADD}; COMMIT": 4,
    f"{ADD}; SAVEPOINT a; CREATE TABLE x (n INT); ROLLBACK TO a; {ADD}; COMMIT": 4,
    f"{ADD}; SAVEPOINT a; SET autocommit = 0; {ADD}; ROLLBACK TO a; COMMIT": 4,
    f"SET autocommit = 1; SAVEPOINT a; {ADD}; ROLLBACK TO a; {ADD}": 4,
    f"SET autocommit = 1; BEGIN; {ADD}; SAVEPOINT a; {ADD}; ROLLBACK TO a; COMMIT": 4,
    f"SET autocommit = 1; BEGIN; {ADD}; SET autocommit = 1; ROLLBACK": 3,
    f"SET autocommit = 1; SET autocommit = 0; {ADD}": 3,
    f"SET autocommit = 1; COMMIT AND CHAIN; {ADD}": 3,
    f"SET autocommit = 1; COMMIT AND NO CHAIN; {ADD}": 4,
    f"{ADD}; GRANT SELECT ON races TO x; {ADD}": 4,
    f"{ADD}; FLUSH TABLES": 4,
    f"{ADD}; CREATE TEMPORARY TABLE x (n INT)": 3,
    f"{ADD}; CREATE INDEX i ON races (runner(3)); {ADD}": 4,
    f"{ADD}; SET PASSWORD FOR x = ''": 4,
    f"{ADD}; SET GLOBAL max_connections = 5; COMMIT": 3,
    f"{ADD}; SET foreign_key_checks = 0; COMMIT": 4,
    f"SET @a = 1; {ADD}; COMMIT": 4,
    f"SET NAMES utf8mb4; {ADD}; COMMIT": 4,
    f"SET sql_mode = ''; {ADD}; COMMIT": 4,
}
# Texts that a server executes and may commit; here they are refused.
UNTRANSLATED = [
    f"{ADD}; ANALYZE TABLE races; {ADD}",
    "SET sql_mode = 'ANSI_QUOTES'; INSERT INTO races VALUES (\"lap\", '9'); COMMIT",
    "SET @a = '9'; INSERT INTO races VALUES ('Di', @a); COMMIT",
    f"{ADD}; START TRANSACTION READ ONLY; {ADD}; COMMIT",
    f"SET TRANSACTION READ ONLY; {ADD}; COMMIT",
    f"{ADD}; UPDATE races SET lap = DEFAULT; COMMIT",
    f"{ADD}; COMMIT RELEASE",
    f"BEGIN NOT ATOMIC {ADD}; END",
]
OUTPUTS = {
    "-- nothing": "[]",
    "/* nothing */;": "[]",
    ";": "1065 (42000)",
    "; SELECT 1": "1064 (42000)",
    "/* nothing */; SELECT 1": "1064 (42000)",
    "SELECT 1; -- one": OUT_OF_SYNC,
    "SELECT TIME_TO_SEC(lap) FROM races": "[(Decimal('3723.000000'),), (Decimal('59.500000'),), (None,)]",
    "SELECT TIME_TO_SEC('00:01:00'), TIME_TO_SEC('59.5'), TIME_TO_SEC('x')": "[(60, Decimal('59.5'), None)]",
    "SELECT runner FROM races LIMIT 1, 18446744073709551615": "[('Bo',), ('Cy',)]",
    "SELECT CHAR(65 USING utf8mb4), FROM_UNIXTIME(0, '%Y')": "[('A', '1970')]",
    "UNLOCK TABLES": "[]",
    "SAVEPOINT a": "[]",
    "SAVEPOINT `a b`": "[]",
    "ROLLBACK TO a": "1305 (42000)",
    "ROLLBACK WORK TO SAVEPOINT `a`": "1305 (42000)",
    "RELEASE SAVEPOINT a": "1305 (42000)",
    "SAVEPOINT select": "1064 (42000)",
    "SAVEPOINT 12": "1064 (42000)",
    "SAVEPOINT": "1064 (42000)",
    "RELEASE a": "1064 (42000)",
    "SET GLOBAL max_connections = 5": "1227 (42000)",
    "SET @@global.sql_mode = ''": "1227 (42000)",
    "SET @a = 1, GLOBAL sort_buffer_size = 5": "1227 (42000)",
    "SET GLOBAL TRANSACTION ISOLATION LEVEL READ COMMITTED": "1227 (42000)",
    "SET sql_log_bin = 0": "1227 (42000)",
    "SET max_connections = 5": "1229 (HY000)",
    "SET PASSWORD FOR root@localhost = PASSWORD('x')": "1044 (42000)",
    "SET @a = nothing": "1054 (42S22)",
    "SET @a = (SELECT lap FROM races)": "1242 (21000)",
    "SET @a = COUNT(*)": "1111 (HY000)",
    "SET races.lap = 5": "4081 (HY000)",
    "SET @a": "1064 (42000)",
    "SET x": "1064 (42000)",
    "SET": "1064 (42000)",
    "SET @a = 5, @`b c` := (SELECT MAX(lap) FROM races)": "[]",
    "SET @@session.foreign_key_checks = OFF, unique_checks = 0": "[]",
    "SET SESSION sql_mode = (SELECT REPLACE(@@sql_mode, 'ONLY_FULL_GROUP_BY', ''))": "[]",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED": "[]",
    "SET NAMES 'utf8mb4' COLLATE 'utf8mb4_unicode_ci'": "[]",
}
REFUSED = [
    "SELECT TIMEDIFF('10:00:00', lap) FROM races",
    "SELECT TIME(lap) FROM races",
    "SELECT SEC_TO_TIME(1.5)",
    "SELECT CAST('a' AS BINARY(3))",
    "SELECT runner FROM races USE INDEX (x)",
    "CREATE UNIQUE INDEX i ON races (runner(3))",
    "SET nothing = 5",
    "SET time_zone = 'Mars'",
    "SET STATEMENT max_statement_time = 5 FOR SELECT 1",
    "COMMIT RELEASE",
    "INSERT INTO races (races.runner) VALUES ('x')",
    "DELETE FROM r USING races r WHERE r.runner = 'Ann'",
    "ANALYZE TABLE races",
]


@pytest.fixture
def database(sandbox):
    with contextlib.closing(SqliteDatabase(sandbox, LIMITS, 5.0, RACES)) as database:
        yield database


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_committed(database, text):
    database.run(text)
    assert database.run("SELECT COUNT(*) FROM races").output == f"[({TEXTS[text]},)]"


def test_outputs(database):
    assert {text: database.run(text).output[: len(output)] for text, output in OUTPUTS.items()} == OUTPUTS


@pytest.mark.parametrize("text", REFUSED)
def test_refused(database, text):
    assert database.run(text).output.startswith("1235 (42000)")
    assert database.run("SELECT COUNT(*) FROM races").output == "[(3,)]"


@pytest.mark.parametrize("text", UNTRANSLATED)
def test_untranslated_texts_change_nothing(database, text):
    assert database.run(text).output.startswith("1235 (42000)")
    assert database.run("SELECT COUNT(*) FROM races").output == "[(3,)]"


def test_what_came_before_an_untranslated_statement_stays_committed(database):
    assert database.run(f"SET autocommit = 1; {ADD}; UPDATE races SET lap = DEFAULT").output.startswith("1235 (42000)")
    assert database.run("SELECT COUNT(*) FROM races").output == "[(4,)]"


def test_the_password_can_not_be_set(database):
    assert database.run("SET PASSWORD = PASSWORD('x')").output.startswith("1044 (42000)")


@pytest.mark.exhaustive
def test_as_on_a_server(sandbox, server):
    for text in [*TEXTS, *OUTPUTS]:
        with both(sandbox, server, RACES) as (embedded, real):
            assert alike(embedded.run(text).output, real.run(text).output), text
            assert embedded.md5() == real.md5(), text
