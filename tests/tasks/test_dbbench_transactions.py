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
}
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
}
REFUSED = [
    "SELECT TIMEDIFF('10:00:00', lap) FROM races",
    "SELECT TIME(lap) FROM races",
    "SELECT SEC_TO_TIME(1.5)",
    "SELECT CAST('a' AS BINARY(3))",
    "SELECT runner FROM races USE INDEX (x)",
    "CREATE UNIQUE INDEX i ON races (runner(3))",
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


@pytest.mark.exhaustive
def test_as_on_a_server(sandbox, server):
    for text in [*TEXTS, *OUTPUTS]:
        with both(sandbox, server, RACES) as (embedded, real):
            assert alike(embedded.run(text).output, real.run(text).output), text
            assert embedded.md5() == real.md5(), text
