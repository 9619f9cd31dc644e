"""A sandbox and small record files for the tests of the tasks."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cycleqd_jax.sandbox import Limits, Sandbox
from cycleqd_jax.types import Reply


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


@pytest.fixture(scope="session")
def mysql_dsn() -> Iterator[str]:
    """Address of a MySQL or MariaDB server: the one that CYCLEQD_MYSQL_DSN names, else a private one."""
    if os.environ.get("CYCLEQD_MYSQL_DSN"):
        yield os.environ["CYCLEQD_MYSQL_DSN"]
        return
    pytest.importorskip("pymysql", reason="the extra mysql is not installed")
    spec = importlib.util.spec_from_file_location("mariadb_for_tests", Path(__file__).parent / "mariadb.py")
    assert spec is not None
    assert spec.loader is not None
    mariadb = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mariadb)
    if mariadb.missing():
        pytest.skip(mariadb.missing())
    with mariadb.serve() as socket:
        yield f"mysql://root:{quote(mariadb.PASSWORD, safe='')}@/?unix_socket={socket}"


class Nowhere:
    """Where nothing can run: for tests that must not get that far."""

    limits = Limits()
    system = "host"


@pytest.fixture
def nowhere() -> Nowhere:
    return Nowhere()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_records(*records: Any, name: str = "records.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write_records


class Speaker:
    """A generator that says ``say(messages)`` to each conversation that waits, all at once."""

    def __init__(self, say):
        self.say, self.waiting = say, {}

    def submit(self, conversation, messages, max_new_tokens):
        assert conversation not in self.waiting
        self.waiting[conversation] = list(messages)

    def advance(self):
        waiting, self.waiting = self.waiting, {}
        return [(conversation, Reply(self.say(messages), 1, "stop")) for conversation, messages in waiting.items()]

    def release(self, conversation):
        assert conversation not in self.waiting


@pytest.fixture(scope="session")
def speaker():
    return Speaker
