"""A sandbox and small record files for the tests of the tasks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.tasks.dbbench.mysql_address import Address
from cycleqd_jax.tasks.dbbench.mysql_server import MySqlServer
from cycleqd_jax.types import Reply

from . import mariadb
from .db_records import ASK, INSERT, UPDATE
from .helpers import FakeSandbox, make


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


@pytest.fixture(scope="session")
def mysql_dsn() -> Iterator[str]:
    """Address of a MySQL or MariaDB server: the one that CYCLEQD_MYSQL_DSN names, else a private server."""
    if os.environ.get("CYCLEQD_MYSQL_DSN"):
        yield os.environ["CYCLEQD_MYSQL_DSN"]
        return
    pytest.importorskip("pymysql", reason="the extra mysql is not installed")
    if mariadb.missing():
        pytest.skip(mariadb.missing())
    with mariadb.serve() as socket:
        yield f"mysql://root:{quote(mariadb.PASSWORD, safe='')}@/?unix_socket={socket}"


@pytest.fixture
def nowhere() -> FakeSandbox:
    """A sandbox that can't run anything."""
    return FakeSandbox()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_records(*records: Any, name: str = "records.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write_records


class Speaker:
    """A generator that replies ``reply(messages)`` to all waiting conversations at once."""

    def __init__(self, reply):
        self.reply, self.waiting = reply, {}

    def submit(self, conversation, messages, max_new_tokens, *, individual=0):
        assert conversation not in self.waiting
        self.waiting[conversation] = list(messages)

    def advance(self):
        waiting, self.waiting = self.waiting, {}
        return [(conversation, Reply(self.reply(messages), 1, "stop")) for conversation, messages in waiting.items()]

    def release(self, conversation):
        assert conversation not in self.waiting


@pytest.fixture(scope="session")
def speaker():
    return Speaker


@pytest.fixture(scope="module")
def server(mysql_dsn) -> Iterator[MySqlServer]:
    """The MySQL or MariaDB server, as the task connects to it."""
    server = MySqlServer(Address.parse("here", mysql_dsn))
    server._prepare()
    yield server
    server.close()


@pytest.fixture
def make_mysql(write, mysql_dsn, nowhere):
    """Makes tasks on the server; the train records are ASK and INSERT unless others are given, the test record is UPDATE."""
    tasks = []

    def make_task(records=(ASK, INSERT), **options):
        files = {"train": write(*records), "test": write(UPDATE, name="t.jsonl")}
        options = {"dsn": mysql_dsn, "memo": False, "seconds": 2.0} | options
        tasks.append(make("dbbench", sandbox=nowhere, backend="mysql", **files, **options))
        return tasks[-1]

    yield make_task
    for task in tasks:
        task.close()


@pytest.fixture
def admin(mysql_dsn):
    """Executes statements as administrator of the server."""
    server = MySqlServer(Address.parse("here", mysql_dsn))
    yield server.admin
    server.close()
