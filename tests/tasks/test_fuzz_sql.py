"""Any SQL on live databases: a message or a score, never an error of the server, and the next episode works."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st

from cycleqd_jax.types import Score

from ..fuzz import SOME, fuzzed
from .db_records import ASK, INSERT, NAME, UPDATE, sql
from .helpers import make, play_replies

STATEMENTS = (
    *(
        f"SELECT * FROM {NAME}",
        f"INSERT INTO {NAME} VALUES ('a', 'b', 'c')",
        f"UPDATE {NAME} SET age = age + 1",
        f"DELETE FROM {NAME}",
        "SELECT 1",
    ),
    *(
        f"DROP TABLE {NAME}",
        f"ALTER TABLE {NAME} ADD COLUMN x INT",
        f"CREATE TABLE u AS SELECT * FROM {NAME}",
        f"TRUNCATE {NAME}",
        "DROP DATABASE x",
    ),
    *(
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT a",
        "START TRANSACTION",
        "SET autocommit = 0",
        f"LOCK TABLES {NAME} WRITE",
        "UNLOCK TABLES",
        "EXPLAIN",
    ),
    *(
        "BEGIN NOT ATOMIC SIGNAL SQLSTATE '08S01' SET MYSQL_ERRNO = 2013; END",
        "SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 2006",
        "RESIGNAL",
        "DO 1",
    ),
    *(
        "BEGIN NOT ATOMIC SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1040; END",
        "GET DIAGNOSTICS @a = NUMBER",
        "KILL CONNECTION_ID()",
        "KILL QUERY 1",
    ),
    *(
        "XA START 'x'",
        "XA END 'x'",
        "XA PREPARE 'x'",
        "XA RECOVER",
        "PREPARE p FROM 'SELECT 1'",
        "EXECUTE p",
        "EXECUTE IMMEDIATE 'XA START ''y'''",
    ),
    *(
        "SELECT GET_LOCK('x', 0)",
        "SELECT SLEEP(9)",
        "SELECT BENCHMARK(99999999, MD5('x'))",
        "SET @@max_statement_time = 0",
        "SET sql_mode = ''",
        "SHUTDOWN",
    ),
    *(
        "SET NAMES gbk",
        "SET character_set_results = NULL",
        "SET character_set_client = utf16",
        "SET wait_timeout = 1",
        "SET @a = REPEAT('x', 9999999)",
    ),
    *(
        "SET PASSWORD = PASSWORD('x')",
        "SHOW PROCESSLIST",
        "SHOW TABLES",
        "DESCRIBE t",
        "USE mysql",
        "HELP x",
        "CALL p()",
        "HANDLER t OPEN",
        "FLUSH TABLES",
    ),
    *(
        "SELECT x'ff', 0xff, b'1', 1e999, -0.0, NULL",
        "SELECT REPEAT('x', 99999999)",
        "SELECT CAST(x'ff' AS CHAR)",
        "SELECT '2000-00-00', TIME '99:99'",
    ),
    *(
        "SELECT CAST('0000-00-00' AS DATE)",
        "SELECT MAKETIME(838, 59, 59.999)",
        "SELECT UUID()",
        "SELECT POINT(1, 1)",
        "SELECT JSON_OBJECT('a', 1)",
        "VALUES (1)",
    ),
    *(
        "WITH RECURSIVE c AS (SELECT 1 x UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c",
        "PRAGMA writable_schema = 1",
        "ATTACH '/tmp/x' AS y",
    ),
    *(
        "VACUUM",
        "REINDEX",
        "ANALYZE",
        "PRAGMA table_info(t)",
        "SELECT load_extension('x')",
        "CREATE TEMP TABLE v (a)",
        "SELECT zeroblob(9999999999)",
    ),
    *(
        "CREATE VIEW w AS SELECT * FROM w",
        "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE x",
        "SELECT 1 INTO OUTFILE '/tmp/x'",
        "SELECT 1 INTO @a",
        "RETURN 1",
    ),
    *(
        "CREATE TABLE p (a INT) PARTITION BY HASH (a) PARTITIONS 8192",
        "SELECT randomblob(-1)",
        "SELECT printf('%*d', 999999999, 1)",
        "SELECT 1 UNION SELECT 'a'",
    ),
)
PIECES = (
    ";",
    "; ",
    " ",
    "\n",
    "--",
    "-- ",
    "#",
    "/*",
    "*/",
    "/*!",
    "/*M!100000 ",
    "'",
    '"',
    "`",
    "\\",
    "\\'",
    "(",
    ")",
    ",",
    "@",
    "@@",
    "%",
    "\x00",
    "\x1a",
    "\ud800",
    "é",
    "𝟙",
    "\ufeff",
    "DELIMITER //",
    "\\G",
    "0x",
    "N'",
    "_utf8'",
    "?",
)


@st.composite
def texts(draw):
    parts = draw(
        st.lists(
            st.sampled_from(STATEMENTS) | st.sampled_from(PIECES) | st.text(st.characters(), max_size=5), min_size=1, max_size=5
        )
    )
    return draw(st.sampled_from(["; ", "", " "])).join(parts)


CASES = st.lists(texts(), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, sandbox):
    yield from _tasks(tmp_path_factory.mktemp("sql"), sandbox, backend="sqlite")


@pytest.fixture(scope="module")
def served(tmp_path_factory, sandbox, mysql_dsn):
    yield from _tasks(tmp_path_factory.mktemp("sql"), sandbox, backend="mysql", dsn=mysql_dsn)


def _tasks(folder, sandbox, **options):
    """A task with a short time limit for the cases, and one for the episodes that follow."""
    for name, records in {"train": (ASK, INSERT), "test": (UPDATE,)}.items():
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    files = {"train": folder / "train", "test": folder / "test"}
    tasks = [make("dbbench", sandbox=sandbox, memo=False, seconds=seconds, **files, **options) for seconds in (0.3, 10)]
    yield tasks
    for task in tasks:
        task.close()


def check(tasks, statements):
    tried, following = tasks
    for result in play_replies(tried, [*map(sql, statements), 'Action: Answer\nFinal Answer: ["17"]']):
        (result.reason if isinstance(result, Score) else result).encode()
    assert play_replies(following, [sql(UPDATE["label"][0]), ""], "test")[-1] == Score(1.0, "passed")


@fuzzed(4, SOME, statements=CASES)
def test_sqlite(embedded, statements):
    check(embedded, statements)


@pytest.mark.exhaustive
@fuzzed(40, SOME, statements=CASES)
def test_a_server(served, statements):
    check(served, statements)
