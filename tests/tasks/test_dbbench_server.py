"""The MySQL server of DBBench: errors that are never a score, addresses and options."""

from __future__ import annotations

import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.tasks.dbbench.databases import unqualified
from cycleqd_jax.tasks.dbbench.mysql_address import Address
from cycleqd_jax.tasks.dbbench.mysql_server import MySqlServer
from cycleqd_jax.tasks.dbbench.task import DSN_VARIABLE
from cycleqd_jax.types import InputError, Score

from .db_records import ASK, INSERT, OUT_OF_SYNC, UPDATE, answer, execute, sql
from .helpers import make, play_replies


def test_a_full_disk_is_no_score_but_a_statement_that_simulates_one_is(make_mysql, monkeypatch):
    claim = "SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 1021, MESSAGE_TEXT = 'No space left on device'"
    task = make_mysql()
    assert execute(task, claim) == ["1021 (45000): No space left on device"]
    episode = task.episodes("train")[0]
    episode.start()

    def full(server):
        raise InfraError("No space left on device")

    monkeypatch.setattr(MySqlServer, "create_account", full)
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
            "expected a working MySQL or MariaDB server at 127.0.0.1:1, got.*apt-get install mariadb-server.*CYCLEQD_MYSQL_DSN",
        ),
        ("mysql://root:hush@/?unix_socket=/nowhere/s", "expected a working MySQL or MariaDB server at /nowhere/s, got"),
    ],
)
def test_a_missing_server_is_no_score(make_mysql, dsn, words):
    with pytest.raises(InfraError, match=words) as error:
        play_replies(make_mysql(dsn=dsn), [answer('["17"]')])
    assert "hush" not in str(error.value)


def test_a_wrong_password_is_no_score(make_mysql, mysql_dsn):
    dsn = re.sub(r"//[^@]*@", "//nobody:hush@", mysql_dsn)
    with pytest.raises(InfraError, match="expected a known account at ") as error:
        play_replies(make_mysql(dsn=dsn), [answer('["17"]')])
    assert "hush" not in str(error.value)


def test_an_account_without_rights_is_no_score(make_mysql, mysql_dsn, admin):
    admin("CREATE USER cycleqdtest@'%' IDENTIFIED BY 'Aa1-hushhush'", "GRANT SELECT ON mysql.* TO cycleqdtest@'%'")
    try:
        with pytest.raises(InfraError, match="ALL PRIVILEGES ON"):
            play_replies(make_mysql(dsn=re.sub(r"//[^@]*@", "//cycleqdtest:Aa1-hushhush@", mysql_dsn)), [answer('["17"]')])
    finally:
        admin("DROP USER cycleqdtest@'%'")


def test_a_lost_connection_is_no_score(make_mysql, monkeypatch):
    connections = []
    login = MySqlServer.login

    def recorded(*args, **options):
        connections.append(login(*args, **options))
        return connections[-1]

    monkeypatch.setattr(MySqlServer, "login", recorded)
    episode = make_mysql(seconds=20.0).episodes("train")[0]
    episode.start()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(episode.step, sql("SELECT SLEEP(15)"))
        while len(connections) < 3:  # CREATE, INSERT, SELECT
            time.sleep(0.01)
        time.sleep(0.2)
        connections[-1]._sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(InfraError, match="expected the server to execute a statement, got a lost connection"):
            waiting.result(10)
    episode.close()


def test_a_statement_that_kills_its_own_connection_is_at_fault(make_mysql):
    (killed,) = execute(make_mysql(), "KILL CONNECTION_ID()")
    assert re.match(r"(1927|1317) \(70100\)", killed)
    (killed,) = execute(make_mysql(), "SELECT SLEEP(1) FROM (SELECT 1) AS a; KILL CONNECTION_ID(); SELECT 1")
    assert killed == OUT_OF_SYNC or "70100" in killed


@pytest.fixture
def may_change_rights():
    if os.environ.get(DSN_VARIABLE):
        pytest.skip("the server belongs to the user, so its tables of rights are not changed")


@pytest.mark.usefixtures("may_change_rights")
@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("INSERT INTO mysql.db (Host, Db, User, Select_priv) VALUES ('%', 'shop', '', 'Y')", "db shop"),
        ("GRANT SELECT ON shop.* TO PUBLIC", "db shop"),
        ("INSERT INTO mysql.global_priv VALUES ('localhost', '', '{}')", "user @localhost"),
        ("GRANT SELECT ON *.* TO PUBLIC", "user PUBLIC@"),
        (
            "INSERT INTO mysql.tables_priv (Host, Db, User, Table_name, Table_priv) VALUES ('', 's', 'PUBLIC', 't', 'Select')",
            "tables_priv s.t",
        ),
    ],
)
def test_a_server_with_rights_of_everybody_is_refused(make_mysql, admin, statement, name):
    admin(statement)
    try:
        with pytest.raises(InfraError, match=f"expected a server without anonymous accounts .*, got {name} in its tables"):
            play_replies(make_mysql(), [answer('["17"]')])
    finally:
        for table in ("db", "tables_priv", "global_priv"):
            admin(f"DELETE FROM mysql.{table} WHERE User IN ('', 'PUBLIC')", "FLUSH PRIVILEGES")


@pytest.mark.usefixtures("may_change_rights")
def test_the_installer_s_test_schema_is_not_open_to_episodes(make_mysql, admin):
    admin("CREATE DATABASE test", "GRANT ALL ON test.* TO PUBLIC", "GRANT ALL ON `test\\_%`.* TO PUBLIC")
    try:
        replies = execute(make_mysql(), "CREATE TABLE test.t (a INT)", "CREATE DATABASE test_2", "SELECT 1")
        assert [reply[:4] for reply in replies[:2]] == ["1142", "1044"]
        assert "1" in replies[2]
    finally:
        admin("DROP DATABASE test", "DELETE FROM mysql.db WHERE User = 'PUBLIC'", "FLUSH PRIVILEGES")


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "oracle"}, "option backend to be one of sqlite, mysql, got 'oracle'"),
        ({"dsn": "mysql://a@b"}, "option dsn only with backend mysql"),
        ({"sql_mode": "ANSI"}, "option sql_mode only with backend mysql"),
        ({"backend": "mysql"}, "in option dsn or in the environment variable CYCLEQD_MYSQL_DSN.*got none"),
        ({"backend": "mysql", "dsn": "mysql://a@b", "sql_mode": "x'; DROP"}, "option sql_mode to be names"),
        ({"backend": "mysql", "dsn": "mysql://a@b", "sql_mode": 3}, "option sql_mode to be a text or null, got 3"),
        ({"backend": "mysql", "dsn": 3}, "option dsn to be a text or null, got 3"),
        ({"backend": "mysql", "dsn": "mysql://a:hush@b:port"}, "expected mysql://.* in option dsn of task"),
        ({"backend": "mysql", "dsn": "postgres://a:hush@b"}, "expected mysql://.* in option dsn of task"),
        ({"backend": "mysql", "dsn": "mysql://b"}, "expected mysql://.* in option dsn of task"),
        ({"backend": "mysql", "dsn": "mysql://a:hush@/"}, "without host and socket"),
        ({"backend": "mysql", "dsn": "mysql://a:hush@b/name"}, "expected mysql://.* in option dsn of task"),
        ({"backend": "mysql", "dsn": "mysql://a:hush@b?tls=1"}, "unknown settings tls"),
    ],
)
def test_wrong_options_are_named_and_passwords_are_not(write, nowhere, monkeypatch, options, words):
    monkeypatch.delenv(DSN_VARIABLE, raising=False)
    files = {"train": write(ASK, INSERT), "test": write(UPDATE, name="t.jsonl")}
    with pytest.raises(InputError, match=words) as error:
        make("dbbench", sandbox=nowhere, **files, **options)
    assert "hush" not in str(error.value)


def test_addresses():
    address = Address.parse("here", "mysql://a%40b:p%2Fw%3A@db.example:3307")
    assert (address.user, address.password, address.place) == ("a@b", "p/w:", "db.example:3307")
    assert "p/w:" not in repr(address)
    address = Address.parse("here", "mysql://root@/?unix_socket=/run/s&ssl_ca=/ca.pem")
    assert (address.password, address.place, address.ssl_ca) == ("", "/run/s", "/ca.pem")
    assert Address.parse("here", "mysql://root@[::1]").place == "::1:3306"


def test_the_address_may_come_from_the_environment(make_mysql, mysql_dsn, monkeypatch):
    monkeypatch.setenv(DSN_VARIABLE, mysql_dsn)
    assert play_replies(make_mysql(dsn=None), [answer('["17"]')]) == [Score(1.0, "passed")]


def test_the_fingerprint_has_backend_and_mode_and_no_password(make_mysql, write, nowhere):
    pytest.importorskip("pymysql")
    secret = make_mysql(dsn="mysql://root:hush@db.example")
    options = secret.settings()
    assert (options["backend"], options["sql_mode"]) == ("mysql", "NO_ENGINE_SUBSTITUTION")
    assert "hush" not in repr(options)
    assert "hush" not in repr(vars(secret))
    assert options == make_mysql(dsn="mysql://other@elsewhere").settings()
    assert options != make_mysql(sql_mode="ANSI_QUOTES").settings()
    files = {"train": write(ASK, INSERT), "test": write(UPDATE, name="t.jsonl")}
    embedded = make("dbbench", sandbox=nowhere, **files).settings()
    assert (embedded["backend"], embedded["sql_mode"]) == ("sqlite", None)


# ------------------------------------------------------------------------------------------------ qualified names


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
def test_qualified_names_are_found_quickly(piece):
    began = time.monotonic()
    unqualified("t.t." + piece * (100_000 // len(piece)), "t")
    assert time.monotonic() - began < 2
