"""Statements of many kinds, and the order of groups that ORDER BY leaves open, on the tables of records as on a real server."""

from __future__ import annotations

import dataclasses

import pytest

from .sql_kinds import KINDS, statements_of
from .test_dbbench_comparison import OWN, alike, both, differences, of_length, records

__all__ = ["records"]

# No order is given between the groups or rows that are equal in ORDER BY.
OPEN = [
    "SELECT {a}, COUNT(*) FROM {t} GROUP BY {a} ORDER BY COUNT(*) DESC LIMIT 3",
    "SELECT {a} FROM {t} WHERE {b} > '1' GROUP BY {a} ORDER BY COUNT(*)",
    "SELECT {a}, SUM({b}) s FROM {t} GROUP BY {a} HAVING COUNT(*) < 9 ORDER BY s DESC",
    "SELECT {a}, {b}, COUNT(*) FROM {t} GROUP BY {a}, {b} ORDER BY {a} DESC",
    "SELECT {a}, {b}, COUNT(*) FROM {t} GROUP BY {a}, {b} ORDER BY LENGTH({b}), COUNT(*)",
    "SELECT {a}, COUNT(DISTINCT LENGTH({b})) n FROM {t} GROUP BY {a} ORDER BY n",
    "SELECT LEFT({a}, 1) x, GROUP_CONCAT({b} ORDER BY {b}, {all}) FROM {t} GROUP BY x DESC ORDER BY COUNT(*)",
    "SELECT v, COUNT(*) n FROM (SELECT {a} v FROM {t} UNION ALL SELECT {b} FROM {t}) q GROUP BY v ORDER BY n DESC LIMIT 4",
    "SELECT {b} FROM {t} WHERE {a} = (SELECT {a} FROM {t} GROUP BY {a} ORDER BY COUNT(*) DESC LIMIT 1)",
    "SELECT * FROM (SELECT {a} v, COUNT(*) n FROM {t} GROUP BY {a} ORDER BY n LIMIT 3) q",
    "SELECT {a} FROM {t} GROUP BY {a} DESC LIMIT 2, 3",
    "SELECT DISTINCT {a}, COUNT(*) FROM {t} GROUP BY {a} ORDER BY 2",
    "SELECT {a} FROM {t} ORDER BY LENGTH({a}) DESC LIMIT 5",
    "SELECT DISTINCT {a} FROM {t} ORDER BY LENGTH({b})",
]


def usable(table):
    """The table with its columns in another order, or None if statements can't name its columns."""
    half = len(table.columns) // 2
    if len({name.lower() for name in table.columns}) < len(table.columns) or len(table.columns) < 2:
        return None
    if not all(table.columns) or any(len(row) != len(table.columns) for row in table.rows):
        return None
    rows = tuple(row[half:] + row[:half] for row in table.rows)
    return dataclasses.replace(table, columns=table.columns[half:] + table.columns[:half], rows=rows)


def compare(sandbox, server, table):
    texts = statements_of(table, [one for templates in KINDS.values() for one in templates] + OPEN)
    return differences(sandbox, server, table, texts)


@pytest.mark.exhaustive
def test_every_kind(sandbox, server):
    found, refused = compare(sandbox, server, OWN)
    assert found == []
    assert refused <= 5


@pytest.mark.parametrize("step", of_length(300, exhaustive=[60], slow=[3]))
def test_every_kind_on_the_tables_of_records(records, sandbox, server, step):
    tables = [table for record in records[5::step] if (table := usable(record.table)) is not None]
    assert [one for table in tables for one in compare(sandbox, server, table)[0]] == []


def test_names_in_order_by(sandbox, server):
    """A term that is a name is a selected expression first; within a term it is a column of a table first."""
    found = []
    with both(sandbox, server, OWN) as (embedded, real):
        for text in (
            "SELECT LENGTH(age) AS name FROM staff ORDER BY name, age",
            "SELECT LENGTH(age) AS name FROM staff ORDER BY (name) DESC, age",
            "SELECT LENGTH(age) AS name FROM staff ORDER BY name + 0, age",
            "SELECT name AS age, age AS name FROM staff ORDER BY CONCAT(name, ''), age",
            "SELECT age AS x FROM staff ORDER BY LENGTH(x), x",
            "SELECT name AS x, age AS x FROM staff ORDER BY x",
            "SELECT *, age AS name FROM staff ORDER BY name",
            "SELECT age, COUNT(*) c FROM staff GROUP BY age ORDER BY c + 1",
            "SELECT age, COUNT(*) c FROM staff GROUP BY age ORDER BY IF(c > 1, 0, 1)",
            "SELECT age, COUNT(*) c FROM staff GROUP BY age HAVING c + 1 > 1 ORDER BY c, age",
            "SELECT LENGTH(age) x FROM staff GROUP BY x + 1",
        ):
            output, expected = embedded.run(text).output, real.run(text).output
            if not alike(output, expected):
                found.append((text, output, expected))
    assert found == []


def test_groups_without_an_order_are_refused(sandbox, server):
    with both(sandbox, server, OWN) as (embedded, _):
        for end in ("ORDER BY NULL", "DESC ORDER BY NULL", "ORDER BY 'x'", "WITH ROLLUP"):
            assert embedded.run(f"SELECT age FROM staff GROUP BY age {end}").output.startswith("1235 ")
