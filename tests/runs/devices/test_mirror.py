"""Calls of one process that all others make too, with a store in memory in the place of JAX's."""

from __future__ import annotations

import json
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.genome import CoefficientGenome, ExpertGenome
from cycleqd_jax.processes import Processes
from cycleqd_jax.runs.devices import mirror as module
from cycleqd_jax.runs.devices.mirror import Mirror, mirrored
from cycleqd_jax.types import FailuresError, InputError


class Store:
    """What processes tell each other, as :class:`~cycleqd_jax.processes.Processes` does."""

    def __init__(self, count: int = 2):
        self.values: dict[str, bytes] = {}
        self.changed = threading.Condition()
        self.barrier = threading.Barrier(count)
        self.program = threading.Barrier(count)
        self.machines: tuple[Machine, ...] = ()
        self.found: list = []
        self.followed = threading.Event()


class Told(Processes):
    def __init__(self, store: Store, index: int):
        self.store, self.index, self.count = store, index, 2

    def post(self, key: str, value: bytes) -> None:
        with self.store.changed:
            assert key not in self.store.values
            self.store.values[key] = value
            self.store.changed.notify_all()

    def read(self, key: str, seconds: float = 60) -> bytes:
        with self.store.changed:
            if not self.store.changed.wait_for(lambda: key in self.store.values, timeout=min(seconds, 60)):
                raise TimeoutError
            return self.store.values[key]

    def remove(self, key: str) -> None:
        del self.store.values[key]

    def meet(self, name: str, seconds: float = 60) -> None:
        self.store.barrier.wait(seconds)


class Machine:
    """An object of every process."""

    def __init__(self, mirror: Mirror | None, fails: bool = False):
        self.mirror, self.fails = mirror, fails
        self.error: Exception = InputError("expected no failure, got one in a test; nothing to do")
        self.calls: list[tuple] = []
        if mirror is not None:
            mirror.register("machine", self)

    @mirrored("machine", makes=True)
    def make(self, genome, scale=1.0):
        self.calls.append(("make", jax.tree.map(np.asarray, genome), scale))
        return {"weights": jnp.ones(2) * scale}

    @mirrored("machine")
    def load(self, weights, *, donate=False):
        self.calls.append(("load", weights["weights"].tolist(), donate))
        self.say("inside")  # not mirrored once more
        return len(self.calls)

    @mirrored("machine")
    def together(self):
        """As a program of all devices: it ends where all processes run it."""
        assert self.mirror is not None
        self.mirror.processes.store.program.wait(20)

    @mirrored("machine", deferred=True)
    def say(self, *words, **options):
        self.calls.append(("say", words, options))

    @mirrored("machine")
    def fail(self, everywhere):
        self.calls.append(("fail",))
        if everywhere or (self.mirror is not None and self.mirror.leads) or self.fails:
            raise self.error


@pytest.fixture
def two():
    """A function that returns the leader's machine, and a function that ends the follower and returns its machine and code."""

    def make(fails=False):
        store = Store()
        leader, follower = (Mirror(Told(store, i)) for i in range(2))
        one, other = Machine(leader), Machine(follower, fails)
        found: list = []

        def follow():
            try:
                found.append(follower.follow())
            except Exception as error:
                found.append(error)
            store.followed.set()

        thread = threading.Thread(target=follow, daemon=True)
        store.machines, store.found = (one, other), found
        thread.start()

        def end(code=0):
            leader.end(code)
            assert store.followed.wait(60)
            return other, found[0]

        return one, end, store

    return make


def assert_same_calls(one: Machine, other: Machine) -> None:
    assert len(one.calls) == len(other.calls) > 0
    for a, b in zip(one.calls, other.calls, strict=True):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)
            assert np.asarray(x).dtype == np.asarray(y).dtype


def test_all_processes_make_the_calls_of_the_first(two):
    one, end, _ = two()
    genome = ExpertGenome(jnp.array([0.5, 0.25]), {"layers/q": jax.random.normal(jax.random.key(0), (2, 3))})
    one.say("a", 1, None, [1, [2, 3]], stop_ids=(1, 2), share=0.5)
    weights = one.make(genome, scale=2.0)
    assert one.load(weights, donate=True) == 4
    one.make(CoefficientGenome(jnp.ones((2, 2))))
    one.say("last")  # deferred to the end
    other, code = end(7)
    assert code == 7
    one.calls[0] = ("say", ("a", 1, None, [1, [2, 3]]), {"stop_ids": [1, 2], "share": 0.5})  # tuples travel as lists
    assert_same_calls(one, other)
    assert one.calls[2] == ("load", [2.0, 2.0], True)


def test_weights_that_were_given_away_can_not_be_named(two):
    one, end, _ = two()
    genome = CoefficientGenome(jnp.ones((1, 2)))
    first = one.make(genome)
    one.load(first)
    one.load(first, donate=True)
    again = one.make(genome)
    one.load(again)
    assert one.mirror is not None
    assert one.mirror._made is again
    one.load(again, donate=True)
    assert one.mirror._made is None
    assert_same_calls(one, end()[0])


def test_a_failure_of_all_ends_none(two):
    one, end, _ = two()
    with pytest.raises(InputError):
        one.fail(True)
    one.say("on")
    other, code = end()
    assert code == 0
    assert_same_calls(one, other)


@pytest.mark.parametrize("here", [True, False])
def test_a_failure_of_one_ends_the_other(two, here):
    one, end, _ = two(fails=not here)
    if here:
        with pytest.raises(InputError):
            one.fail(False)
    else:
        assert one.mirror is not None
        one.mirror._pending.append({"on": "machine", "call": "fail", "with": [False], "options": {}, "makes": False})
        one.mirror._send()
    found = end()[1]
    assert isinstance(found, RuntimeError if here else InputError)


@pytest.mark.parametrize(("error", "raised"), [(MemoryError(), FailuresError), (OSError(28, "disk"), OSError)])
def test_an_error_of_a_machine_ends_the_run(two, error, raised):
    """The others may wait for it in a program of all devices: neither side waits for the next message."""
    one, end, _ = two()
    one.error = error
    with pytest.raises(raised, match="decrease engine.slots" if raised is FailuresError else "disk"):
        one.fail(False)
    end(3)
    one, _, store = two(fails=True)
    assert one.mirror is not None
    store.machines[1].error = error
    one.mirror._pending.append({"on": "machine", "call": "fail", "with": [False], "options": {}, "makes": False})
    one.mirror._send()
    store.followed.wait(20)
    assert type(store.found[0]) is raised


def test_an_error_that_process_0_does_not_have_ends_the_run_after_a_time(two, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    one, _, store = two(fails=True)
    assert one.mirror is not None
    one.mirror._pending.append({"on": "machine", "call": "fail", "with": [False], "options": {}, "makes": False})
    one.mirror._send()  # process 0 would wait now for the others in a program
    store.followed.wait(20)
    assert isinstance(store.found[0], InputError)


def test_a_failure_of_all_is_told_at_once(two):
    one, end, store = two()
    with pytest.raises(InputError):
        one.fail(True)
    assert json.loads(store.values["calls/1"]) == [{"failed": "InputError"}]
    assert end()[1] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_a_message_is_sent(two, monkeypatch, number):
    one, end, store = two()
    assert one.mirror is not None
    post = one.mirror.processes.post

    def interrupted(key, value):
        signal.raise_signal(number)
        post(key, value)

    class Interrupt(Exception):
        """As that of the handler of the command line."""

    def interrupt(*args):
        raise Interrupt

    before = signal.signal(number, interrupt)
    try:
        monkeypatch.setattr(one.mirror.processes, "post", interrupted)
        with pytest.raises(Interrupt):
            one.together()
        monkeypatch.setattr(one.mirror.processes, "post", post)
        assert list(store.values) == ["calls/0"]
        assert signal.getsignal(number) is interrupt
        store.program.wait(20)  # the other process makes the call that was sent
        assert end(75)[1] == 75
    finally:
        signal.signal(number, before)


def test_an_interrupt_of_the_first_process_is_none_of_the_others(two):
    one, end, _ = two()
    assert one.mirror is not None
    one.mirror._pending.append({"failed": "Stopped"})
    assert end(75)[1] == 75


def test_old_messages_are_removed(two, monkeypatch):
    monkeypatch.setattr(module, "_MEETING", 4)
    one, end, store = two()
    for i in range(11):
        one.make(CoefficientGenome(jnp.ones((1, 1))), scale=float(i))
    other, code = end()
    assert (len(other.calls), code) == (11, 0)
    assert len(store.values) == 4  # three since the last meeting, and the end
    assert_same_calls(one, other)


def test_all_processes_meet_before_a_call_that_waits_for_all_of_them(two, monkeypatch):
    monkeypatch.setattr(module, "_MEETING", 2)
    one, end, _ = two()
    for _ in range(5):
        one.together()
    assert end()[1] == 0


def test_numbers_of_numpy_are_sent(two):
    one, end, _ = two()
    one.make(CoefficientGenome(jnp.ones((1, 1))), scale=np.float32(0.5))
    one.say(np.int64(3), np.bool_(True), flag=jnp.ones(2, jnp.bfloat16))
    one.load({"weights": jnp.ones(1)})
    other, code = end()
    assert code == 0
    assert other.calls[0][2] == 0.5
    assert other.calls[1][1] == (3, True)


def test_without_a_mirror_methods_are_called_as_they_are():
    machine = Machine(None)
    assert machine.load(machine.make(CoefficientGenome(jnp.ones((1, 1)))), donate=True) == 3
