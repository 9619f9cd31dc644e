"""A sandbox and small record files for the tests of the tasks."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


@pytest.fixture(scope="session")
def play_32_at_once():
    """``play_32_at_once(task, name, sql, label)``: changes of table ``name`` by 32 episodes of one DBBench problem at a time.

    Returns:
        For each what its statements led to, and its score; and the seconds that starts took.
    """

    def play(task, name, sql, label):
        together = threading.Barrier(32)
        starts = []

        def one(number):
            episode = task.episodes("train")[1]
            try:
                began = time.monotonic()
                episode.start()
                starts.append(time.monotonic() - began)
                together.wait(60)
                outputs = [episode.step(sql(f"INSERT INTO {name} VALUES ('n{number}', '{number}', 'x')"))[0]["content"]]
                outputs.append(episode.step(sql(f"SELECT name FROM {name} WHERE `home city` = 'x'"))[0]["content"])
                outputs.append(episode.step(sql(f"DELETE FROM {name} WHERE `home city` = 'x'"))[0]["content"])
                together.wait(60)
                episode.step(sql(label))
                return outputs, episode.step("").value
            finally:
                episode.close()

        with ThreadPoolExecutor(32) as pool:
            return list(pool.map(one, range(32))), starts

    return play
