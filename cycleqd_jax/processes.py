"""The processes of a run whose models span several machines: how they find each other, and the messages between them.

JAX's distributed service connects the processes and ends all of them where one ends. Its key-value store carries the messages.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cycleqd_jax.types import InputError, first_line

__all__ = ["HEARTBEAT_S", "End", "PeerError", "Processes", "check_shared", "join", "leave"]

HEARTBEAT_S = 10
"""Seconds without a sign of life after which a process counts as ended."""

_PART = 1 << 20
"""Bytes of a value in the store; longer values are divided."""

_SHORTEST_S, _LONGEST_S, _GROWTH = 0.001, 0.05, 1.25
"""Pauses between two polls of the store: each is longer than the one before, up to a limit."""

_MOST_WAIT_S = 86_400

_SHARED_S = 10
"""Seconds in which a new file of one machine must be seen by the others."""


class End(NamedTuple):
    """The first process of a run that ended with an error or was stopped.

    Attributes:
        process: its number.
        code: its exit code, with which all others end too.
        message: its error; empty where it was stopped.
    """

    process: int
    code: int
    message: str

    def __str__(self) -> str:
        if self.message:
            return f"process {self.process} of this run has failed: {self.message}"
        return f"process {self.process} of this run has ended with exit code {self.code}."


class PeerError(RuntimeError):
    """Another process of the run has ended.

    Attributes:
        end: how it did.
    """

    def __init__(self, end: End) -> None:
        """Args:
        end: how it did.
        """  # noqa: D205
        super().__init__(str(end))
        self.end = end


class Processes:
    """The processes of a run, in one of them.

    Attributes:
        index: the number of this process.
        count: the number of processes.
        ended: what :meth:`end` has found.
    """

    def __init__(self) -> None:
        """JAX's distributed service must be running; see :func:`join`."""
        self.index = jax.process_index()
        self.count = jax.process_count()
        self.ended: End | None = None

    def post(self, key: str, value: bytes) -> None:
        """Puts a value into the store; every key is used once.

        Args:
            key: the name of the value.
            value: any bytes.
        """
        parts = [value[i : i + _PART] for i in range(0, len(value), _PART)]
        for i, part in enumerate(parts):
            _set(f"cycleqd/{key}/{i}", part)
        _set(f"cycleqd/{key}/parts", str(len(parts)).encode())

    def read(self, key: str, seconds: float = float("inf")) -> bytes:
        """The value of a key; waits until it is there.

        Args:
            key: the name of the value.
            seconds: to wait at most.

        Raises:
            PeerError: :attr:`ended` was set before.
            TimeoutError: it is not there after these seconds.
        """
        for _ in _pauses(seconds):
            if (found := self.poll(key)) is not None:
                return found
            if self.ended is not None:
                raise PeerError(self.ended)
        raise TimeoutError(f"expected {key} within {seconds:g} s, got none; check that all processes still run")

    def poll(self, key: str) -> bytes | None:
        """The value of a key; None where it is not there yet."""
        count = _get(f"cycleqd/{key}/parts")
        if count is None:
            return None
        parts = [_get(f"cycleqd/{key}/{i}") for i in range(int(count))]
        return b"".join(part for part in parts if part is not None)

    def remove(self, key: str) -> None:
        """Removes a value that all processes have read."""
        _method("key_value_delete")(f"cycleqd/{key}/")

    def meet(self, name: str, seconds: float = 600) -> None:
        """Waits until all processes are here.

        Args:
            name: the name of the place; every name is used once.
            seconds: after which an error is raised.
        """
        _method("wait_at_barrier")(f"cycleqd/{name}", round(seconds * 1000))

    def agree(self, what: str, facts: Mapping[str, Any], advice: str) -> None:
        """Compares facts of this process with those of all others.

        All processes raise the same error.

        Args:
            what: the kind of the facts, such as ``digest of``; begins the message, and is used once.
            facts: JSON-ready, by name.
            advice: what to do where they differ.

        Raises:
            InputError: a process has other facts than process 0.
            PeerError: a process has ended before it had facts.
        """
        self.post(f"facts/{what}/{self.index}", json.dumps(facts).encode())
        facts_of = [self._facts(what, i) for i in range(self.count)]
        for i, there in enumerate(facts_of[1:], 1):
            for name in dict.fromkeys([*facts_of[0], *there]):
                here, found = facts_of[0].get(name, "nothing"), there.get(name, "nothing")
                if here != found:
                    raise InputError(f"expected {what} {name} {here}, as in process 0, got {found} in process {i}; {advice}")

    def _facts(self, what: str, index: int) -> dict[str, Any]:
        for _ in _pauses():
            end = self.end()  # before the facts: a process that has ended may have posted them before
            if (found := self.poll(f"facts/{what}/{index}")) is not None:
                return json.loads(found)
            if end is not None:
                raise PeerError(end)
        raise AssertionError

    def tell_end(self, code: int, message: str = "") -> End:
        """Reports to all others that this process ends, so that they end too; returns the first end that was reported.

        Args:
            code: the exit code; not 0.
            message: its error.
        """
        value = json.dumps([self.index, code, message[:10_000]]).encode()
        try:
            _set("cycleqd/end", value)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise
        found = self.end()
        assert found is not None
        return found

    def end(self) -> End | None:
        """The end that was reported first; None where no process has reported one."""
        if self.ended is None and (found := _get("cycleqd/end")) is not None:
            self.ended = End(*json.loads(found))
        return self.ended

    def ask_to_stop(self) -> None:
        """Asks process 0 to stop as after SIGTERM."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another has asked, or the service has ended
            _set("cycleqd/stop", str(self.index).encode())

    def asked_to_stop(self) -> bool:
        """Whether a process has called :meth:`ask_to_stop`."""
        return _get("cycleqd/stop") is not None


def check_shared(processes: Processes, folders: Mapping[str, Path]) -> None:
    """Checks that all processes have the same folders: process 0 writes a file into each, and the others look for it.

    Args:
        processes: the processes of the run.
        folders: by what they are; they exist in process 0.

    Raises:
        InputError: another process has other folders at these paths.
        OSError: process 0 can't write there.
    """
    leads = processes.index == 0
    written: list[Path] = []
    try:
        if leads:
            names = {what: f".shared-{secrets.token_hex(8)}" for what in folders}
            for what, folder in folders.items():
                written.append(folder / names[what])
                written[-1].touch()
            processes.post("shared", json.dumps(names).encode())
        names = json.loads(processes.read("shared"))
        until = time.monotonic() + _SHARED_S
        facts = {}
        for what, folder in folders.items():
            seen = any((folder / names[what]).exists() for _ in _pauses(until - time.monotonic()))
            facts[what] = str(folder) if leads or seen else f"another folder at {folder}"
        processes.agree(
            "the folder of", facts, "give a folder in a file system that all machines share, at the same path on all of them"
        )
    finally:
        for file in written:
            file.unlink(missing_ok=True)


def join(coordinator: str | None, count: int | None, index: int | None, *, wait: int) -> Processes:
    """Starts JAX's distributed service, and waits for all processes. Nothing may have been computed before.

    Args:
        coordinator: ``host:port`` of process 0; None is what JAX finds in the environment (Slurm, Open MPI, …).
        count: the number of processes; None is what JAX finds in the environment.
        index: the number of this process, from 0; None is what JAX finds in the environment.
        wait: seconds to wait, from 1 to a day. JAX aborts a process that waits longer.

    Raises:
        InputError: the environment does not have what is None, or the numbers are impossible; or this version of JAX lacks what
            is needed.
    """
    if (index is not None and index < 0) or (count is not None and (count < 1 or (index or 0) >= count)):
        raise InputError(
            f"expected --processes N of at least 1 and --process from 0 to N - 1, got {count} and {index}; correct them"
        )
    if not 1 <= wait <= _MOST_WAIT_S:
        raise InputError(f"expected --wait from 1 to {_MOST_WAIT_S} seconds, got {wait}; correct it")
    host, _, port = (coordinator or "found:1").rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise InputError(
            f"expected HOST:PORT with a port from 1 to 65535 as --coordinator, got {coordinator}; give process 0 a free port"
        )
    try:
        # JAX would handle SIGTERM, with which a run ends after it has kept what is finished.
        jax.config.update("jax_enable_preemption_service", False)
    except AttributeError as error:
        raise _without("the option jax_enable_preemption_service") from error
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=wait,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=HEARTBEAT_S,
        )
    except (ValueError, TypeError) as error:
        raise InputError(
            f"expected a scheduler that JAX supports, such as Slurm or Open MPI, got: {' '.join(str(error).split())}; give "
            "--coordinator, --processes and --process"
        ) from error
    except RuntimeError as error:
        raise InputError(
            f"expected to start JAX's distributed service at {coordinator or 'the address that JAX found'}, got: "
            f"{first_line(error)}; choose another address or port"
        ) from error
    return Processes()


def leave() -> None:
    """Ends the distributed service, after all processes have come here or some seconds have passed."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process did not come
        jax.distributed.shutdown()


def _pauses(seconds: float = float("inf")) -> Iterator[None]:
    """Yields at once, and then after pauses that become longer, until these seconds are over; at least once."""
    end, pause = time.monotonic() + seconds, _SHORTEST_S
    yield
    while time.monotonic() < end:
        time.sleep(pause)
        pause = min(_GROWTH * pause, _LONGEST_S)
        yield


def _set(key: str, value: bytes) -> None:
    _method("key_value_set_bytes")(key, value)


def _get(key: str) -> bytes | None:
    """The value of a key; None where it is not there. A get that blocks would leak 34 KB whenever its time is over."""
    try:
        return _method("key_value_try_get_bytes")(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def _method(name: str) -> Callable[..., Any]:
    """A method of the client of JAX's key-value store, which has no public name.

    Raises:
        InputError: this version of JAX has it no more.
    """
    where = "jax._src.distributed"
    try:
        client = importlib.import_module(where).global_state.client
        assert client is not None, "the distributed service runs"
        return getattr(client, name)
    except (ImportError, AttributeError) as error:
        raise _without(f"{where}.global_state.client.{name}") from error


def _without(name: str) -> InputError:
    return InputError(
        f"expected {name}, which --distributed needs, got JAX {jax.__version__} without it; install the version of JAX in "
        "constraints.txt"
    )
