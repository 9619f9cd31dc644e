"""Any file of records and any option gives records, or an error of one sentence that names the place."""

from __future__ import annotations

import contextlib
import gzip
import json
import pathlib
from typing import Any, Literal

import pytest
from hypothesis import strategies as st

from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.tasks import TASKS, TaskOptions, make_task, own_options
from cycleqd_jax.tasks.dbbench.mysql_address import Address
from cycleqd_jax.tasks.options import check_option
from cycleqd_jax.tasks.os_interaction.folder import read_os_rows
from cycleqd_jax.tasks.records import Row, read_rows, split_evenly
from cycleqd_jax.types import InputError

from ..fuzz import fuzzed, json_values, replies
from .db_records import ASK, INSERT
from .test_bigcodebench import LETTERS
from .test_choice import ARC, BOOLQ, CSQA, HELLA, MMLU, OTHER
from .test_exact_match import HOUSE, ROBE
from .test_fuzz_replies import MATCH, OS, PLUS
from .test_humaneval import TWICE
from .test_mbpp import ADD, AREA, NODE

KINDS = {
    "mbpp": (ADD, AREA, NODE),
    "evalplus": (
        PLUS,
        PLUS | {"task_id": "Mbpp/2", "entry_point": "similar_elements", "base_input": [[[1], [2]]], "plus_input": []},
    ),
    "humaneval": (TWICE,),
    "bigcodebench": (LETTERS,),
    "dbbench": (ASK, INSERT),
    "os_interaction": (OS, MATCH),
    "arc": (ARC, OTHER),
    "boolq": (BOOLQ,),
    "commonsenseqa": (CSQA,),
    "hellaswag": (HELLA,),
    "mmlu": (MMLU | {"id": "m/1"},),
    "gsm8k": (ROBE, HOUSE),
    "bbh": ({"id": "b/1", "task": "t", "input": "question", "target": "(A)"},),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@contextlib.contextmanager
def one_sentence():
    """An error is an ``InputError`` of one line that can be printed."""
    try:
        yield
    except InputError as error:
        message = str(error)
    else:
        return
    assert message.startswith("expected ")
    assert len(message) < 5000
    message.encode("utf-8", "backslashreplace")


LINES = st.one_of(
    json_values().map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(["id", "task_id", "evaluation", "text"]), json_values(), max_size=3).map(
        lambda record: json.dumps(record).encode()
    ),
    st.sampled_from(
        [
            b'{"id": 1}',
            b"[]",
            b"[",
            b"{",
            b"\xff",
            b"\xef\xbb\xbf{}",
            b'{"a": ' * 3000,
            b"9" * 5000,
            b"NaN",
            b'"\\ud800"',
            b"\0",
        ]
    ),
    st.binary(max_size=12),
)


@fuzzed(
    40, lines=st.lists(LINES, max_size=5), name=st.sampled_from(["r.jsonl", "r.json", "r.jsonl.gz"]), cut=st.integers(0, 30)
)
def test_files(folder, lines, name, cut):
    content = b"\n".join(lines)
    if name.endswith("gz") and cut % 3:
        content = gzip.compress(content)[: None if cut % 3 == 1 else -cut - 1]
    path = folder / name
    path.write_bytes(content)
    for read in (read_rows, read_os_rows):
        with one_sentence():
            rows = read(path)
            assert len({row.fingerprint for row in rows}) >= 1
            assert all(row.id.encode() for row in rows)
            if len(rows) > 1:
                assert sum(map(len, split_evenly(rows))) == len(rows)


@pytest.fixture(scope="module")
def made(folder, request):
    """A task of each kind, whose parser is tried."""
    from .helpers import FakeSandbox, make

    tasks = {}
    for kind, records in KINDS.items():
        path = folder / f"{kind}.jsonl"
        both = [dict(record) for record in (*records, records[0])]
        key = "task_id" if "task_id" in both[0] else "id"
        both[-1][key] = both[-1][key] + 1000 if isinstance(both[-1][key], int) else f"{both[-1][key]}9"
        both[-1]["note"] = "another problem"
        path.write_text("".join(json.dumps(record) + "\n" for record in both))
        tasks[kind] = make(kind, sandbox=FakeSandbox(), data=path)
    return tasks


@fuzzed(60, kind=st.sampled_from(list(KINDS)), number=st.integers(0, 2), data=st.data())
def test_records(made, kind, number, data):
    record: dict[str, Any] = dict(KINDS[kind][number % len(KINDS[kind])])
    for field in data.draw(st.lists(st.sampled_from(list(record)), max_size=2)):
        value = record[field]
        choice = data.draw(st.integers(0, 3))
        if choice == 0:
            del record[field]
            break
        if choice == 1 and isinstance(value, str):
            at = data.draw(st.integers(0, len(value)))
            record[field] = value[:at] + data.draw(replies()) + value[at:]
        elif choice == 2 and isinstance(value, list) and value:
            record[field] = [*value[1:], data.draw(json_values())]
        else:
            record[field] = data.draw(json_values())
    with one_sentence():
        parsed = made[kind].parse(Row(record, "r.jsonl, line 1"))
        assert isinstance(made[kind].environment(parsed).opening(), list)


ANNOTATIONS = st.sampled_from(
    [
        bool,
        int,
        float,
        str,
        str | pathlib.Path,
        int | float | None,
        str | None,
        Literal["a", "b"],
        Literal["a", 1] | None,
        int | None,
        list[int],
    ]
)


@fuzzed(60, annotation=ANNOTATIONS, value=json_values())
def test_options(annotation, value):
    with one_sentence():
        fitting = check_option("t", "x", annotation, value)
        assert fitting == value or value != value


@fuzzed(40, kind=st.sampled_from(list(TASKS)), option=st.data(), value=json_values())
def test_options_of_all_tasks(made, folder, kind, option, value):
    names = [*own_options(TASKS[kind]), "seconds", "memo", "nothing"]
    shared = TaskOptions(made[kind].sandbox, "t", data=folder / f"{kind}.jsonl")
    with one_sentence():
        make_task(kind, shared, **{option.draw(st.sampled_from(names)): value}).close()
    assert isinstance(shared.sandbox, Sandbox)


PARTS = (
    "mysql://",
    "mysql:",
    "//",
    "@",
    ":",
    "/",
    "root",
    "[::1]",
    "[",
    "]",
    "?unix_socket=/x",
    "?ssl_ca=/x",
    "&",
    "=",
    "%",
    "%40",
    "%ff",
    "99999",
)


@fuzzed(60, parts=st.lists(st.sampled_from(PARTS) | st.text(st.characters(), max_size=4), max_size=8))
def test_addresses_of_servers(parts):
    with one_sentence():
        Address.parse("here", "".join(parts))
