"""SQL that attacks the machine, the server or other episodes."""

from __future__ import annotations

from .attack import Attack

__all__ = ["STATEMENTS"]

STATEMENTS = [
    Attack(
        "statements",
        "another file",
        "sqlite",
        "ATTACH DATABASE '/tmp/cycleqd-attack' AS x",
        "the authorizer",
    ),
    Attack(
        "statements",
        "an extension",
        "sqlite",
        "SELECT load_extension('/tmp/x.so')",
        "the authorizer",
    ),
    Attack(
        "statements",
        "settings",
        "sqlite",
        "PRAGMA writable_schema = 1",
        "the authorizer",
    ),
    Attack(
        "statements",
        "a copy of the database",
        "sqlite",
        "VACUUM INTO '/tmp/cycleqd-attack'",
        "the authorizer",
    ),
    Attack(
        "statements",
        "an endless query",
        "sqlite",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c",
        "the progress handler",
        default=True,
    ),
    Attack(
        "statements",
        "a huge value",
        "sqlite",
        "SELECT hex(zeroblob(1000000000))",
        "SQLite's limit of lengths",
    ),
    Attack(
        "statements",
        "memory",
        "sqlite",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(DISTINCT randomblob(100000) || x) FROM c",
        "RLIMIT_AS",
    ),
    Attack(
        "statements",
        "a view of itself",
        "sqlite",
        "CREATE VIEW v AS SELECT * FROM v",
        "SQLite",
    ),
    Attack(
        "statements",
        "a distributed transaction",
        "server",
        "XA START 'x'; XA END 'x'; XA PREPARE 'x'",
        "the statement is refused",
    ),
    Attack(
        "statements",
        "a hidden distributed transaction",
        "server",
        "EXECUTE IMMEDIATE CONCAT('X', 'A START ''y''')",
        "rolled back after dynamic statements",
    ),
    Attack(
        "statements",
        "thousands of partitions",
        "server",
        "CREATE TABLE p (a INT) PARTITION BY HASH (a) PARTITIONS 8000",
        "the statement is refused",
    ),
    Attack(
        "statements",
        "a signalled outage, 2013",
        "server",
        "BEGIN NOT ATOMIC SIGNAL SQLSTATE '08S01' SET MYSQL_ERRNO = 2013; END",
        "outages are checked by the administrator",
    ),
    Attack(
        "statements",
        "a signalled outage, 2006",
        "server",
        "BEGIN NOT ATOMIC SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 2006; END",
        "outages are checked by the administrator",
    ),
    Attack(
        "statements",
        "a signalled full disk",
        "server",
        "BEGIN NOT ATOMIC SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1021; END",
        "outages are checked by the administrator",
    ),
    Attack(
        "statements",
        "the end of its own connection",
        "server",
        "KILL CONNECTION_ID()",
        "outages are checked by the administrator",
    ),
    Attack(
        "statements",
        "a named lock",
        "server",
        "SELECT GET_LOCK('x', 100)",
        "locks end with the session of the statement",
    ),
    Attack(
        "statements",
        "user variables",
        "server",
        "SET @cycleqd = 'ESCAPED'",
        "a session for each statement",
    ),
    Attack(
        "statements",
        "a sleep",
        "server",
        "SET @@max_statement_time = 0; SELECT SLEEP(100)",
        "the host's clock",
    ),
    Attack(
        "statements",
        "memory of the session",
        "server",
        "SET @a = REPEAT('x', 99999999)",
        "max_session_mem_used",
    ),
    Attack(
        "statements",
        "its own account",
        "server",
        "SET PASSWORD = PASSWORD('x')",
        "the episode ends; the next has another account",
    ),
]
