"""DBBench on a MySQL or MariaDB server: outputs equal those of AgentBench's client, and databases are dropped."""

from __future__ import annotations

import re
import statistics
import time

import pytest

from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import Score

from .db_records import (
    ASK,
    INSERT,
    NAME,
    OUT_OF_SYNC,
    UPDATE,
    answer,
    check_cells,
    check_questions_and_changes,
    execute,
    leftovers,
    play_32_at_once,
    sql,
)
from .helpers import make, play_replies

PROBLEMS = {"ask": ("train", 0), "insert": ("train", 1), "update": ("test", 0)}


@pytest.mark.exhaustive
def test_questions_and_changes(make_mysql):
    task = make_mysql()
    check_questions_and_changes(lambda replies, problem: play_replies(task, replies, *PROBLEMS[problem]))
    view = f"CREATE VIEW {NAME} AS SELECT SLEEP(100) AS name, 1 AS age, 1 AS `home city`"
    assert play_replies(task, [sql(f"DROP TABLE {NAME}"), sql(view), ""], number=1)[-1].value == 0.0


def test_cells_of_other_types(make_mysql):
    check_cells(lambda *records: make_mysql(records=records))


def test_demonstrations(make_mysql):
    asked, inserted = make_mysql().demonstrations("train")
    assert [m["content"] for m in asked[-2:]] == ["[('17',)]", 'Action: Answer\nFinal Answer: ["17"]']
    assert inserted[-2]["content"] == "[]"


def test_outputs_equal_those_of_agentbenchs_client(make_mysql):
    task = make_mysql()
    assert execute(
        task,
        f"SELECT SUM(age), AVG(age), COUNT(*), MAX(name) FROM {NAME}",
        "SELECT 1.5, NULL, 1 = 1, MD5('a'), x'41', CAST('2020-01-01' AS DATE), TIME('10:00:01'), 'a\\'b', '%s'",
        f"SELECT * FROM {NAME} WHERE age = 99",
        f"DESCRIBE {NAME}",
        "SHOW TABLES",
    ) == [
        "[(99.0, 33.0, 3, 'Eve')]",
        "[(Decimal('1.5'), None, 1, '0cc175b9c0f1b6a831c399e269772661', bytearray(b'A'), datetime.date(2020, 1, 1), "
        "datetime.timedelta(seconds=36001), \"a'b\", '%s')]",
        "[]",
        "[('name', 'text', 'YES', '', None, ''), ('age', 'text', 'YES', '', None, ''), "
        "('home city', 'text', 'YES', '', None, '')]",
        "[('the `staff`',)]",
    ]
    wrong, long, letters, empty, blank = execute(
        task,
        "SELEC 1",
        f"SELECT '{'x' * 2000}'",
        f"SELECT name FROM {NAME} WHERE `home city` = 'ROME' AND name = 'böb'",
        "",
        " ;",
    )
    assert re.match(r"1064 \(42000\): You have an error in your SQL syntax; ", wrong)
    assert long == "[('" + "x" * 797 + "[TRUNCATED]"
    assert letters == "[('Bob',)]"
    assert empty == "[]"
    assert blank == "1065 (42000): Query was empty"


def test_names_equal_those_of_agentbench(make_mysql):
    outputs = execute(
        make_mysql(), "SELECT * FROM nope", "SELECT DATABASE()", "SELECT * FROM mysql.user", "DROP DATABASE x", "SELECT USER()"
    )
    assert outputs[0] == "1146 (42S02): Table 'the `staff`.nope' doesn't exist"
    assert outputs[1] == "[('the `staff`',)]"
    assert "'root'@" in outputs[2]
    assert outputs[3].startswith("1044 (42000): Access denied for user 'root'@'%' to database 'x'")
    assert not any("cycleqd" in output for output in outputs)


def test_qualified_names_on_the_server(make_mysql):
    query, insert, count = (
        f"SELECT {NAME}.{NAME}.age FROM {NAME}.{NAME}",
        f"INSERT INTO {NAME}.{NAME} VALUES (1, 2, 3)",
        "COUNT(*)",
    )
    first, _, second = execute(make_mysql(), query, insert, f"SELECT {count} FROM {NAME}")
    assert (first, second) == ("[('41',), ('17',), ('41',)]", "[(4,)]")


def test_several_statements_are_executed_and_not_committed(make_mysql):
    task = make_mysql()
    insert, count = INSERT["label"][0], f"SELECT COUNT(*) FROM {NAME}"
    for text in (f"{insert}; SELECT 1", f"SELECT 1; {insert}", f"{insert}; {insert};", "SELECT 1; SELEC"):
        assert execute(task, text, count) == [OUT_OF_SYNC, "[(3,)]"], text
    assert execute(task, f"{insert}; COMMIT; SELECT 1", count) == [OUT_OF_SYNC, "[(4,)]"]
    assert execute(task, f"{insert};", count) == ["[]", "[(4,)]"]
    wrong, after = execute(task, f"SELEC; {insert}", count)
    assert wrong.startswith("1064 (42000)")
    assert after == "[(3,)]"


def test_each_statement_is_a_session_of_its_own(make_mysql):
    begun = execute(make_mysql(), "SET @a = 1", "SELECT @a", "BEGIN", INSERT["label"][0], "ROLLBACK")
    assert begun == ["[]", "[(None,)]", "[]", "[]", "[]"]
    assert play_replies(make_mysql(), [sql("BEGIN"), sql(INSERT["label"][0]), sql("ROLLBACK"), ""], number=1)[-1].value == 1.0


def test_the_sql_mode_is_set(make_mysql):
    column, number = f"ALTER TABLE {NAME} ADD n INT", f"UPDATE {NAME} SET n = 'ten'"
    assert execute(make_mysql(), column, number) == ["[]", "[]"]
    strict = execute(make_mysql(sql_mode="STRICT_TRANS_TABLES"), column, number)[1]
    assert re.match(r"1366 \(\w{5}\): Incorrect integer value", strict)
    quoted = 'SELECT "name" FROM "the `staff`" WHERE name = \'Eve\''
    assert execute(make_mysql(sql_mode="ANSI_QUOTES"), quoted) == ["[('Eve',)]"]
    with pytest.raises(InfraError, match="can't be set to the value"):
        execute(make_mysql(sql_mode="NONSENSE"), "SELECT 1")


@pytest.mark.parametrize(
    "reply", ["\ud800", "\0", sql("SELECT '\ud800\0\\0'"), "x" * 2_000_000, sql("x" * 99_000), sql("é" * 2_000_000)]
)
def test_odd_replies_are_judged(make_mysql, reply):
    assert play_replies(make_mysql(), [reply])


@pytest.mark.parametrize(
    "odd",
    [
        {"table_name": "t", "table_info": {"columns": [{"name": "a"}, {"name": "a"}], "rows": [["1", "2"]]}},
        {"table_name": "t", "table_info": {"columns": [{"name": "a"}], "rows": [["1", "2"]]}},
        {"table_name": "t", "table_info": {"columns": [{"name": ""}], "rows": []}},
        {"table_name": "t" * 99, "table_info": {"columns": [{"name": "a"}], "rows": [["1"]]}},
        {"table_name": "t", "table_info": {"columns": [{"name": "a"}], "rows": [["\U0001f600 \0 \\ ' %s"], [""]]}},
    ],
)
def test_tables_that_can_not_be_built_are_missing(write, mysql_dsn, nowhere, odd):
    files = {"train": write(ASK | {"table": odd}), "test": write(UPDATE, name="t.jsonl")}
    task = make("dbbench", sandbox=nowhere, backend="mysql", dsn=mysql_dsn, memo=False, **files)
    (output,) = execute(task, "SELECT a FROM t")
    assert output.startswith("1146 (42S02)") or output in ("[]", "[(\"\U0001f600 \\x00 \\\\ ' %s\",), ('',)]"), output
    assert play_replies(task, [answer('["17"]')]) == [Score(1.0, "passed")]
    task.close()


# ------------------------------------------------------------------------------------------------ many, and afterwards


@pytest.mark.exhaustive
def test_32_databases_of_equal_name_are_separate(make_mysql, admin):
    task = make_mysql(seconds=30.0)
    before = leftovers(admin)
    results, starts = play_32_at_once(task)
    assert results == [(["[]", f"[('n{number}',)]", "[]"], 1.0) for number in range(32)]
    assert leftovers(admin) == before
    assert statistics.median(starts) < 5


def test_every_end_of_an_episode_drops_its_database(make_mysql, admin):
    before = leftovers(admin)
    task = make_mysql(seconds=0.5)
    for replies in ([], [sql("SELECT SLEEP(9)")], [sql("KILL CONNECTION_ID()")], [sql("SHOW TABLES")] * 3, [answer("[]")]):
        play_replies(task, replies, number=1)
    episode = task.episodes("train")[0]
    episode.close()
    episode.start()
    name = episode._database._account.schema
    assert {name, name.replace("cycleqddb", "cycleqdus")} <= leftovers(admin) - before
    episode.close()
    episode.close()
    assert leftovers(admin) == before
    assert episode.step("").value == 0.0


def test_old_leftovers_of_killed_runs_are_dropped(make_mysql, admin):
    old, new = "5f000000" + "0" * 14, f"{int(time.time()) - 3600:08x}" + "0" * 14
    names = [f"cycleqddb{old}", f"cycleqddb{new}", f"cycleqddb{old}x", "cycleqddb"]
    users = [f"cycleqdus{old}", f"cycleqdus{new}"]
    admin(
        *(f"CREATE DATABASE IF NOT EXISTS {name}" for name in names),
        *(f"CREATE USER IF NOT EXISTS {user}@'%'" for user in users),
    )
    try:
        execute(make_mysql(), "SELECT 1")
        assert leftovers(admin) & {*names, *users} == {*names[1:], users[1]}
    finally:
        admin(*(f"DROP DATABASE IF EXISTS {name}" for name in names), *(f"DROP USER IF EXISTS {user}@'%'" for user in users))
