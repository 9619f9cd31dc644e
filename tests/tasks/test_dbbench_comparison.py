"""The SQLite backend of DBBench gives the rows of a real MariaDB server, on the records' tables and statements."""

from __future__ import annotations

import contextlib
import re

import pytest

from cycleqd_jax.sandbox import Limits
from cycleqd_jax.tasks.dbbench.databases import Table
from cycleqd_jax.tasks.dbbench.mysql import SQL_MODE, MySqlDatabase
from cycleqd_jax.tasks.dbbench.sqlite import SqliteDatabase

from .helpers import make
from .sql_generator import statements

OWN = Table(
    "staff",
    ("name", "age", "since", "home city"),
    (
        ("Ann", "41", "2020-01-02", "Rome"), ("ann ", "7", "2019-12-31", "oslo"), ("Zoë", "1.50", "2020-02-29 10:11:12", "Lima"),  # noqa: E501
        ("Zoe", "-3", "", "São Paulo"), ("bob", "10 years", "20210305", "Sao paulo"), ("", "0", "March 5, 2021", "50%"),
        ("O'Neil", "1,200", "5/12/2021", "a_b"), ("Straße", "1e2", "12:30:00", "x\\y"), ("Éva", "", "2021-13-01", "Rome"),
    ),
)  # fmt: skip
LIMITS = Limits(wall_s=60.0, cpu_s=60.0)


def of_length(first, *, exhaustive, slow):
    """The value of the default tests, and those of longer ones."""
    marks = [(exhaustive, pytest.mark.exhaustive), (slow, pytest.mark.slow)]
    return [first, *(pytest.param(value, marks=mark) for values, mark in marks for value in values)]


@contextlib.contextmanager
def both(sandbox, server, table):
    with (
        contextlib.closing(SqliteDatabase(sandbox, LIMITS, 20.0, table)) as embedded,
        contextlib.closing(MySqlDatabase(server, LIMITS, 20.0, SQL_MODE, table)) as real,
    ):
        yield embedded, real


def alike(output: str, expected: str) -> bool:
    """Whether outputs are equal; two errors are equal if their numbers are."""
    error = re.compile(r"(\d{4}) \(\w{5}\): ")
    first, second = error.match(output), error.match(expected)
    return first[1] == second[1] if first and second else output == expected


def differences(sandbox, server, table, texts):
    """The statements whose results differ, and the number of those that SQLite refuses."""
    found, refused = [], 0
    with contextlib.ExitStack() as stack:
        embedded, real = stack.enter_context(both(sandbox, server, table))
        for text in texts:
            output, expected = embedded.run(text).output, real.run(text).output
            if output.startswith("1235 "):
                refused += 1
            elif not alike(output, expected):
                found.append((text, output, expected))
            elif not text.startswith("SELECT"):
                if embedded.md5() != real.md5():
                    found.append((text, "another table", "as on the server"))
                stack.close()
                embedded, real = stack.enter_context(both(sandbox, server, table))
    return found, refused


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", of_length(11, exhaustive=range(12, 14), slow=range(14, 30)))
def test_generated_statements(sandbox, server, seed):
    texts = statements(seed, OWN.name, OWN.columns, OWN.rows, 300)
    found, refused = differences(sandbox, server, OWN, texts)
    assert found == []
    assert refused <= 9


@pytest.fixture
def records(data_dir, sandbox):
    return [
        record
        for name in ("dbbench_cycleqd", "dbbench_agentbench2025_changed")
        for task in [make("dbbench", data=data_dir / f"dbbench/{name}.visible.jsonl", sandbox=sandbox, memo=False)]
        for split in ("train", "test")
        for record in task.records[split]
    ]


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", of_length(1, exhaustive=[2], slow=range(3, 8)))
def test_generated_statements_on_the_tables_of_records(records, sandbox, server, seed):
    found = []
    for record in records[seed::25]:
        table = record.table
        if len({c.lower() for c in table.columns}) == len(table.columns) and all(table.columns):
            texts = statements(seed, table.name, table.columns, table.rows, 12)
            found += differences(sandbox, server, table, texts)[0]
    assert found == []


@pytest.mark.parametrize("step", of_length(12, exhaustive=[4], slow=[1]))
def test_statements_of_records(records, sandbox, server, step):
    """Also the machine-written queries of questions, which are often wrong: errors are compared too."""
    found = []
    for record in records[::step]:
        text = record.query or (record.labels[0] if record.md5 else "")
        if text:
            found += differences(sandbox, server, record.table, [" ".join(text.split("\n")).strip()])[0]
    # a text that is cut by "#" and names an unknown column first
    assert [text[:25] for text, _, _ in found if "# BedsFROM" not in text] == []


# Tables that a reply makes: the rows must be the server's, or the reply shows error 1235.
MADE = {
    "keys": [
        "CREATE TABLE made (k VARCHAR(9) PRIMARY KEY, n INT UNSIGNED, m INT)",
        "INSERT INTO made VALUES ('pear', 3, 5), ('Apple', 7, 2), ('fig', 0, 1)",
    ],
    "unique": [
        "CREATE TABLE made (k VARCHAR(9) NOT NULL, n INT UNSIGNED, m INT, UNIQUE (k))",
        "INSERT INTO made VALUES ('pear', 3, 5), ('Apple', 7, 2), ('fig', 0, 1)",
    ],
    "pairs": [
        "CREATE TABLE made (k INT, n INT UNSIGNED, m INT, PRIMARY KEY (m, k))",
        "INSERT INTO made VALUES (3, 3, 5), (1, 7, 2), (2, 0, 2)",
    ],
}
ON_MADE = (
    "SELECT * FROM made",
    "SELECT k FROM made LIMIT 1",
    "SELECT k, n + m FROM made WHERE m > 1",
    "SELECT n - m FROM made",
    "SELECT n - m FROM made WHERE n > 5",
    "SELECT n - 4 FROM made",
    "SELECT -n, n - 1.5, n * 1.0 - 9 FROM made",
    "SELECT MIN(n) - 1 FROM made",
    "SELECT CAST(m AS UNSIGNED) - 9 FROM made",
    "SELECT n * -1 FROM made WHERE n > 0",
    "SHOW TABLES LIKE 'MADE%'",
    "SHOW TABLES LIKE 'ma_e'",
    "SHOW TABLES LIKE 'Staff'",
    "SHOW COLUMNS FROM made LIKE 'N%'",
    "SELECT IF(m > 1, GREATEST('9', '10'), 'x') + 0 FROM made LIMIT 1",
    "SELECT IF(m > 0, LEAST('9', '10'), '3') * 2, CASE WHEN m > 0 THEN GREATEST('9', '10') ELSE 'a' END + 1 FROM made LIMIT 1",
    "SELECT IF(m > 0, GREATEST('9', '10'), 'x') FROM made LIMIT 1",
    "SELECT age, SUM(CAST(age AS CHAR(3))) FROM staff GROUP BY age",
    "INSERT INTO staff SELECT name, ROUND(age, 1), since, `home city` FROM staff",
    "UPDATE made SET m = m + 10 WHERE n > 0",
    "UPDATE made SET n = 1 LIMIT 1",
    "SELECT * FROM made",
    "INSERT INTO made VALUES (8, 2, 12)",
    "DELETE FROM made WHERE m = 12 LIMIT 1",
    "SELECT * FROM made",
    "UPDATE made a JOIN staff b ON a.m <> b.age SET a.n = 4 WHERE a.m > 11",
    "DELETE a FROM made a JOIN made b ON a.m < b.m",
    "SELECT * FROM made",
    "SELECT ROW_COUNT()",
    "SELECT FOUND_ROWS()",
    "SELECT LAST_INSERT_ID()",
)


@pytest.mark.parametrize("kind", MADE)
def test_tables_that_a_reply_makes(sandbox, server, kind):
    found = []
    with both(sandbox, server, OWN) as (embedded, real):
        for text in (*MADE[kind], *ON_MADE):
            output, expected = embedded.run(text).output, real.run(text).output
            if not alike(output, expected) and not output.startswith("1235 "):
                found.append((text, output, expected))
    assert found == []
