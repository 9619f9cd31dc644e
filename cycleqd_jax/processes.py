"""The processes of a run whose models span several machines: how they find each other, and what they tell each other.

JAX's distributed service connects the processes and ends all of them where one ends. Its key-value store carries the messages.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import distributed  # the key-value store has no public name

from cycleqd_jax.types import InputError

__all__ = ["HEARTBEAT_S", "Processes", "join", "leave", "wait_for_loss"]

HEARTBEAT_S = 10
"""Seconds without a sign of life after which a process counts as ended."""

_PART = 1 << 20
"""Bytes of a value in the store; longer values are divided."""

_POLL_MS = 500


class Processes:
    """The processes of a run, in one of them.

    Attributes:
        index: the number of this process.
        count: the number of processes.
    """

    def __init__(self) -> None:
        """JAX's distributed service must be running; see :func:`join`."""
        self.index = jax.process_index()
        self.count = jax.process_count()

    def post(self, key: str, value: bytes) -> None:
        """Puts a value into the store; every key is used once.

        Args:
            key: the name of the value.
            value: any bytes.
        """
        parts = [value[i : i + _PART] for i in range(0, len(value), _PART)]
        for i, part in enumerate(parts):
            _client().key_value_set_bytes(f"cycleqd/{key}/{i}", part)
        _client().key_value_set_bytes(f"cycleqd/{key}/parts", str(len(parts)).encode())

    def read(self, key: str) -> bytes:
        """The value of a key; waits until it is there."""
        while (found := self.poll(key)) is None:
            pass
        return found

    def poll(self, key: str, milliseconds: int = _POLL_MS) -> bytes | None:
        """The value of a key; None where it is not there after these milliseconds."""
        try:
            count = int(_client().blocking_key_value_get_bytes(f"cycleqd/{key}/parts", milliseconds))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise
        parts = (_client().blocking_key_value_get_bytes(f"cycleqd/{key}/{i}", 60_000) for i in range(count))
        return b"".join(parts)

    def remove(self, key: str) -> None:
        """Removes a value that all processes have read."""
        _client().key_value_delete(f"cycleqd/{key}/")

    def meet(self, name: str, seconds: float = 600) -> None:
        """Waits until all processes are here.

        Args:
            name: of the place; every name is used once.
            seconds: after which an error is raised.
        """
        _client().wait_at_barrier(f"cycleqd/{name}", round(seconds * 1000))

    def agree(self, what: str, facts: Mapping[str, Any], advice: str) -> None:
        """Compares facts of this process with those of all others.

        All processes raise the same error.

        Args:
            what: the kind of the facts, such as ``digest of``; begins the message, and is used once.
            facts: JSON-ready, by name.
            advice: what to do where they differ.

        Raises:
            InputError: a process has other facts than process 0, or has failed before.
        """
        self.post(f"facts/{what}/{self.index}", json.dumps(facts).encode())
        told = [self._facts(what, i) for i in range(self.count)]
        for i, there in enumerate(told[1:], 1):
            for name in dict.fromkeys([*told[0], *there]):
                here, found = told[0].get(name, "nothing"), there.get(name, "nothing")
                if here != found:
                    raise InputError(f"expected {what} {name} {here}, as in process 0, got {found} in process {i}; {advice}")

    def _facts(self, what: str, index: int) -> dict[str, Any]:
        while (found := self.poll(f"facts/{what}/{index}")) is None:
            if (message := self.poll(f"failed/{index}", 1)) is not None:
                raise InputError(f"process {index} has failed: {message.decode()}")
        return json.loads(found)

    def fail(self, message: str) -> None:
        """Tells the others, which may wait for facts of this process, that it has failed."""
        self.post(f"failed/{self.index}", message.encode())


def join(coordinator: str | None, count: int | None, index: int | None, *, wait: int) -> Processes:
    """Starts JAX's distributed service, and waits for all processes. Nothing may have been computed before.

    Args:
        coordinator: ``host:port`` of process 0; None is what JAX finds in the environment (Slurm, Open MPI, …).
        count: the number of processes; None likewise.
        index: the number of this process, from 0; None likewise.
        wait: seconds to wait. JAX aborts a process that waits longer.

    Raises:
        InputError: the environment does not say what is None, or the numbers are impossible.
    """
    if (index is not None and index < 0) or (count is not None and (count < 1 or (index or 0) >= count)):
        raise InputError(
            f"expected --processes N of at least 1 and --process from 0 to N - 1, got {count} and {index}; correct them"
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise InputError(f"expected HOST:PORT as --coordinator, got {coordinator}; give process 0 a free port")
    # JAX would handle SIGTERM, with which a run ends after it has kept what is finished.
    jax.config.update("jax_enable_preemption_service", False)
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
            f"expected a scheduler that JAX knows, such as Slurm or Open MPI, got: {' '.join(str(error).split())}; give "
            "--coordinator, --processes and --process"
        ) from error
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason"])[0]
        raise InputError(
            f"expected to start JAX's distributed service at {coordinator or 'the address that JAX found'}, got: {reason}; "
            "choose another address or port"
        ) from error
    return Processes()


def leave() -> None:
    """Ends the distributed service, after all processes have come here or some seconds have passed."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process did not come
        jax.distributed.shutdown()


def wait_for_loss() -> None:
    """Waits until JAX has noticed the end of another process, and aborts this one; returns where all processes live."""
    time.sleep(HEARTBEAT_S + 5)


def _client() -> Any:
    client = distributed.global_state.client
    assert client is not None, "the distributed service runs"
    return client
