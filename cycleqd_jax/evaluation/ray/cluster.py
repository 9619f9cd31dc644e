"""The cluster that workers run on: the only module that imports Ray."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from cycleqd_jax.evaluation.ray import host
from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import InputError, first_line

__all__ = ["Cluster", "RayCluster", "WorkerLost", "check_ray"]

CONNECT_S = 5.0
"""Seconds in which the head of a cluster must accept a connection."""

ANSWER_S = 10
"""Whole seconds in which the head of a cluster must answer, once Ray is imported."""


class WorkerLost(Exception):
    """The process of a worker has ended; the message has the reason.

    Attributes:
        process: whether the process itself died. Otherwise its machine or the network did, and what it evaluated is not the
            cause.
    """

    def __init__(self, reason: str, *, process: bool) -> None:
        super().__init__(reason)
        self.process = process


@runtime_checkable
class Cluster(Protocol):
    """Starts processes that run a :class:`~cycleqd_jax.evaluation.ray.Host`, and calls its methods."""

    def spawn(self, avoid: Collection[str]) -> Any:
        """A worker, whose process starts as soon as the cluster has the resources.

        Args:
            avoid: ids of nodes on which it must not start.
        """
        ...

    def call(self, worker: Any, method: str, *arguments: Any) -> Hashable:
        """Calls a method of the worker's ``Host``; returns the call, whose result comes later.

        Raises:
            InfraError: the cluster has no room for the arguments, in memory or on disk.
        """
        ...

    def wait(self, calls: Sequence[Hashable], seconds: float) -> list[Hashable]:
        """All calls that have ended, as soon as there is one; none after ``seconds``. With 0 seconds it does not wait."""
        ...

    def result(self, call: Hashable) -> Any:
        """The result of a call that has ended.

        Raises:
            WorkerLost: the worker has ended.
            Exception: what the method raised, with the traceback of the worker as a note.
        """
        ...

    def end(self, worker: Any, process: Mapping[str, Any] | None) -> None:
        """Ends a worker, also one that is stopped or hangs.

        Args:
            worker: what :meth:`spawn` returned.
            process: ``node``, ``pid`` and ``started`` of its process; None if it has not started.
        """
        ...

    def nodes(self) -> frozenset[str]:
        """The ids of the nodes that are alive and large enough for a worker."""
        ...

    def describe(self) -> str:
        """What a worker needs, and what the cluster has free, for messages."""
        ...

    def close(self) -> None:
        """Ends all workers; safe to call twice."""
        ...


def check_ray() -> None:
    """Checks that Ray is installed.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("expected Ray with ray.address, got no package ray; pip install 'cycleqd_jax[ray]'")


class RayCluster:
    """Workers as actors of a Ray cluster. They end with this process, however it ends."""

    def __init__(self, address: str, *, cpus: float, gpus: float) -> None:
        """Connects.

        Args:
            address: ``host:port`` of the head, or ``auto`` for the cluster that this machine is part of.
            cpus: cores per worker.
            gpus: GPUs per worker.

        Raises:
            InputError: Ray is not installed, the cluster can't be reached, or this process is connected to another one.
        """
        check_ray()
        _check_reachable(address)
        import ray
        from ray import cloudpickle

        self._cpus, self._gpus = cpus, gpus
        self._owns = not ray.is_initialized()
        if not self._owns:
            _check_connected(address, ray.get_runtime_context().gcs_address)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            _check_answers(address)
            with _kept_handlers():
                try:
                    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
                except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
                    raise _unreachable(address, first_line(error).rstrip(".")) from error
        # Sent by value, so that also a machine without this package says which one it is.
        cloudpickle.register_pickle_by_value(host)
        self._actor = ray.remote(host.ActorHost)

    def spawn(self, avoid: Collection[str]) -> Any:
        """See :class:`Cluster`."""
        where = {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"}} if avoid else {}
        return self._actor.options(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0, **where).remote()

    def call(self, worker: Any, method: str, *arguments: Any) -> Hashable:
        """See :class:`Cluster`."""
        from ray.exceptions import ObjectStoreFullError, OutOfDiskError

        try:
            return getattr(worker, method).remote(*arguments)
        except (ObjectStoreFullError, OutOfDiskError) as error:  # the second where Ray can't spill to the disk either
            raise InfraError(
                f"expected room for a genome in the object store of Ray, got {type(error).__name__}: "
                f"{first_line(error).rstrip('.')}; start Ray with a larger --object-store-memory, or free space on its disk"
            ) from error

    def wait(self, calls: Sequence[Hashable], seconds: float) -> list[Hashable]:
        """See :class:`Cluster`."""
        import ray

        some = [cast("ray.ObjectRef[object]", call) for call in calls]
        if not some:
            time.sleep(seconds)
            return []
        # A result counts as soon as it exists: it need not be on this machine yet.
        done = ray.wait(some, num_returns=1, timeout=seconds, fetch_local=False)[0]
        return list(ray.wait(some, num_returns=len(some), timeout=0, fetch_local=False)[0] if done else done)

    def result(self, call: Hashable) -> Any:
        """See :class:`Cluster`."""
        import ray
        from ray.exceptions import ActorUnavailableError, ObjectLostError, RayError, RayTaskError

        try:
            return ray.get(cast("ray.ObjectRef[object]", call))
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            cause.add_note(re.sub(r"\x1b\[[0-9;]*m", "", str(error)))  # without colours
            raise cause from None
        except ActorUnavailableError as error:
            raise WorkerLost(f"no connection: {_reason(error)}", process=False) from error
        except RayError as error:
            machine = isinstance(error, ObjectLostError) or "node has died" in str(error) or "node died" in str(error)
            raise WorkerLost(_reason(error), process=not machine) from error

    def end(self, worker: Any, process: Mapping[str, Any] | None) -> None:
        """See :class:`Cluster`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray.kill(worker, no_restart=True)
        if process is None or process["node"] not in self.nodes():
            return
        # Ray asks a process to end, and a stopped process does not answer: it would keep its memory and its GPU.
        there = NodeAffinitySchedulingStrategy(node_id=process["node"], soft=False)
        task = ray.remote(host.kill_process).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        task.remote(process["pid"], process["started"])

    def nodes(self) -> frozenset[str]:
        """See :class:`Cluster`."""
        import ray

        def is_large(resources: Mapping[str, float]) -> bool:
            return resources.get("CPU", 0.0) >= self._cpus and resources.get("GPU", 0.0) >= self._gpus

        return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"] and is_large(node["Resources"]))

    def describe(self) -> str:
        """See :class:`Cluster`."""
        import ray

        free = ray.available_resources()
        names = ["CPU", *(["GPU"] if self._gpus else [])]
        shown = ", ".join(f"{free.get(name, 0.0):g} {name}" for name in names)
        needs = ", ".join(f"{count:g} {name}" for name, count in zip(names, (self._cpus, self._gpus), strict=False))
        return f"a worker needs {needs}; {shown} are free, and {len(self.nodes())} nodes are large enough"

    def close(self) -> None:
        """See :class:`Cluster`."""
        import ray

        if self._owns and ray.is_initialized():
            with _kept_handlers():
                ray.shutdown()


@contextlib.contextmanager
def _kept_handlers() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_reachable(address: str) -> None:
    """Raises where nothing accepts connections at ``host:port``: Ray itself tries for a minute."""
    if address == "auto":
        return
    name, _, port = address.rpartition(":")
    if not name or not port.isdigit():
        raise InputError(f"expected ray.address to be auto or host:port, got {address!r}; correct it")
    try:
        socket.create_connection((name, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


_ASK = """
import signal, sys
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient
signal.alarm(int(sys.argv[2]))
address = canonicalize_bootstrap_address(sys.argv[1])
if address is not None:
    GcsClient(address=address)
"""
"""Asks the head for the id of its cluster. SIGALRM ends the process, because Ray itself tries for a minute or longer."""


def _check_answers(address: str) -> None:
    """Raises where a program accepts connections at an address, but does not answer as the head of a cluster does."""
    command = [sys.executable, "-c", _ASK, address, str(ANSWER_S)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode == -signal.SIGALRM:
        raise _unreachable(address, f"no answer of Ray within {ANSWER_S} s")
    if done.returncode != 0:
        raise _unreachable(address, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].rstrip("."))


def _check_connected(address: str, connected: str) -> None:
    """Raises where a process that is connected to one cluster names another one."""
    if address == "auto":
        return
    (name, _, port), (known, _, known_port) = address.rpartition(":"), connected.rpartition(":")
    with contextlib.suppress(OSError):
        name, known = socket.gethostbyname(name), socket.gethostbyname(known)
    if port != known_port or (name != known and not name.startswith("127.")):
        raise InputError(
            f"expected ray.address {connected}, to which this process is connected, got {address}; call ray.shutdown() first"
        )


def _unreachable(address: str, reason: str) -> InputError:
    return InputError(
        f"expected the head of a Ray cluster at ray.address {address}, got: {reason}; start it with `ray start --head`, and "
        "run this command on a machine of the cluster"
    )


_REASONS = ("The actor is dead because", "The actor died because")
"""The beginnings of the lines in which Ray reports why an actor has ended."""


def _reason(error: BaseException) -> str:
    """Why a worker has ended, in one line: Ray lists facts about the actor first."""
    from ray.exceptions import OutOfMemoryError

    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith(_REASONS) or "Error:" in line]
    found = (reasons or lines or [type(error).__name__])[-1 if "creation task" in text else 0]
    if isinstance(error, OutOfMemoryError) or "memory monitor" in text or "OOM" in text.split("Some common causes")[0]:
        found = f"out of memory: {found}"
    return found.split(" Some common causes include")[0][:300].rstrip(".")
