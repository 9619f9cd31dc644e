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
