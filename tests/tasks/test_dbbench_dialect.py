"""Statements of MySQL on the SQLite backend: results as MariaDB 10.11 gives them, and refusals."""

# ruff: noqa: E501
from __future__ import annotations

import contextlib
import time

import pytest

from cycleqd_jax.sandbox import Limits
from cycleqd_jax.tasks.dbbench.databases import Table
from cycleqd_jax.tasks.dbbench.dialect import table_relation, translate
from cycleqd_jax.tasks.dbbench.dialect_parser import split
from cycleqd_jax.tasks.dbbench.dialect_types import Refusal
from cycleqd_jax.tasks.dbbench.sqlite import SqliteDatabase

PETS = Table(
    "pets",
    ("name", "age", "born"),
    (("Tom", "3", "2020-01-02"), ("Zoë", "10", "2019-12-31"), ("zoe ", "7.5 years", "March 5, 2021"), ("", "", "")),
)
# fmt: off
CASES = [
    ("SELECT name FROM pets WHERE name = 'ZOE' ORDER BY age", "[('Zoë',), ('zoe ',)]"),
    ('SELECT name FROM pets WHERE age > 3', "[('Zoë',), ('zoe ',)]"),
    ('SELECT age FROM pets ORDER BY age + 0 DESC', "[('10',), ('7.5 years',), ('3',), ('',)]"),
    ("SELECT name FROM pets WHERE name LIKE 'z%' AND name NOT REGEXP '^T'", "[('Zoë',), ('zoe ',)]"),
    ("SELECT CONCAT(name, ' is ', age) FROM pets LIMIT 2", "[('Tom is 3',), ('Zoë is 10',)]"),
    ("SELECT IF(age > 5, 'old', 'young'), IFNULL(NULL, 'none') FROM pets", "[('young', 'none'), ('old', 'none'), ('old', 'none'), ('young', 'none')]"),
    ("SELECT SUBSTRING_INDEX(born, '-', 1), LEFT(name, 2), RIGHT(born, 2), LPAD(age, 3, '0') FROM pets LIMIT 1", "[('2020', 'To', '02', '003')]"),
    ("SELECT YEAR(born), MONTH(born), DATEDIFF(born, '2020-01-01'), DATE_FORMAT(born, '%W %e %M %Y') FROM pets", "[(2020, 1, 1, 'Thursday 2 January 2020'), (2019, 12, -1, 'Tuesday 31 December 2019'), (None, None, None, None), (None, None, None, None)]"),
    ("SELECT STR_TO_DATE(born, '%M %d, %Y') FROM pets WHERE name = 'zoe' AND age LIKE '%years'", '[(datetime.date(2021, 3, 5),)]'),
    ("SELECT 7 / 2, 7 DIV 2, 7 % 2, '7 cats' + 1, 'cat' = 0, 1 / 0", "[(Decimal('3.5000'), 3, 1, 8.0, 1, None)]"),
    ('SELECT "double", \'it\\\'s\', \'two\'\'s\', \'a\' \'b\', \'x\\ty\'', '[(\'double\', "it\'s", "two\'s", \'ab\', \'x\\ty\')]'),
    ("SELECT 1 || 0, 'a' || 'b', 1 XOR 1, NULL <=> NULL", '[(1, 0, 0, 1)]'),
    ('SELECT 2 # two', '[(2,)]'),
    ('SELECT 3 -- three', '[(3,)]'),
    ('SELECT /*! 4 */, /* five */ 6', '[(4, 6)]'),
    ('SELECT 5 /*!50000 + 1 */ /*!99999 + 1 */', '[(6,)]'),
    ('SELECT COUNT(*), SUM(age), AVG(age), MAX(age), MIN(name), SUM(age > 5) FROM pets', "[(4, 20.5, 5.125, '7.5 years', '', Decimal('2'))]"),
    ('SELECT SUM(CAST(age AS UNSIGNED)), AVG(CAST(age AS SIGNED)), MAX(CAST(age AS DECIMAL(10,1))) FROM pets', "[(Decimal('20'), Decimal('5.0000'), Decimal('10.0'))]"),
    ('SELECT name, COUNT(*) AS c FROM pets GROUP BY name HAVING c > 1', "[('Zoë', 2)]"),
    ("SELECT GROUP_CONCAT(age ORDER BY age DESC SEPARATOR '; ') FROM pets", "[('7.5 years; 3; 10; ',)]"),
    ("SELECT FIND_IN_SET('B', 'a,b,c'), FIELD('b', 'a', 'B'), GREATEST(1, 2.5), LEAST('b', 'A')", "[(2, 2, Decimal('2.5'), 'A')]"),
    ("SELECT DATE_ADD('2020-01-31', INTERVAL 1 MONTH), TIMESTAMPDIFF(YEAR, '2000-03-01', '2020-02-29')", "[('2020-02-29', 19)]"),
    ("SELECT CAST('12abc' AS SIGNED), CAST(1.5 AS CHAR), CAST('2020-1-2' AS DATE), ROUND(2.675, 2), ROUND('1.5')", "[(12, '1.5', datetime.date(2020, 1, 2), Decimal('2.68'), 2.0)]"),
    ('SELECT name FROM pets WHERE age = (SELECT MAX(age) FROM pets)', "[('zoe ',)]"),
    ('SELECT (SELECT age FROM pets)', '1242 (21000): Subquery returns more than 1 row'),
    ("SELECT a.name FROM pets a JOIN pets b ON a.age < b.age WHERE b.name = 'Tom' ORDER BY a.name", "[('',), ('Zoë',)]"),
    ('SELECT age FROM pets UNION SELECT 3', "[('3',), ('10',), ('7.5 years',), ('',)]"),
    ('SELECT DISTINCT name FROM pets', "[('Tom',), ('Zoë',), ('',)]"),
    ('SELECT ROW_NUMBER() OVER (ORDER BY age), age FROM pets', "[(1, ''), (2, '10'), (3, '3'), (4, '7.5 years')]"),
    ('SHOW TABLES', "[('pets',)]"),
    ('SHOW COLUMNS FROM pets', "[('name', 'text', 'YES', '', None, ''), ('age', 'text', 'YES', '', None, ''), ('born', 'text', 'YES', '', None, '')]"),
    ('DESCRIBE pets', "[('name', 'text', 'YES', '', None, ''), ('age', 'text', 'YES', '', None, ''), ('born', 'text', 'YES', '', None, '')]"),
    ('EXPLAIN pets', "[('name', 'text', 'YES', '', None, ''), ('age', 'text', 'YES', '', None, ''), ('born', 'text', 'YES', '', None, '')]"),
    ('SHOW CREATE TABLE pets', "[('pets', 'CREATE TABLE `pets` (\\n  `name` text DEFAULT NULL,\\n  `age` text DEFAULT NULL,\\n  `born` text DEFAULT NULL\\n) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci')]"),
    ('SELECT name FROM nothing', "1146 (42S02): Table 'pets.nothing' doesn't exist"),
    ('SELECT COUNT(*) FROM pets WHERE SUM(age) > 1', '1111 (HY000): Invalid use of group function'),
    ("INSERT INTO pets VALUES ('one')", "1136 (21S01): Column count doesn't match value count at row 1"),
    ('CREATE TEMPORARY TABLE x (a INT)', "1044 (42000): Access denied for user 'root'@'%' to database 'pets'"),
    ('CREATE TABLE pets (a INT)', "1050 (42S01): Table 'pets' already exists"),
    ('DROP TABLE nothing', "1051 (42S02): Unknown table 'pets.nothing'"),
    ('SELECT 1; SELECT 2', "Commands out of sync; you can't run this command now"),
]
# fmt: on


@pytest.fixture
def database(sandbox):
    with contextlib.closing(SqliteDatabase(sandbox, Limits(wall_s=20.0, cpu_s=20.0), 5.0, PETS)) as made:
        yield made


def test_statements(database):
    outputs = [(statement, database.run(statement).output) for statement, _ in CASES]
    assert outputs == CASES


@pytest.mark.parametrize(
    ("changes", "query", "rows"),
    [
        (["UPDATE pets SET age = age + 1 WHERE name = 'tom'"], "SELECT age FROM pets LIMIT 1", "[('4',)]"),
        (
            ["UPDATE pets SET age = 1/3, born = ROUND(age, 1) ORDER BY name LIMIT 1"],
            "SELECT age, born FROM pets WHERE name = ''",
            "[('0.333333333', '0.3')]",
        ),
        (["DELETE FROM pets ORDER BY age DESC LIMIT 3"], "SELECT COUNT(*) FROM pets", "[(1,)]"),
        (["INSERT INTO pets SET name = 'Kim', age = 2"], "SELECT * FROM pets WHERE name = 'kim'", "[('Kim', '2', None)]"),
        (
            [
                "CREATE TABLE x (id INT AUTO_INCREMENT PRIMARY KEY, n VARCHAR(3), d DECIMAL(5,2))",
                "INSERT INTO x (n, d) VALUES ('abcd', '1.005'), ('b', 'x')",
                "REPLACE INTO x VALUES (1, 'c', 2)",
                "INSERT INTO x VALUES (2, 'q', 1) ON DUPLICATE KEY UPDATE d = d + VALUES(d)",
            ],
            "SELECT * FROM x ORDER BY id",
            "[(1, 'c', Decimal('2.00')), (2, 'b', Decimal('1.00'))]",
        ),
        (
            [
                "ALTER TABLE pets ADD COLUMN kind TEXT FIRST",
                "ALTER TABLE pets MODIFY age INT",
                "ALTER TABLE pets DROP COLUMN born",
            ],
            "SELECT * FROM pets LIMIT 1",
            "[(None, 'Tom', 3)]",
        ),
        (["CREATE VIEW v AS SELECT name, age + 0 AS years FROM pets"], "SELECT MAX(years) FROM v", "[(10.0,)]"),
    ],
)
def test_changes(database, changes, query, rows):
    assert [database.run(change).output for change in changes] == ["[]"] * len(changes)
    assert database.run(query).output == rows


@pytest.mark.parametrize("statement", [
    "SELECT JSON_EXTRACT('{}', '$.a')", "SELECT ~0", "WITH RECURSIVE c AS (SELECT 1) SELECT * FROM c", "SELECT RAND(1)",
    "SELECT name FROM pets GROUP BY name WITH ROLLUP", "SELECT name FROM pets PROCEDURE ANALYSE()", "SELECT name::int FROM pets",
    "SELECT name FROM pets WHERE name ILIKE 'a'", "SELECT name FROM pets QUALIFY 1", "SELECT TOP 1 name FROM pets",
    "PRAGMA table_info(pets)", "SELECT sqlite_version()", "SELECT name FROM 'pets'", "SELECT order FROM pets", "SELEC 1",
])  # fmt: skip
def test_what_is_not_translated_is_an_error(database, statement):
    assert database.run(statement).output[:4] in ("1235", "1064", "1305")


@pytest.mark.parametrize("text", [
    "SELECT " + "(" * 5_000 + "1" + ")" * 5_000, "SELECT 1" + " + 1" * 5_000, "SELECT 1" + " UNION SELECT 1" * 2_000,
    "UPDATE pets SET " + ", ".join(["name = CONCAT(name, name)"] * 200), "SELECT '" + "x" * 100_000, "SELECT " + "/*!" * 10_000, "\0",
])  # fmt: skip
def test_a_translation_is_bounded(text):
    began = time.monotonic()
    with pytest.raises(Refusal):
        translate(split(text)[0], {"pets": table_relation("pets", PETS.columns)}, "pets")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("columns", "change", "left"),
    [
        (("rowid", "b"), "UPDATE t SET b = 'z' WHERE b = 'x'", "[('5', 'z'), ('5', 'y')]"),
        (("RowID", "_rowid_"), "DELETE FROM t WHERE _rowid_ = 'x'", "[('5', 'y')]"),
        (("rowid", "b"), "DELETE FROM t LIMIT 1", "[('5', 'y')]"),
        (("a", "b"), "UPDATE t SET a = 's1.rowid' WHERE b = 'x'", "[('s1.rowid', 'x'), ('5', 'y')]"),
        (
            ("a", "b"),
            "UPDATE t SET a = 'SELECT s1.rowid', b = a LIMIT 1",
            "[('SELECT s1.rowid', 'SELECT s1.rowid'), ('5', 'y')]",
        ),
        (("a", "b"), "UPDATE t s JOIN t u ON s.b = u.b SET s.a = 'z' WHERE u.b = 'y'", "[('5', 'x'), ('z', 'y')]"),
    ],
)
@pytest.mark.parametrize("name", ["t", "new"])
def test_a_change_reaches_its_rows_only(sandbox, name, columns, change, left):
    table = Table(name, columns, (("5", "x"), ("5", "y")))
    with contextlib.closing(SqliteDatabase(sandbox, Limits(wall_s=20.0, cpu_s=20.0), 5.0, table)) as database:
        assert database.run(change.replace(" t ", f" {name} ")).output == "[]"
        assert database.run(f"SELECT * FROM {name}").output == left


def test_a_table_with_all_names_of_row_numbers_is_not_changed(sandbox):
    table = Table("t", ("rowid", "_rowid_", "oid"), (("5", "x", "1"), ("5", "y", "2")))
    with contextlib.closing(SqliteDatabase(sandbox, Limits(wall_s=20.0, cpu_s=20.0), 5.0, table)) as database:
        assert database.run("DELETE FROM t WHERE oid = '1'").output.startswith("1235 ")
        assert database.run("SELECT COUNT(*) FROM t").output == "[(2,)]"


@pytest.mark.parametrize("limit", ["-1", "1+1", "'2'", "1 OFFSET -1", "1.5", "name"])
def test_a_limit_is_a_whole_number(database, limit):
    assert database.run(f"SELECT name FROM pets LIMIT {limit}").output.startswith("1064 ")
    assert database.run(f"DELETE FROM pets LIMIT {limit}").output.startswith("1064 ")
    assert database.run("SELECT COUNT(*) FROM pets").output == "[(4,)]"


@pytest.mark.parametrize(
    "table",
    [
        Table("big", tuple(f"c{i}" for i in range(2_500)), ()),
        Table("sqlite_x", ("a",), (("1",),)),
        Table("t", ("a",), (("\ud800",),)),
        Table("t\ud800", ("a",), ()),
    ],
    ids=["columns", "name", "cell", "surrogate"],
)
def test_a_table_that_cannot_be_created_is_in_no_catalog(sandbox, table):
    with contextlib.closing(SqliteDatabase(sandbox, Limits(wall_s=20.0, cpu_s=20.0), 5.0, table)) as database:
        assert database.run("SHOW TABLES").output == "[]"
        assert database.md5() is None
        assert database.run("SELECT '\ud800'").output.startswith("1235 ")
        assert database.run("SELECT 1").output == "[(1,)]"


def test_results_as_mariadb_gives_them(database):
    cases = [
        ("SELECT name AS n FROM pets HAVING name = 'tom'", "[('Tom',)]"),
        ("SELECT GROUP_CONCAT(age ORDER BY 1) FROM pets", "[(',10,3,7.5 years',)]"),
        ("SELECT GROUP_CONCAT(DISTINCT age, name ORDER BY 2 DESC, age) FROM pets WHERE age > 3", "[('10Zoë,7.5 yearszoe ',)]"),
        ("SELECT PI() * 2, LPAD('a', 5, '')", "[(6.283185, None)]"),
        ("UPDATE pets SET born = '2020-02-29 10:11:12'", "[]"),
        ("SELECT born + INTERVAL 1 YEAR FROM pets LIMIT 1", "[('2021-02-28 10:11:12.000000',)]"),
        ("ALTER TABLE pets MODIFY age INT", "[]"),
        ("SELECT age FROM pets", "[(3,), (10,), (7,), (0,)]"),
        ("CREATE TABLE k (i INT AUTO_INCREMENT PRIMARY KEY, c CHAR(5))", "[]"),
        ("INSERT INTO k (c) VALUES ('a  ')", "[]"),
        ("TRUNCATE TABLE k", "[]"),
        ("INSERT INTO k (c) VALUES ('b  ')", "[]"),
        ("SELECT i, c, LENGTH(c) FROM k", "[(1, 'b', 1)]"),
    ]
    assert [(statement, database.run(statement).output) for statement, _ in cases] == cases


@pytest.mark.parametrize(
    "statement", ["SELECT name FROM pets HAVING age > 5", "SELECT COUNT(*) FROM pets GROUP BY born HAVING name = 'x'"]
)
def test_having_sees_selected_and_grouped_columns(database, statement):
    assert database.run(statement).output.startswith("1054 ")


@pytest.mark.parametrize("statement", [
    "SELECT 0x41 + 0", "SELECT b'1' & 1", "SELECT x'41' = 'a'", "SELECT CONCAT(X'FF', 'a')", "SELECT STR_TO_DATE(1, 2)",
    "SELECT GROUP_CONCAT(X'FF')", "SELECT 'a' REGEXP '[[:upper:]]'", "UPDATE pets SET age = DEFAULT", "UPDATE IGNORE pets SET age = 1",
    "DO SLEEP(0)", "EXPLAIN SELECT name FROM pets", "SHOW COLUMNS IN pets WHERE 1", "SELECT 1 FROM (pets a JOIN pets b)", "SELECT ROW(1, 2) = ROW(1, 2)",
    "SELECT table_name FROM information_schema.tables", "SELECT DATE_ADD('2020-01-01', INTERVAL '1 2:3:4' DAY_SECOND)",
    "SELECT DATE_ADD('2020-01-01', INTERVAL 1.5 DAY)", "SELECT DATE(born) > '2020' FROM pets",
])  # fmt: skip
def test_valid_statements_that_are_not_translated(database, statement):
    assert database.run(statement).output.startswith("1235 ")


def test_a_regular_expression_ends_in_time(sandbox):
    with contextlib.closing(SqliteDatabase(sandbox, Limits(wall_s=20.0, cpu_s=20.0), 1.0, PETS)) as database:
        ran = database.run(f"SELECT '{'a' * 40}!' REGEXP '^(a+)+$'")
        assert ran.timed_out
        assert ran.output.startswith("3024 ")
        assert database.run("SELECT 1").output == "[(1,)]"
