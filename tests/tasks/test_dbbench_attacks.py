"""Attacks by SQL on a MySQL server and on other episodes; each one is contained."""

from __future__ import annotations

import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cycleqd_jax.sandbox import Killed, Limits
from cycleqd_jax.tasks.dbbench.databases import Table
from cycleqd_jax.tasks.dbbench.mysql import SQL_MODE, MySqlDatabase

from .db_records import OUT_OF_SYNC, outcome

SECRET = "secret-of-another"
LIMITS = Limits(memory_mb=256, disk_mb=32)


@pytest.fixture
def make(server):
    """Makes databases on the server, each with the table staff."""
    made = []

    def make(seconds=1.0):
        made.append(MySqlDatabase(server, LIMITS, seconds, SQL_MODE, Table("staff", ("name",), (("Bob",), ("Eve",)))))
        return made[-1]

    yield make
    for database in made:
        database.close()


@pytest.fixture(scope="module")
def others(server):
    """Two databases of other episodes: one with data that must stay secret and unchanged, one for refused statements."""
    both = [MySqlDatabase(server, LIMITS, 5.0, SQL_MODE, Table("staff", ("name",), (("Bob",), ("Eve",)))) for _ in range(2)]
    outcome(both[0], f"INSERT INTO staff VALUES ('{SECRET}')")
    yield both
    for database in both:
        database.close()


@pytest.fixture
def victim(others):
    yield others[0]
    assert outcome(others[0], "SELECT name FROM staff") == f"[('Bob',), ('Eve',), ('{SECRET}',)]"


@pytest.fixture
def intruder(others):
    """A database for statements that have no effect; it is reused."""
    return others[1]


@pytest.fixture
def attacker(make, victim):
    return make()


def is_maria(server) -> bool:
    return "mariadb" in server.admin("SELECT VERSION()")[0][0].lower()


# ------------------------------------------------------------------------------------------------ MySQL: rights

REFUSED = [
    "DROP DATABASE {other}",
    "DROP TABLE {other}.staff",
    "SELECT * FROM {other}.staff",
    "INSERT INTO {other}.staff VALUES ('x')",
    "UPDATE {other}.staff SET name = 'x'",
    "DELETE FROM {other}.staff",
    "TRUNCATE {other}.staff",
    "USE {other}",
    "CREATE TABLE {other}.mine (a INT)",
    "CREATE VIEW peek AS SELECT * FROM {other}.staff",
    "ALTER TABLE staff RENAME TO {other}.mine",
    "ALTER TABLE {other}.staff RENAME TO staff2",
    "DROP USER {user}",
    "RENAME USER {user} TO nobody",
    "SET PASSWORD FOR {user} = 'x'",
    "GRANT SELECT ON {other}.* TO CURRENT_USER()",
    "SHOW GRANTS FOR {user}",
    "SHOW CREATE TABLE {other}.staff",
    "SHOW TABLES FROM {other}",
    "DROP DATABASE mysql",
    "CREATE DATABASE other",
    "CREATE DATABASE cycleqddb0000000000000000000000",
    "SELECT * FROM mysql.user",
    "SELECT authentication_string FROM mysql.user",
    "DELETE FROM mysql.db",
    "CREATE USER foe IDENTIFIED BY 'x'",
    "CREATE ROLE foe",
    "GRANT ALL ON *.* TO CURRENT_USER()",
    "FLUSH TABLES",
    "FLUSH PRIVILEGES",
    "FLUSH TABLES WITH READ LOCK",
    "RESET MASTER",
    "SHUTDOWN",
    "RESTART",
    "SET GLOBAL max_connections = 1",
    "SET GLOBAL read_only = 1",
    "SET GLOBAL general_log_file = '/tmp/cycleqd-attack'",
    "SET GLOBAL local_infile = 1",
    "SET GLOBAL event_scheduler = 1",
    "SET SESSION sql_log_bin = 0",
    "SELECT 'x' INTO OUTFILE '/tmp/cycleqd-attack'",
    "SELECT 'x' INTO DUMPFILE '/tmp/cycleqd-attack'",
    "LOAD DATA INFILE '/etc/passwd' INTO TABLE staff",
    "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE staff",
    "LOAD XML LOCAL INFILE '/etc/passwd' INTO TABLE staff",
    "CREATE PROCEDURE p() SELECT 1",
    "CREATE FUNCTION f() RETURNS INT RETURN 1",
    "CREATE EVENT e ON SCHEDULE EVERY 1 SECOND DO INSERT INTO staff VALUES ('x')",
    "CREATE TRIGGER t BEFORE INSERT ON staff FOR EACH ROW SET NEW.name = 'x'",
    "CREATE FUNCTION sys_exec RETURNS INT SONAME 'lib_mysqludf_sys.so'",
    "INSTALL PLUGIN x SONAME 'x.so'",
    "CREATE SERVER s FOREIGN DATA WRAPPER mysql OPTIONS (USER 'root')",
    "CREATE TABLE f (a INT) ENGINE=FEDERATED CONNECTION='mysql://root@127.0.0.1/mysql/user'",
    "CREATE TABLE f (a INT) ENGINE=CONNECT TABLE_TYPE=CSV FILE_NAME='/etc/passwd'",
    "CHANGE MASTER TO MASTER_HOST = '127.0.0.1'",
    "LOCK TABLES staff WRITE",
    "CREATE TEMPORARY TABLE big AS SELECT 1",
    "SHOW ENGINE INNODB STATUS",
    "SHOW BINARY LOGS",
    "PURGE BINARY LOGS TO 'x'",
    "SET DEFAULT ROLE ALL TO {user}",
    "KILL {thread}",
]


@pytest.mark.parametrize("statement", REFUSED)
def test_the_server_refuses(intruder, victim, server, statement):
    account = victim._account
    with server._administrator() as connection:
        thread = connection.thread_id()
        output = outcome(intruder, statement.format(other=account.schema, user=account.user, thread=thread))
        assert isinstance(output, str)
        assert output[:1].isdigit(), output  # an error, by its number
        connection.ping(reconnect=False)
    assert SECRET not in output
    assert not os.path.exists("/tmp/cycleqd-attack")


HARMLESS = [
    "SELECT LOAD_FILE('/etc/passwd')",
    "SELECT LOAD_FILE(CONCAT(@@datadir, '{other}/staff.ibd'))",
    "CREATE VIEW v AS SELECT LOAD_FILE('/etc/passwd') AS a",
    "SHOW DATABASES",
    "SHOW PROCESSLIST",
    "SELECT * FROM information_schema.schemata",
    "SELECT table_schema, table_name FROM information_schema.tables WHERE table_type <> 'SYSTEM VIEW'",
    "SELECT * FROM information_schema.columns WHERE table_name = 'staff'",
    "SELECT * FROM information_schema.processlist",
    "SELECT * FROM information_schema.user_privileges",
    "SELECT * FROM information_schema.schema_privileges",
    "SELECT * FROM information_schema.innodb_trx",
    "SELECT * FROM information_schema.innodb_sys_tables",
    "SELECT * FROM information_schema.innodb_tables",
    "SELECT * FROM information_schema.files",
    "SELECT * FROM performance_schema.threads",
    "SELECT * FROM performance_schema.events_statements_current",
    "SELECT * FROM sys.processlist",
    "KILL USER root",
    "SELECT DATABASE(), USER(), CURRENT_USER()",
    "SELECT table_name FROM information_schema.tables WHERE table_schema LIKE 'cycleqd%'",
]


@pytest.mark.parametrize("statement", HARMLESS)
def test_nothing_of_others_is_seen(intruder, victim, server, statement):
    account = victim._account
    with server._administrator() as connection:
        output = outcome(intruder, statement.format(other=account.schema))
        connection.ping(reconnect=False)
    assert isinstance(output, str)
    own = intruder._account
    for secret in (account.schema, account.user, own.schema, own.user, account.password, SECRET, "root:x:0"):
        assert secret not in output


@pytest.mark.parametrize("engine", ["InnoDB", "MyISAM", "Aria", "CSV"])
@pytest.mark.parametrize("mode", ["", "SET sql_mode = '';", "SET STATEMENT sql_mode = '' FOR"])
def test_tables_can_not_be_stored_elsewhere(intruder, tmp_path, mode, engine):
    tmp_path.chmod(0o777)
    outcome(intruder, f"{mode} CREATE TABLE outside (a INT) ENGINE={engine} DATA DIRECTORY='{tmp_path}'")
    outcome(intruder, "DROP TABLE outside")
    assert list(tmp_path.iterdir()) == []


def test_an_account_that_locks_itself_out_loses_its_episode_only(attacker, server):
    maria = is_maria(server)
    output = outcome(attacker, "SET PASSWORD = PASSWORD('x')" if maria else "SET PASSWORD = 'Aa1-other'")
    assert output == "[]" or "1227" in output
    if output == "[]":
        ended = outcome(attacker, "SELECT 1")
        assert isinstance(ended, Killed)
        assert "account" in str(ended)


def test_dropping_the_own_database_harms_nothing_else(attacker):
    name = attacker._account.schema
    assert outcome(attacker, f"DROP DATABASE {name}") == "[]"
    assert outcome(attacker, "SELECT 1") == "1049 (42000): Unknown database 'staff'"
    assert attacker.md5() is None


# ------------------------------------------------------------------------------------------------ MySQL: too much

ENDLESS = [
    "SELECT SLEEP(100)",
    "SELECT BENCHMARK(100000000000, MD5('x'))",
    "SELECT COUNT(*) FROM information_schema.columns a, information_schema.columns b, information_schema.columns c",
    "SET @@max_statement_time = 0; SELECT SLEEP(100)",
    "SET @@max_execution_time = 0; SELECT SLEEP(100)",
    "SET STATEMENT max_statement_time = 0 FOR SELECT SLEEP(100)",
    "BEGIN NOT ATOMIC WHILE 1 DO SET @a = 1; END WHILE; END",
    "SELECT MAX(a.seq) FROM seq_1_to_100000000 a, seq_1_to_100000000 b WHERE a.seq * b.seq % 7 = 3",
    "SELECT GET_LOCK('x', 100) + SLEEP(100)",
    "INSERT INTO staff SELECT SLEEP(100)",
    "DO SLEEP(100)",
    "SET max_recursive_iterations = 4294967295, max_statement_time = 0; "
    "WITH RECURSIVE c AS (SELECT 1 AS x UNION SELECT x + 1 FROM c) SELECT COUNT(*) FROM c",
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("statement", ENDLESS)
def test_endless_statements_end_the_episode(attacker, server, statement):
    began = time.monotonic()
    output = outcome(attacker, statement)
    assert time.monotonic() - began < 8
    if not is_maria(server) and isinstance(output, str):
        assert output.startswith(("1064", "1146", "1193")), output  # MariaDB's own words
    else:
        assert output is None or str(output).startswith("1193"), output  # or a setting of MySQL's
    deadline = time.monotonic() + 5
    busy = f"SELECT COUNT(*) FROM information_schema.processlist WHERE user = '{attacker._account.user}'"
    while server.admin(busy)[0][0] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.admin(busy)[0][0] == 0


HUGE = [
    "SELECT a.*, b.* FROM information_schema.columns a, information_schema.columns b",
    "SELECT REPEAT('x', 10000000) FROM information_schema.columns a, information_schema.columns b",
    "SELECT seq FROM seq_1_to_10000000000",
    "SELECT REPEAT('x', 4000000000)",
    "SELECT GROUP_CONCAT(REPEAT('x', 1000)) FROM information_schema.columns a, information_schema.columns b",
    "SELECT REPEAT('x', 9000000) FROM information_schema.columns; SELECT REPEAT('x', 9000000) FROM information_schema.columns",
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("statement", HUGE)
def test_huge_results_are_cut(attacker, statement):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    output = outcome(attacker, statement)
    assert time.monotonic() - began < 8
    assert output is None or len(output) <= 811
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


VARIABLES = (
    "BEGIN NOT ATOMIC DECLARE i INT DEFAULT 0; WHILE i < 4000 DO "
    "EXECUTE IMMEDIATE CONCAT('SET @a', i, ' = REPEAT(''x'', 15000000)'); SET i = i + 1; END WHILE; END"
)


@pytest.mark.exhaustive
@pytest.mark.parametrize("first", ["", "SET max_session_mem_used = 9000000000000000000; "])
def test_memory_of_the_server(make, server, first):
    if not is_maria(server):
        pytest.skip("MariaDB's own words")
    output = outcome(make(seconds=20.0), first + VARIABLES)
    assert isinstance(output, Killed) or "max-session-mem-used" in output


DIGIT = "(SELECT 0 AS d" + "".join(f" UNION ALL SELECT {d}" for d in range(1, 10)) + ")"
MILLION = ", ".join(f"{DIGIT} AS d{i}" for i in range(6))
BIG = [
    f"CREATE TABLE big AS SELECT REPEAT('x', 10000) AS c FROM {MILLION}",
    f"INSERT INTO staff SELECT REPEAT('x', 60000) FROM {MILLION}",
    f"CREATE TABLE big (c LONGTEXT) ENGINE=MyISAM AS SELECT REPEAT('x', 10000) AS c FROM {MILLION}",
    f"CREATE TABLE big (c LONGTEXT) ENGINE=Aria AS SELECT REPEAT('x', 10000) AS c FROM {MILLION}",
    "SET max_heap_table_size = 9000000000; "
    f"CREATE TABLE big (c VARCHAR(10000)) ENGINE=MEMORY AS SELECT REPEAT('x', 10000) AS c FROM {MILLION}",
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("statement", BIG)
def test_disk_of_the_server(make, victim, server, statement):
    """The time limit is generous, so that the size limit ends these statements."""
    database = make(seconds=20.0)
    output = outcome(database, statement)  # too much disk, or no such engine
    assert isinstance(output, Killed) or output == OUT_OF_SYNC or output[:1].isdigit(), output
    assert server.usage(0, database._account.schema)[1] < 500_000_000


def test_many_episodes_hold_no_connection_while_they_wait(make, server, victim):
    with ThreadPoolExecutor(24) as pool:
        databases = list(pool.map(lambda _: make(seconds=20.0), range(24)))
        assert list(pool.map(lambda database: outcome(database, "SELECT COUNT(*) FROM staff"), databases)) == ["[(2,)]"] * 24
    ((_, connected),) = server.admin("SHOW STATUS LIKE 'Threads_connected'")
    assert int(connected) <= 8 + 2


def test_an_account_has_few_connections(attacker, server):
    """Statements can't open connections; even with the password there are at most four."""
    held = [server.login(attacker._account, init="SET @a = 1", read_seconds=5.0) for _ in range(4)]
    with pytest.raises(Killed, match="max_user_connections"):
        server.login(attacker._account, init="SET @a = 1", read_seconds=5.0)
    for connection in held:
        connection.close()
