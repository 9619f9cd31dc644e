"""What the processes of a run tell each other, with a store in memory in the place of JAX's; and one test of JAX's store."""

from __future__ import annotations

import subprocess
import sys
import threading
import types

import jax
import pytest

from cycleqd_jax import processes as module
from cycleqd_jax.cli import distributed
from cycleqd_jax.processes import End, PeerError, Processes, check_shared, join
from cycleqd_jax.runs.workers.follow import agree_on_inputs
from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import FailuresError, InputError


class Client:
    """The methods of JAX's client that are used; none of them waits."""

    def __init__(self):
        self.values: dict[str, bytes] = {}

    def key_value_set_bytes(self, key: str, value: bytes) -> None:
        if key in self.values:
            raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: key {key} already exists.")
        self.values[key] = value

    def key_value_try_get_bytes(self, key: str) -> bytes:
        if key not in self.values:
            raise jax.errors.JaxRuntimeError(f"NOT_FOUND: Config key {key} not found.")
        return self.values[key]


@pytest.fixture
def three(monkeypatch) -> list[Processes]:
    state = types.SimpleNamespace(global_state=types.SimpleNamespace(client=Client()))
    monkeypatch.setattr(module.importlib, "import_module", lambda name: state)
    found = [object.__new__(Processes) for _ in range(3)]
    for i, one in enumerate(found):
        one.index, one.count, one.ended = i, 3, None
    return found


def in_all(three, call) -> list:
    """What a call returns or raises in every process."""
    found: list = [None] * len(three)

    def run(i):
        try:
            found[i] = call(three[i])
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(three))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_values(three, monkeypatch):
    monkeypatch.setattr(module, "_PART", 4)
    for value in (b"", b"\0abc", b"0123456789"):
        key = f"value of {len(value)}"
        assert three[1].poll(key) is None
        three[0].post(key, value)
        assert three[1].poll(key) == three[2].read(key) == value
    with pytest.raises(TimeoutError):
        three[0].read("nothing", 0.01)


def test_the_first_end_is_that_of_all(three):
    assert [one.end() for one in three] == [None] * 3
    assert three[2].tell_end(2, "no file") == three[1].tell_end(75) == three[0].end() == End(2, 2, "no file")
    with pytest.raises(PeerError, match="process 2 of this run has failed: no file"):
        three[0].read("calls/0")
    assert str(End(0, 75, "")) == "process 0 of this run has ended with exit code 75."


def test_all_processes_agree_or_raise_the_same_error(three):
    assert in_all(three, lambda one: one.agree("a", {"x": 1}, "mend it")) == [None] * 3
    found = in_all(three, lambda one: one.agree("b", {"x": one.index // 2}, "mend it"))
    assert {(type(error), str(error)) for error in found} == {
        (InputError, "expected b x 0, as in process 0, got 1 in process 2; mend it")
    }


def test_processes_with_the_same_data_agree(three):
    same = {"mbpp/train": "0123", "model.base": "89ab"}
    assert in_all(three, lambda one: agree_on_inputs(one, same)) == [None] * 3


@pytest.mark.parametrize(("other", "got"), [({"mbpp/train": "4567"}, "4567"), ({}, "nothing")])
def test_processes_with_other_problems_are_refused(three, other, got):
    found = in_all(three, lambda one: agree_on_inputs(one, {"mbpp/train": "0123"} if one.index < 2 else other))
    assert {(type(error), str(error)) for error in found} == {
        (
            InputError,
            f"expected digest of mbpp/train 0123, as in process 0, got {got} in process 2; give all machines the same files",
        )
    }


def test_facts_of_a_process_that_has_ended(three):
    """Its error is that of all, with its exit code, also where another process has seen its end first."""

    def call(one):
        if one.index == 2:
            one.tell_end(3, "no sandbox")
        else:
            one.agree("facts", {}, "mend it")

    for error in in_all(three, call)[:2]:
        assert isinstance(error, PeerError)
        assert error.end == End(2, 3, "no sandbox")


def test_folders_that_are_not_shared(three, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARED_S", 0.1)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    found = in_all(three, lambda one: check_shared(one, {"cache": folders[0], "output": folders[one.index == 1]}))
    assert {type(error) for error in found} == {InputError}
    expected = (
        f"expected the folder of output {folders[0]}, as in process 0, got another folder at {folders[1]} in process 1; give"
    )
    assert all(str(error).startswith(expected) for error in found)
    assert not [*folders[0].iterdir(), *folders[1].iterdir()]


def test_folders_that_are_shared(three, tmp_path):
    assert in_all(three, lambda one: check_shared(one, {"cache": tmp_path, "output": tmp_path})) == [None] * 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("bad"), 2),
        (FailuresError("bad"), 3),
        (InfraError("bad"), 3),
        (OSError(28, "No space left on device"), 3),
        (distributed.Stopped(), 75),
        (KeyboardInterrupt(), 130),
        (TypeError("bad"), 1),
    ],
)
def test_the_code_of_an_error_is_that_of_all(three, error, code):
    assert distributed._end_of(error, three[1]).code == code
    end = three[0].end()
    assert end is not None
    assert (end.process, end.code) == (1, code)
    later = distributed._end_of(TypeError("its consequence"), three[2])
    assert later == end
    assert distributed._end_of(PeerError(end), three[2]) == end


def test_an_error_of_jax_is_that_of_the_process_that_has_ended(three, monkeypatch):
    monkeypatch.setattr(distributed, "HEARTBEAT_S", 0)
    timer = threading.Timer(0.2, lambda: three[2].tell_end(3, "the disk is full"))
    timer.start()
    assert distributed._end_of(jax.errors.JaxRuntimeError("connection closed"), three[0]) == End(2, 3, "the disk is full")


def test_the_watch_ends_a_process_whose_main_thread_waits(three, monkeypatch):
    ended, asked = threading.Event(), threading.Event()
    found: list[End] = []
    monkeypatch.setattr(distributed, "_GRACE_S", 0.01)
    monkeypatch.setattr(distributed, "_end_now", lambda end: (found.append(end), ended.set()))
    monkeypatch.setattr(distributed.os, "kill", lambda *_: asked.set())
    with distributed._Watch(three[0], 0.01):
        three[1].ask_to_stop()
        three[2].ask_to_stop()
        assert asked.wait(5)
        three[2].tell_end(2, "bad")
        assert ended.wait(5)
    assert found == [End(2, 2, "bad")]
    with distributed._Watch(three[2], 0.01) as watch:  # its own end
        watch._thread.join(5)
    assert found == [End(2, 2, "bad")]


@pytest.mark.parametrize(
    ("address", "count", "index", "wait"),
    [
        (None, None, None, 0),
        (None, None, None, 10**10),
        ("host:0", 2, 0, 5),
        ("host:65536", 2, 0, 5),
        (":80", 2, 0, 5),
        ("host", 2, 0, 5),
        (None, 0, 0, 5),
        (None, 2, 2, 5),
        (None, 2, -1, 5),
    ],
)
def test_numbers_that_are_refused(address, count, index, wait):
    with pytest.raises(InputError, match=r"^expected .*, got .*; "):
        join(address, count, index, wait=wait)


def test_a_jax_without_the_store(three, monkeypatch):
    monkeypatch.delattr(Client, "key_value_try_get_bytes")
    with pytest.raises(InputError, match=r"expected jax\._src\.distributed\.global_state\.client\.key_value_try_get_bytes, "):
        three[0].poll("x")


LEAK = """
import resource, socket
from cycleqd_jax.processes import join
with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    port = one.getsockname()[1]
processes = join(f"127.0.0.1:{port}", 1, 0, wait=20)
processes.post("x", b"1")
processes.remove("x")
assert processes.poll("x") is None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(1000):
    assert processes.poll("x") is None
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.exhaustive
def test_looking_for_a_value_that_is_not_there_needs_no_memory():
    """A get that blocks leaks 34 KB each time: 34 MB here."""
    done = subprocess.run([sys.executable, "-c", LEAK], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout.split()[-1]) < 5000
