"""Statements that MySQL's grammar does not allow are errors on the SQLite backend, and change nothing."""

from __future__ import annotations

import pytest

from cycleqd_jax.tasks.dbbench.dialect import table_relation, translate
from cycleqd_jax.tasks.dbbench.dialect_parser import split
from cycleqd_jax.tasks.dbbench.dialect_types import Refusal

CATALOG = {"pets": table_relation("pets", ("name", "age", "born"))}
# MariaDB 10.11 has an error for each of them.
WRONG = [
    "UPDATE pets WHERE name='Ann' SET age=5",
    "UPDATE pets SET age=5, WHERE name='Ann'",
    "DELETE FROM pets WHERE name == 'Ann'",
    "DELETE FROM pets AS s WHERE name='Ann'",
    "INSERT INTO pets (name,age,) VALUES ('x',5)",
    "INSERT INTO pets (name,age) VALUES ('x',5,)",
    "INSERT INTO pets (name,age) VALUES ('x',5),",
    "INSERT INTO pets (\"name\") VALUES ('x')",
    "INSERT INTO pets TABLE pets",
    "INSERT INTO pets AS new (name) VALUES ('x')",
    "DELETE pets",
    "CREATE TABLE q (a INT, b TEXT,)",
    "CREATE TABEL q (a INT)",
    "CREATE INDX i ON pets (age)",
    "DROP TABEL pets",
    "SELECT SUM(age) OVER FROM pets",
    "SELECT name FROM pets AS s (a, b)",
    "SELECT name FROM pets GROUP BY name DESC DESC",
    "SELECT name, FROM pets",
    "SELECT name FROM pets WHERE age IN (1,2,)",
    "SELECT name FROM pets ORDER BY name,",
    "SELECT COUNT(*,) FROM pets",
    "SELECT COUNT (*) FROM pets",
    "SELECT name FROM pets ORDER BY name WHERE age > 5",
    "SELECT born FROM pets GROUP BY born WHERE age > 5",
    "SELECT name FROM pets LIMIT 1 ORDER BY name",
    "SELECT name FROM pets ORDER BY age LIMIT 1 UNION SELECT 'x'",
    "SELECT name FROM pets ORDER BY age UNION SELECT 'x'",
    "FROM pets",
    "FROM pets SELECT name",
    "TABLE pets",
    "SELECT name FROM pets AS",
    "SELECT name FROM pets s AS",
    "SELECT name, * FROM pets",
    "SELECT name FROM pets WHERE age NOT NULL",
    "SELECT name FROM pets WHERE age ISNULL",
    "SELECT name FROM pets WHERE age NOTNULL",
    "SELECT name FROM pets ORDER BY age NULLS LAST",
    "SELECT name FROM pets LIMIT 3 PERCENT",
    "SELECT TRIM(name,'n') FROM pets",
    "SELECT POSITION('a', name) FROM pets",
    "SELECT EXTRACT(YEAR, born) FROM pets",
    "SELECT SUBSTRING(name,1,2,3) FROM pets",
    "SELECT SUBSTRING(name FOR 2) FROM pets",
    "SELECT CAST(age AS BIGINT) FROM pets",
    "SELECT CAST(age AS INT64) FROM pets",
    "SELECT CAST(age AS REAL) FROM pets",
    "SELECT CAST(age AS NUMERIC(5,2)) FROM pets",
    "SELECT CAST(age AS VARCHAR) FROM pets",
    "SELECT name FROM pets OFFSET 1 LIMIT 1",
    "DELETE FROM pets WHERE name='Ann' LIMIT 1, 2",
    "UPDATE pets SET age = 3 LIMIT 1 WHERE name='Ann'",
    "INSERT INTO pets (name) VALUES 'x'",
    "SELECT CONCAT(,name) FROM pets",
    "SELECT name FROM pets GROUP BY",
    "SELECT name FROM pets JOIN pets b USING name",
    "SELECT name FROM pets WHERE age BETWEEN SYMMETRIC 9 AND 3",
    "SELECT '2020-01-01' + INTERVAL '1 DAY'",
]
ALLOWED = [
    "SELECT name, COUNT(*) AS c FROM pets WHERE age > 1 GROUP BY name HAVING c > 0 ORDER BY c DESC, name LIMIT 2 OFFSET 1",
    "(SELECT name FROM pets ORDER BY name LIMIT 1) UNION (SELECT 'x') ORDER BY 1 LIMIT 3",
    "SELECT TRIM(BOTH 'A' FROM name), SUBSTRING(name FROM 1 FOR 2), EXTRACT(YEAR FROM born), POSITION('n' IN name) FROM pets",
    "SELECT GROUP_CONCAT(DISTINCT born ORDER BY born DESC SEPARATOR '; ') FROM pets",
    "SELECT CONVERT(age, DECIMAL(10,2)), CONVERT(age USING utf8mb4), CAST(age AS VARCHAR(2)) FROM pets LIMIT 2",
    "SELECT ISNULL(age), age IS NOT NULL, NOT NULL, NOT (NULL) FROM pets",
    "UPDATE pets AS s SET s.age = 3, s.born = 'x' WHERE s.name = 'Ann' ORDER BY s.name LIMIT 1",
    "DELETE s FROM pets AS s JOIN pets b ON s.name = b.name WHERE b.born = 'HR'",
    "INSERT INTO pets (name, age) (SELECT 'x', '5')",
    "INSERT INTO pets SET name = 'x', age = 3",
    "CREATE TABLE count (a INT NOT NULL, b TEXT)",
    "ALTER TABLE pets ADD COLUMN x INT NOT NULL, ADD y TEXT",
    "WITH c AS (SELECT name FROM pets), d AS (SELECT 1 AS x) SELECT c.name, d.x FROM c, d WHERE x = 1 LIMIT 1",
    "SELECT (SELECT COUNT(*) FROM pets b WHERE b.born = a.born ORDER BY 1 LIMIT 1) FROM pets a WHERE EXISTS (SELECT 1)",
    "SELECT name FROM pets GROUP BY name DESC, age ASC HAVING COUNT(*) > 0 LIMIT 3",
    "SELECT SUM(age) OVER (PARTITION BY born ORDER BY name ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) FROM pets",
    "SELECT name FROM pets ORDER BY name OFFSET 1 ROW FETCH FIRST 2 ROWS ONLY",
    "SELECT name value, 1 `order` FROM pets ORDER BY value LIMIT 1",
]


@pytest.mark.parametrize("statement", WRONG)
def test_sqlglot_would_execute_what_mysql_refuses(statement):
    with pytest.raises(Refusal, match=r"^1064 "):
        translate(split(statement)[0], CATALOG, "pets")


@pytest.mark.parametrize("statement", ALLOWED)
def test_the_grammar_allows(statement):
    assert translate(split(statement)[0], CATALOG, "pets").sql


def test_an_aggregate_has_no_space_before_its_parenthesis():
    with pytest.raises(Refusal, match=r"^1630 "):
        translate("SELECT SUM (age) FROM pets", CATALOG, "pets")
