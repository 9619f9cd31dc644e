"""DBBench on a real server: AgentBench's client to the letter, databases thrown away, errors that are nobody's score."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cycleqd_jax.sandbox import InfraError, Limits
from cycleqd_jax.tasks import DbBench
from cycleqd_jax.tasks.dbbench.databases import unqualified
from cycleqd_jax.tasks.dbbench.mysql_server import Address, MySqlServer
from cycleqd_jax.tasks.dbbench.task import DSN_VARIABLE
from cycleqd_jax.types import InputError, Score


def table_md5(rows) -> str:
    hashes = sorted(hashlib.md5(",".join(row).encode()).hexdigest()[:5] for row in rows)
    return str([(hashlib.md5(",".join(hashes).encode()).hexdigest(),)])


ROWS = [["Bob", "41", "Rome"], ["Eve", "17", "Oslo"], ["Ann", "41", "Lima"]]
COLUMNS = [{"name": "name"}, {"name": "age"}, {"name": "home city"}]
TABLE = {"table_name": "the `staff`", "table_info": {"columns": COLUMNS, "rows": ROWS}}
NAME = "`the ``staff```"
ASK = {
    "id": "ask",
    "description": "How old is Eve?",
    "add_description": "The table is the `staff`.",
    "label": ["17"],
    "type": ["other"],
    "table": TABLE,
    "sql": {"query": f"SELECT age FROM {NAME} WHERE name = 'Eve'"},
}
INSERT = ASK | {
    "id": "insert",
    "type": ["INSERT"],
    "label": [f"INSERT INTO {NAME} VALUES ('Kim', '30', 'Rome')"],
    "answer_md5": table_md5([*ROWS, ["Kim", "30", "Rome"]]),
}
UPDATE = ASK | {
    "id": "update",
    "type": ["UPDATE"],
    "label": [f"UPDATE {NAME} SET age = age + 1 WHERE name = 'bob'"],
    "answer_md5": table_md5([["Bob", "42", "Rome"], *ROWS[1:]]),
}
OUT_OF_SYNC = "Commands out of sync; you can't run this command now"


class Elsewhere:
    """The limits of a sandbox that isn't needed."""

    limits = Limits()


@pytest.fixture
def make(write, mysql_dsn):
    """Tasks on the server; each has the records ask and insert to train, update to test."""
    tasks = []

    def make(**options):
        files = {"train": write(ASK, INSERT), "test": write(UPDATE, name="t.jsonl")}
        options = {"dsn": mysql_dsn, "memo": False, "seconds": 2.0} | options
        tasks.append(DbBench(sandbox=Elsewhere(), backend="mysql", **files, **options))
        return tasks[-1]

    yield make
    for task in tasks:
        task.close()


@pytest.fixture
def admin(mysql_dsn):
    server = MySqlServer(Address.parse("here", mysql_dsn))
    yield server.admin
    server.close()


def leftovers(admin) -> set[str]:
    rows = admin("SELECT schema_name FROM information_schema.schemata UNION SELECT user FROM mysql.user")
    return {name for (name,) in rows if name.startswith("cycleqd")}


def sql(statement: str) -> str:
    return f"Think\nAction: Operation\n```sql\n{statement}\n```"


def answer(text: str) -> str:
    return f"Action: Answer\nFinal Answer: {text}"


def play(task, replies, split="train", number=0):
    """What each reply led to: texts, and a score."""
    episode = task.episodes(split)[number]
    results = []
    try:
        episode.start()
        for reply in replies:
            result = episode.step(reply)
            if isinstance(result, Score):
                return [*results, result]
            (message,) = result
            results.append(message["content"])
    finally:
        episode.close()
    return results


def say(task, *statements, number=0):
    """The output of each statement; five to an episode."""
    return play(task, [sql(statement) for statement in statements], number=number)


# ------------------------------------------------------------------------------------------------ episodes


def test_questions_and_changes(make):
    task = make()
    assert play(task, [sql(ASK["sql"]["query"]), answer('["17"]')]) == ["[('17',)]", Score(1.0, "passed")]
    assert play(task, [answer('["18"]')])[-1].value == 0.0
    for ending in (answer('["done"]'), "gibberish", ""):
        output, score = play(task, [sql(INSERT["label"][0]), ending], number=1)
        assert (output, score.value) == ("[]", 1.0)
    assert play(task, [sql(UPDATE["label"][0]), answer("[]")], "test")[-1].value == 1.0
    for replies in (
        [answer('["done"]')],
        [sql(INSERT["label"][0])] * 2 + [""],
        [sql(f"DROP TABLE {NAME}"), ""],
        [sql(f"DELETE FROM {NAME}"), ""],
        [sql(f"DROP TABLE {NAME}"), sql(f"CREATE VIEW {NAME} AS SELECT SLEEP(100) AS name, 1 AS age, 1 AS `home city`"), ""],
    ):
        assert play(task, replies, number=1)[-1].value == 0.0
    assert play(task, [sql("SELECT 1")] * 9)[-1] == Score(0.0, "round limit")


def test_demonstrations(make):
    asked, inserted = make().demonstrations("train")
    assert [m["content"] for m in asked[-2:]] == ["[('17',)]", 'Action: Answer\nFinal Answer: ["17"]']
    assert inserted[-2]["content"] == "[]"


def test_outputs_are_those_of_agentbenchs_client(make):
    task = make()
    assert say(
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
    wrong, long, letters, empty, blank = say(
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


def test_names_are_those_of_agentbench(make):
    outputs = say(
        make(), "SELECT * FROM nope", "SELECT DATABASE()", "SELECT * FROM mysql.user", "DROP DATABASE x", "SELECT USER()"
    )
    assert outputs[0] == "1146 (42S02): Table 'the `staff`.nope' doesn't exist"
    assert outputs[1] == "[('the `staff`',)]"
    assert "'root'@" in outputs[2]
    assert outputs[3].startswith("1044 (42000): Access denied for user 'root'@'%' to database 'x'")
    assert not any("cycleqd" in output for output in outputs)


@pytest.mark.parametrize(
    ("statement", "meant"),
    [
        ("SELECT * FROM t.t", "SELECT * FROM t"),
        ("SELECT t.t.a, t.a FROM `t`.`t` AS b", "SELECT t.a, t.a FROM `t` AS b"),
        ("SELECT * FROM t . t WHERE a = 't.t'", "SELECT * FROM t WHERE a = 't.t'"),
        ("SELECT 't.t' /* t.t */, \"t.t\" -- t.t", "SELECT 't.t' /* t.t */, \"t.t\" -- t.t"),
        ("SELECT 'it\\'s t.t', t.t", "SELECT 'it\\'s t.t', t"),
        ("INSERT INTO t.t VALUES ('t')", "INSERT INTO t VALUES ('t')"),
        ("SELECT * FROM T.t, t.u, t2.t, xt.t", "SELECT * FROM T.t, t.u, t2.t, xt.t"),
        ("SELECT t t.t FROM t", "SELECT t t FROM t"),
    ],
)
def test_a_table_qualified_by_its_own_name(statement, meant):
    assert unqualified(statement, "t") == meant


@pytest.mark.parametrize("piece", ["'", "\\'", '"', "`", "/*", "t.", "t", "--", "#", "t .", "'\\"])
def test_qualified_names_are_found_in_little_time(piece):
    began = time.monotonic()
    unqualified("t.t." + piece * (100_000 // len(piece)), "t")
    assert time.monotonic() - began < 2


def test_qualified_names_on_the_server(make):
    query, insert, count = (
        f"SELECT {NAME}.{NAME}.age FROM {NAME}.{NAME}",
        f"INSERT INTO {NAME}.{NAME} VALUES (1, 2, 3)",
        "COUNT(*)",
    )
    first, _, second = say(make(), query, insert, f"SELECT {count} FROM {NAME}")
    assert (first, second) == ("[('41',), ('17',), ('41',)]", "[(4,)]")


def test_several_statements_are_executed_and_not_committed(make):
    task = make()
    insert, count = INSERT["label"][0], f"SELECT COUNT(*) FROM {NAME}"
    for text in (f"{insert}; SELECT 1", f"SELECT 1; {insert}", f"{insert}; {insert};", "SELECT 1; SELEC"):
        assert say(task, text, count) == [OUT_OF_SYNC, "[(3,)]"], text
    assert say(task, f"{insert}; COMMIT; SELECT 1", count) == [OUT_OF_SYNC, "[(4,)]"]
    assert say(task, f"{insert};", count) == ["[]", "[(4,)]"]
    wrong, after = say(task, f"SELEC; {insert}", count)
    assert wrong.startswith("1064 (42000)")
    assert after == "[(3,)]"


def test_each_statement_is_a_session_of_its_own(make):
    begun = say(make(), "SET @a = 1", "SELECT @a", "BEGIN", INSERT["label"][0], "ROLLBACK")
    assert begun == ["[]", "[(None,)]", "[]", "[]", "[]"]
    assert play(make(), [sql("BEGIN"), sql(INSERT["label"][0]), sql("ROLLBACK"), ""], number=1)[-1].value == 1.0


def test_the_mode_is_the_one_that_is_stated(make):
    column, number = f"ALTER TABLE {NAME} ADD n INT", f"UPDATE {NAME} SET n = 'ten'"
    assert say(make(), column, number) == ["[]", "[]"]
    assert re.match(r"1366 \(\w{5}\): Incorrect integer value", say(make(sql_mode="STRICT_TRANS_TABLES"), column, number)[1])
    quoted = 'SELECT "name" FROM "the `staff`" WHERE name = \'Eve\''
    assert say(make(sql_mode="ANSI_QUOTES"), quoted) == ["[('Eve',)]"]
    with pytest.raises(InfraError, match="can't be set to the value"):
        say(make(sql_mode="NONSENSE"), "SELECT 1")


@pytest.mark.parametrize(
    "reply", ["\ud800", "\0", sql("SELECT '\ud800\0\\0'"), "x" * 2_000_000, sql("x" * 99_000), sql("é" * 2_000_000)]
)
def test_odd_replies_are_judged(make, reply):
    assert play(make(), [reply])


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
def test_tables_that_can_not_be_built_are_not_there(write, mysql_dsn, odd):
    files = {"train": write(ASK | {"table": odd}), "test": write(UPDATE, name="t.jsonl")}
    task = DbBench(sandbox=Elsewhere(), backend="mysql", dsn=mysql_dsn, memo=False, **files)
    (output,) = say(task, "SELECT a FROM t")
    assert output.startswith("1146 (42S02)") or output in ("[]", "[(\"\U0001f600 \\x00 \\\\ ' %s\",), ('',)]"), output
    assert play(task, [answer('["17"]')]) == [Score(1.0, "passed")]
    task.close()


# ------------------------------------------------------------------------------------------------ many, and afterwards


def test_32_of_equal_name_at_once_do_not_meet(make, admin, play_32_at_once):
    task = make(seconds=30.0)
    before = leftovers(admin)
    results, starts = play_32_at_once(task, NAME, sql, INSERT["label"][0])
    assert results == [(["[]", f"[('n{number}',)]", "[]"], 1.0) for number in range(32)]
    assert leftovers(admin) == before
    assert statistics.median(starts) < 5


def test_nothing_is_left_whatever_ends_an_episode(make, admin):
    before = leftovers(admin)
    task = make(seconds=0.5)
    for replies in ([], [sql("SELECT SLEEP(9)")], [sql("KILL CONNECTION_ID()")], [sql("SHOW TABLES")] * 3, [answer("[]")]):
        play(task, replies, number=1)
    episode = task.episodes("train")[0]
    episode.close()
    episode.start()
    name = episode._database._guest.schema
    assert {name, name.replace("cycleqddb", "cycleqdus")} <= leftovers(admin) - before
    episode.close()
    episode.close()
    assert leftovers(admin) == before
    assert episode.step("").value == 0.0


def test_what_dead_runs_have_left_is_dropped_when_it_is_old(make, admin):
    old, new = "5f000000" + "0" * 14, f"{int(time.time()) - 3600:08x}" + "0" * 14
    names = [f"cycleqddb{old}", f"cycleqddb{new}", f"cycleqddb{old}x", "cycleqddb"]
    users = [f"cycleqdus{old}", f"cycleqdus{new}"]
    admin(
        *(f"CREATE DATABASE IF NOT EXISTS {name}" for name in names),
        *(f"CREATE USER IF NOT EXISTS {user}@'%'" for user in users),
    )
    try:
        say(make(), "SELECT 1")
        assert leftovers(admin) & {*names, *users} == {*names[1:], users[1]}
    finally:
        admin(*(f"DROP DATABASE IF EXISTS {name}" for name in names), *(f"DROP USER IF EXISTS {user}@'%'" for user in users))


# ------------------------------------------------------------------------------------------------ the server is missing


def test_a_full_disk_is_no_score_and_a_statement_that_claims_one_is(make, monkeypatch):
    claim = "SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 1021, MESSAGE_TEXT = 'No space left on device'"
    task = make()
    assert say(task, claim) == ["1021 (45000): No space left on device"]
    episode = task.episodes("train")[0]
    episode.start()

    def full(server):
        raise InfraError("No space left on device")

    monkeypatch.setattr(MySqlServer, "guest", full)
    with pytest.raises(InfraError, match="No space left"):
        episode.step(sql(claim))
    episode.close()
    with pytest.raises(InfraError, match="No space left"):
        task.episodes("train")[0].start()


@pytest.mark.parametrize(
    ("dsn", "words"),
    [
        (
            "mysql://root@127.0.0.1:1",
            "no MySQL or MariaDB server.*127.0.0.1:1.*apt-get install mariadb-server.*CYCLEQD_MYSQL_DSN",
        ),
        ("mysql://root:hush@/?unix_socket=/nowhere/s", "no MySQL or MariaDB server.*/nowhere/s"),
    ],
)
def test_a_missing_server_is_no_score(make, dsn, words):
    with pytest.raises(InfraError, match=words) as error:
        play(make(dsn=dsn), [answer('["17"]')])
    assert "hush" not in str(error.value)


def test_a_wrong_password_is_no_score(make, mysql_dsn):
    dsn = re.sub(r"//[^@]*@", "//nobody:hush@", mysql_dsn)
    with pytest.raises(InfraError, match="does not know the account") as error:
        play(make(dsn=dsn), [answer('["17"]')])
    assert "hush" not in str(error.value)


def test_an_account_without_rights_is_no_score(make, mysql_dsn, admin):
    admin("CREATE USER cycleqdtest@'%' IDENTIFIED BY 'Aa1-hushhush'", "GRANT SELECT ON mysql.* TO cycleqdtest@'%'")
    try:
        with pytest.raises(InfraError, match="ALL PRIVILEGES ON"):
            play(make(dsn=re.sub(r"//[^@]*@", "//cycleqdtest:Aa1-hushhush@", mysql_dsn)), [answer('["17"]')])
    finally:
        admin("DROP USER cycleqdtest@'%'")


def test_a_lost_connection_is_no_score(make, monkeypatch):
    connections = []
    login = MySqlServer.login

    def recorded(*args, **options):
        connections.append(login(*args, **options))
        return connections[-1]

    monkeypatch.setattr(MySqlServer, "login", recorded)
    episode = make(seconds=20.0).episodes("train")[0]
    episode.start()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(episode.step, sql("SELECT SLEEP(15)"))
        while len(connections) < 3:  # CREATE, INSERT, ours
            time.sleep(0.01)
        time.sleep(0.2)
        connections[-1]._sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(InfraError, match="went away while it executed a statement"):
            waiting.result(10)
    episode.close()


def test_what_a_statement_does_to_its_own_connection_is_its_fault(make):
    (killed,) = say(make(), "KILL CONNECTION_ID()")
    assert re.match(r"(1927|1317) \(70100\)", killed)
    (killed,) = say(make(), "SELECT SLEEP(1) FROM (SELECT 1) AS a; KILL CONNECTION_ID(); SELECT 1")
    assert killed == OUT_OF_SYNC or "70100" in killed


def test_a_server_that_lets_everybody_in_is_refused(make, admin):
    if os.environ.get(DSN_VARIABLE):
        pytest.skip("the server is not ours, and its tables of rights stay as they are")
    admin("INSERT INTO mysql.db (Host, Db, User, Select_priv) VALUES ('%', 'test', '', 'Y')")
    try:
        with pytest.raises(InfraError, match="lets everybody in"):
            play(make(), [answer('["17"]')])
    finally:
        admin("DELETE FROM mysql.db WHERE User = ''")


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "oracle"}, "option backend to be one of sqlite, mysql, got 'oracle'"),
        ({"dsn": "mysql://a@b"}, "option dsn only with backend mysql"),
        ({"sql_mode": "ANSI"}, "option sql_mode only with backend mysql"),
        ({"backend": "mysql"}, "in option dsn or in the environment variable CYCLEQD_MYSQL_DSN.*got none"),
        ({"backend": "mysql", "dsn": "mysql://a@b", "sql_mode": "x'; DROP"}, "option sql_mode to be names"),
        ({"backend": "mysql", "dsn": "mysql://a@b", "sql_mode": 3}, "option sql_mode to be names"),
        ({"backend": "mysql", "dsn": 3}, "option dsn: expected mysql://.* got int"),
        ({"backend": "mysql", "dsn": "mysql://a:hush@b:port"}, "option dsn: expected mysql://"),
        ({"backend": "mysql", "dsn": "postgres://a:hush@b"}, "option dsn: expected mysql://"),
        ({"backend": "mysql", "dsn": "mysql://b"}, "option dsn: expected mysql://"),
        ({"backend": "mysql", "dsn": "mysql://a:hush@/"}, "without host and socket"),
        ({"backend": "mysql", "dsn": "mysql://a:hush@b/name"}, "option dsn: expected mysql://"),
        ({"backend": "mysql", "dsn": "mysql://a:hush@b?tls=1"}, "unknown settings tls"),
    ],
)
def test_wrong_options_are_named_and_passwords_are_not(write, nowhere, monkeypatch, options, words):
    monkeypatch.delenv(DSN_VARIABLE, raising=False)
    files = {"train": write(ASK, INSERT), "test": write(UPDATE, name="t.jsonl")}
    with pytest.raises(InputError, match=words) as error:
        DbBench(sandbox=nowhere, **files, **options)
    assert "hush" not in str(error.value)


def test_addresses():
    address = Address.parse("here", "mysql://a%40b:p%2Fw%3A@db.example:3307")
    assert (address.user, address.password, address.place) == ("a@b", "p/w:", "db.example:3307")
    assert "p/w:" not in repr(address)
    address = Address.parse("here", "mysql://root@/?unix_socket=/run/s&ssl_ca=/ca.pem")
    assert (address.password, address.place, address.ssl_ca) == ("", "/run/s", "/ca.pem")
    assert Address.parse("here", "mysql://root@[::1]").place == "::1:3306"


def test_the_address_may_come_from_the_environment(make, mysql_dsn, monkeypatch):
    monkeypatch.setenv(DSN_VARIABLE, mysql_dsn)
    assert play(make(dsn=None), [answer('["17"]')]) == [Score(1.0, "passed")]


def test_the_fingerprint_has_backend_and_mode_and_no_password(make, write, nowhere):
    pytest.importorskip("pymysql")
    secret = make(dsn="mysql://root:hush@db.example")
    options = secret.options()
    assert (options["backend"], options["sql_mode"]) == ("mysql", "NO_ENGINE_SUBSTITUTION")
    assert "hush" not in repr(options)
    assert "hush" not in repr(vars(secret))
    assert options == make(dsn="mysql://other@elsewhere").options()
    assert options != make(sql_mode="ANSI_QUOTES").options()
    files = {"train": write(ASK, INSERT), "test": write(UPDATE, name="t.jsonl")}
    embedded = DbBench(sandbox=nowhere, **files).options()
    assert (embedded["backend"], embedded["sql_mode"]) == ("sqlite", None)
