"""Whatever a program sends to its judge, the judge has a verdict, and it is not that the program passed."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
import zlib

import pytest
from hypothesis import strategies as st

from cycleqd_jax.sandbox import Completed, InfraError, Limits
from cycleqd_jax.tasks.judges import asserts, calls, cases, run_judge
from cycleqd_jax.tasks.judges.equality import Forged, plain
from cycleqd_jax.tasks.judges.inside import Ended, Late, Link, describe
from cycleqd_jax.tasks.judges.oracles import agrees
from cycleqd_jax.tasks.judges.values import decode, encode

from ..fuzz import fuzzed, json_values, replies
from .helpers import FakeSandbox


def frame(message) -> bytes:
    data = json.dumps(message).encode()
    return len(data).to_bytes(8, "big") + data


MESSAGES = st.one_of(
    json_values().map(frame),
    st.sampled_from(["?", "go", ["stage", "text"], {"value": 0}, {"value": None}, {"error": "\ud800"}, {"error": [[]]}]).map(
        frame
    ),
    st.binary(max_size=20),
    st.sampled_from(
        [b"\xff" * 8, (1 << 27).to_bytes(8, "big"), (2).to_bytes(8, "big") + b"{]", b"\0" * 8, b"\0" * 7 + b"\x04\xff\xfe{}"]
    ),
)


class Talk:
    """A link to a program that has sent some bytes and then ends; what the judge sends is dropped."""

    def __init__(self, messages) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.theirs.sendall(b"".join(messages))
        self.theirs.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Link:
        return Link(self.ours)

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self.theirs.close()


@fuzzed(40, messages=st.lists(MESSAGES, max_size=5))
def test_messages_of_programs(messages):
    with Talk(messages) as link:
        try:
            while True:
                json.dumps(link.receive(time.monotonic() + 0.2))
        except (Ended, Late):
            pass


JOB = {"code": "", "name": "f", "asserts": ["assert f(1) == 2"] * 3, "count": 3}
EXPECTED = base64.b64encode(zlib.compress(json.dumps(["n", "0x7fffffffffffffff"]).encode())).decode()
GROUP = {"name": "base", "inputs": [["l", 1], ["l", 2]], "limits": [1.0, 1.0], "expected": EXPECTED}
SECRETS = [
    {"mode": "compare", "groups": [GROUP], "atol": 0, "oracle": None},
    {"mode": "compare", "groups": [GROUP], "atol": 1e-4, "oracle": "find_zero"},
    {"mode": "compare", "groups": [GROUP], "atol": 0, "oracle": "similar_elements"},
    {"mode": "check", "setup": "", "test": "def check(f):\n    assert f(1) == 1.5\n    assert f(2) == [2.5]"},
    {"mode": "reference", "groups": [[["l", 1]]], "seconds": 1.0},
]


@fuzzed(40, messages=st.lists(MESSAGES, max_size=5), secret=st.sampled_from(SECRETS))
def test_verdicts_on_any_messages(messages, secret):
    for judge in (asserts.judge, cases.judge):
        with Talk(messages) as link:
            verdict = judge(link, JOB, {})
        json.dumps(verdict).encode()
        assert verdict["passed"] == 0
    with Talk(messages) as link:
        verdict = calls.judge(link, JOB, secret)
    json.dumps(verdict).encode()
    if secret["mode"] != "reference":
        assert verdict["failed"] is not None


@fuzzed(
    60,
    output=json_values(),
    expected=json_values(),
    atol=st.sampled_from([0, 1e-6]),
    name=st.sampled_from([None, "check_str", "Diff"]),
)
def test_values_of_programs(output, expected, atol, name):
    try:
        value = decode(output)
    except Exception:
        return  # the judge treats any exception as a wrong result
    try:
        good, _ = agrees(name, lambda: [1, 2], value, expected, atol)
        assert isinstance(good, bool)
    except Exception:
        return
    if good and name is None:
        assert type(value) is not object


@fuzzed(60, value=json_values())
def test_json_values_are_encoded_unchanged(value):
    try:
        encoded = encode(value)
    except RecursionError:
        return
    assert json.dumps(decode(json.loads(json.dumps(encoded)))) == json.dumps(value)


EQUAL = type("Equal", (), {"__eq__": lambda self, other: True, "__hash__": lambda self: 1})
WRAPS = st.sampled_from(
    (
        lambda x: [x],
        lambda x: (x, 1),
        lambda x: {"a": x},
        lambda x: {x: 1},
        lambda x: {x},
        lambda x: frozenset((x,)),
        lambda x: {1: x}.items(),
    )
)


@fuzzed(40, wraps=st.lists(WRAPS, max_size=4))
def test_values_with_an_equality_of_their_own_are_found_at_any_depth(wraps):
    value = EQUAL()
    for wrap in wraps:
        try:
            value = wrap(value)
        except TypeError:  # not hashable
            value = [value]
    with pytest.raises(Forged, match="__eq__"):
        plain(value)


@fuzzed(40, text=st.text(st.characters()) | replies())
def test_errors_of_programs_are_one_short_text(text):
    class Broken(Exception):
        def __str__(self):
            return text

    assert len(describe(Broken()).encode()) <= 800


# ------------------------------------------------------------------------------------------------ the verdict, outside


class Printing(FakeSandbox):
    """A sandbox whose programs print a text; an empty job starts as it should if ``works``."""

    def __init__(self, output, ready, works, late):
        super().__init__()
        self.done, self.ready, self.works, self.late = output, ready, works, late

    def run_python(self, source, *, stdin, limits):
        nonce = stdin.rpartition('"nonce": "')[2][:32]
        if '"code": ""' in stdin:
            return Completed(f"{nonce} ready\n" if self.works else self.done, 0, False, False, 0.0)
        head = f"{nonce} ready\n" if self.ready else ""
        return Completed(head + self.done, None if self.late else 0, self.late, True, 0.0)


@fuzzed(40, output=replies(), ready=st.booleans(), works=st.booleans(), late=st.booleans())
def test_printed_texts_are_no_verdict(output, ready, works, late):
    job = {"code": "x = 1", "name": "f"}
    for judge in ("asserts", "calls", "cases"):
        try:
            judged = run_judge(Printing(output, ready, works, late), judge, job, {}, Limits())
        except InfraError:
            assert not ready  # the judge does not start here
            assert late or not works
        else:
            assert judged.verdict is None
            assert judged.reason


def test_the_judges_are_not_confused_by_a_program_that_guesses_tokens():
    """A program that answers requests with tokens of its own."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=lambda: [theirs.sendall(frame("?") + frame(os.urandom(16).hex())) for _ in range(4)])
    thread.start()
    with ours, theirs:
        assert asserts.judge(Link(ours), JOB, {})["passed"] == 0
        thread.join()
