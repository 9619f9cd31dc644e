"""SHOW, DESCRIBE and the keys of tables on the SQLite backend: as on the server, or an error."""

# ruff: noqa: E501
from __future__ import annotations

import contextlib

import pytest

from cycleqd_jax.tasks.dbbench.sqlite import SqliteDatabase

from .test_dbbench_comparison import LIMITS, OWN, alike, both

SHOWN = {
    "SHOW INDEX FROM staff": "[]",
    "SHOW INDEXES IN staff": "[]",
    "show keys from `staff`": "[]",
    "SHOW KEYS IN staff.staff": "[]",
    "SHOW INDEX FROM nothing": "1146 ",
    "SHOW KEYS FROM staff FROM mysql": "1142 ",
    "SHOW INDEX": "1064 ",
    "SHOW INDEX FROM": "1064 ",
    "SHOW INDEX FROM staff LIKE 'x'": "1064 ",
    "SHOW EXTENDED INDEX FROM staff": "1064 ",
    "SHOW FULL KEYS FROM staff": "1064 ",
    "SHOW COLUMNS": "1064 ",
    "SHOW CREATE TABLE": "1064 ",
    "SHOW FIELDS IN staff LIKE 'A%'": "[('age', 'text', 'YES', '', None, '')]",
    "SHOW FULL COLUMNS IN staff LIKE 'age'": "[('age', 'text', 'utf8mb4_general_ci', 'YES', '', None, '', 'select,insert,update,references', '')]",
    "DESCRIBE staff age": "[('age', 'text', 'YES', '', None, '')]",
    "DESC staff `home city`": "[('home city', 'text', 'YES', '', None, '')]",
    "EXPLAIN staff 's%'": "[('since', 'text', 'YES', '', None, '')]",
    "DESC nothing age": "1146 ",
    "SELECT name FROM staff AS s (a, b)": "1064 ",
}
# Each list is one episode; the outputs are those of a server, or error 1235.
EPISODES = [
    [
        "CREATE INDEX i ON nothing (name)",
        "CREATE INDEX i ON staff (nothing)",
        "CREATE INDEX i ON staff (name(5), age(3))",
        "CREATE INDEX i ON staff (name(5))",
        "CREATE INDEX IF NOT EXISTS i ON staff (age(5))",
        "DESCRIBE staff",
        "SHOW INDEX FROM staff",
        "CREATE OR REPLACE INDEX i ON staff (since)",
        "SHOW CREATE TABLE staff",
        "ALTER TABLE staff ADD INDEX (name(3)), ADD KEY k (age(3))",
        "SHOW CREATE TABLE staff",
        "DROP INDEX i ON staff",
        "DROP INDEX i ON staff",
        "DROP INDEX IF EXISTS i ON staff",
        "ALTER TABLE staff DROP KEY name, DROP INDEX k",
        "SHOW INDEX FROM staff",
        "SELECT COUNT(*) FROM staff",
    ],
    [
        "CREATE TABLE t (a INT PRIMARY KEY, b VARCHAR(9) UNIQUE, c INT NOT NULL, INDEX (c), UNIQUE KEY two (c, b), UNIQUE (c))",
        "DESCRIBE t",
        "SHOW CREATE TABLE t",
        "SHOW INDEX FROM t",
        "INSERT INTO t VALUES (1, 'x', 2), (2, 'X ', 3)",
        "ALTER TABLE t RENAME COLUMN c TO d, DROP INDEX two",
        "SHOW CREATE TABLE t",
        "CREATE TABLE u LIKE t",
        "SHOW CREATE TABLE u",
    ],
    ["CREATE TABLE t (a TEXT UNIQUE, b VARCHAR(3) UNIQUE, KEY (a))", "SHOW CREATE TABLE t", "DESCRIBE t"],
    ["CREATE TABLE t (a INT NOT NULL, b INT NOT NULL, UNIQUE (a, b), KEY (b), UNIQUE (b))", "DESCRIBE t", "SHOW CREATE TABLE t"],
    ["CREATE TABLE t (a INT, b INT, CONSTRAINT two UNIQUE (a, b), CONSTRAINT p PRIMARY KEY (b))", "SHOW CREATE TABLE t"],
    ["CREATE TABLE t (a VARCHAR(10), KEY (a(3)), KEY (a(10)))", "SHOW CREATE TABLE t"],
    [
        "CREATE TABLE t (a INT, b INT)",
        "INSERT INTO t VALUES (3, 1), (1, 2), (2, 1)",
        "CREATE UNIQUE INDEX j ON t (b)",
        "CREATE UNIQUE INDEX i ON t (a)",
        "INSERT INTO t VALUES (3, 9)",
        "ALTER TABLE t DROP INDEX i, ADD UNIQUE u (b, a)",
        "INSERT INTO t VALUES (3, 9)",
        "SHOW CREATE TABLE t",
        "SELECT * FROM t ORDER BY b, a",
    ],
    [
        "CREATE TABLE t (a INT PRIMARY KEY, b INT PRIMARY KEY)",
        "CREATE TABLE t (a INT PRIMARY KEY, b INT, PRIMARY KEY (b))",
        "CREATE TABLE t (a TEXT PRIMARY KEY)",
        "CREATE TABLE t (a INT, KEY (b))",
        "CREATE TABLE t (a INT, KEY k (a), KEY k (a))",
        "CREATE TABLE t (a INT, KEY (a, a))",
        "CREATE TABLE t (a INT, KEY (a(3)))",
        "CREATE TABLE t (a VARCHAR(10), KEY (a(11)))",
        "CREATE TABLE t (a INT AUTO_INCREMENT, b TEXT)",
        "CREATE TABLE t (a INT AUTO_INCREMENT, b INT, PRIMARY KEY (b, a))",
        "CREATE TABLE t (a INT AUTO_INCREMENT UNIQUE, b TEXT)",
        "CREATE TABLE t (a INT, UNIQUE KEY PRIMARY (a))",
    ],
    [
        "CREATE TABLE t AS SELECT name, age + 1 AS n, COUNT(*) AS c FROM staff GROUP BY name",
        "SELECT * FROM t ORDER BY name",
        "DESCRIBE t",
        "SHOW CREATE TABLE t",
        "UPDATE t SET c = 5000000000 WHERE n > 3",
        "CREATE TABLE u AS SELECT name, age FROM staff WHERE age > 3",
        "DESCRIBE u",
        "UPDATE u SET age = 'x'",
        "SELECT * FROM u",
    ],
    [
        "CREATE TABLE k (id INT PRIMARY KEY, v VARCHAR(10), n DECIMAL(6,2))",
        "INSERT INTO k VALUES (5, 'five', 1.5), (3, NULL, NULL), (4, 'four', 2)",
        "DELETE FROM k WHERE id = 4",
        "UPDATE k SET n = 9 WHERE id = 3",
        "UPDATE k SET v = 'first' LIMIT 1",
        "SELECT * FROM k",
        "INSERT INTO k (id, v) VALUES (5, 'a'), (6, 'b') ON DUPLICATE KEY UPDATE v = CONCAT(v, VALUES(v)), n = n + 1",
        "INSERT INTO k (id, v, n) VALUES (7, CONCAT(id, 'x'), id + n)",
        "SELECT * FROM k",
    ],
]  # fmt: skip


def test_what_show_and_describe_give(sandbox):
    with contextlib.closing(SqliteDatabase(sandbox, LIMITS, 5.0, OWN)) as database:
        assert {text: database.run(text).output[: len(output)] for text, output in SHOWN.items()} == SHOWN


def test_keys(sandbox):
    with contextlib.closing(SqliteDatabase(sandbox, LIMITS, 5.0, OWN)) as database:
        for text in ("CREATE INDEX i ON staff (name(5), age)", "CREATE TABLE t (a INT UNIQUE)"):
            assert database.run(text).output == "[]"
        assert database.run("DESCRIBE staff").output.startswith(
            "[('name', 'text', 'YES', 'MUL', None, ''), ('age', 'text', 'YES', '', "
        )
        assert "KEY `i` (`name`(5),`age`(768))" in database.run("SHOW CREATE TABLE staff").output
        assert database.run("SHOW INDEX FROM staff").output.startswith("1235 ")
        assert database.run("DROP INDEX i ON staff").output == "[]"
        assert database.run("SHOW INDEX FROM staff").output == "[]"


def test_rows_of_a_table_with_a_primary_key(sandbox):
    """The rows that a statement names are changed, though the table is read in the order of its key."""
    with contextlib.closing(SqliteDatabase(sandbox, LIMITS, 5.0, OWN)) as database:
        for text in EPISODES[-1][:5]:
            assert database.run(text).output == "[]"
        assert database.run("SELECT * FROM k").output == "[(3, 'first', Decimal('9.00')), (5, 'five', Decimal('1.50'))]"


@pytest.mark.parametrize("number", [*range(len(EPISODES)), None])
def test_as_on_a_server(sandbox, server, number):
    found = []
    with both(sandbox, server, OWN) as (embedded, real):
        for text in SHOWN if number is None else EPISODES[number]:
            output, expected = embedded.run(text).output, real.run(text).output
            if not alike(output, expected) and not output.startswith("1235 "):
                found.append((text, output, expected))
    assert found == []
