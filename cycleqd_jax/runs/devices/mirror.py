"""Calls that every process of a distributed run makes: the models are divided between all of them.

Process 0 leads. It alone has the run folder, the search, the episodes and the sandbox, so it alone decides what comes next. The
calls that compute on the divided models are mirrored: process 0 sends the method and its arguments to the others, and all call
it. All processes then run the same programs in the same order on the same values, as JAX requires.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from cycleqd_jax.evaluation import out_of_memory
from cycleqd_jax.genome import CoefficientGenome, ExpertGenome
from cycleqd_jax.interrupts import signals_held
from cycleqd_jax.processes import Processes
from cycleqd_jax.types import FailuresError, first_line

__all__ = ["Mirror", "mirrored"]

_MEETING = 256
"""Messages after which all processes meet, so that the messages before can be removed."""

_INTERRUPTS = ("KeyboardInterrupt", "Stopped")
"""What interrupts process 0 alone; it ends then."""

_FATAL = (jax.errors.JaxRuntimeError, MemoryError, OSError)
"""Errors of a machine, which the other processes need not have: they may wait for this one in a program of all devices."""

_PATIENCE_S = 300
"""Seconds after an error in another process in which process 0 must have it too. They differ by the time of a compilation."""

_GENOMES = {kind.__name__: kind for kind in (CoefficientGenome, ExpertGenome)}


class Mirror:
    """The calls of a distributed run, in one of its processes.

    Attributes:
        processes: the processes of the run.
    """

    def __init__(self, processes: Processes) -> None:
        """Args:
        processes: the processes of the run.
        """  # noqa: D205
        self.processes = processes
        self._objects: dict[str, Any] = {}
        self._inside = False
        self._made: object = None
        self._pending: list[dict[str, Any]] = []
        self._messages = 0
        self._error: BaseException | None = None

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        return self.processes.index == 0

    def register(self, name: str, target: Any) -> None:
        """Names an object whose methods are called in all processes."""
        self._objects[name] = target

    def call(
        self,
        name: str,
        method: Callable[..., Any],
        target: Any,
        arguments: tuple[Any, ...],
        options: Mapping[str, Any],
        *,
        makes: bool,
        deferred: bool,
    ) -> Any:
        """Calls a method here, and in process 0 also in all others; see :func:`mirrored`.

        Raises:
            FailuresError: the memory of this process has run out. The others may wait for it in a program of all devices, so
                the run ends.
        """
        if self._inside:
            return method(target, *arguments, **options)
        assert self.leads, "the others follow process 0"
        message = {"on": name, "call": method.__name__, "with": [self._encode(x) for x in arguments]}
        message["options"] = {key: self._encode(value) for key, value in options.items()}
        message["makes"] = makes
        self._pending.append(message)
        if not deferred:
            self._send()
        try:
            return self._run(message, functools.partial(method, target, *arguments, **options))
        except _FATAL as error:
            self._give_up(error, method.__name__)
        except BaseException as error:
            self._pending.append({"failed": type(error).__name__})
            if isinstance(error, Exception):
                self._send()  # those in which it failed too wait for it
            raise

    def _give_up(self, error: BaseException, call: str) -> NoReturn:
        """Ends the run after an error of this machine."""
        if not out_of_memory(error):
            raise error
        raise FailuresError(
            f"expected memory for {call} in process {self.processes.index}, got: {first_line(error, 300)}; decrease "
            "engine.slots, or divide the models between more devices"
        ) from error

    def _run(self, message: Mapping[str, Any], call: Callable[[], Any]) -> Any:
        """Makes a call; keeps what it makes, for the calls that follow, until it is donated."""
        if message["makes"]:
            self._made = None
        self._inside = True
        try:
            found = call()
        finally:
            self._inside = False
            if message["options"].get("donate"):
                self._made = None
        if message["makes"]:
            self._made = found
        return found

    def _send(self) -> None:
        """Sends all calls that have not been sent."""
        with signals_held():  # a message of which a part was sent could not be followed by another
            self._post()
            self._messages += 1
        self._meet()

    def _post(self) -> None:
        self.processes.post(f"calls/{self._messages}", json.dumps(self._pending).encode())
        self._pending = []

    def _meet(self) -> None:
        if self._messages % _MEETING == 0:
            self.processes.meet(f"calls/{self._messages}")
            if self.leads:
                for i in range(self._messages - _MEETING, self._messages):
                    self.processes.remove(f"calls/{i}")

    def end(self, code: int) -> None:
        """Ends :meth:`follow` in all other processes.

        Args:
            code: the exit code of process 0.
        """
        self._pending.append({"end": code})
        with signals_held():
            self._post()  # there is no meeting after it

    def follow(self) -> int:
        """Makes the calls of process 0 until it ends; returns its exit code.

        Raises:
            BaseException: a call raised it here, and raised nothing in process 0; or it is an error of this machine.
            FailuresError: the memory of this process has run out.
            PeerError: another process has ended.
        """
        while True:
            try:
                seconds = float("inf") if self._error is None else _PATIENCE_S
                calls = json.loads(self.processes.read(f"calls/{self._messages}", seconds))
            except TimeoutError:
                assert self._error is not None
                raise self._error from None
            if "end" not in calls[-1]:  # there is no meeting after the end
                self._messages += 1
                self._meet()  # before the calls, as process 0 does: a call may wait for this process
            for message in calls:
                if "failed" in message:
                    if self._error is None and message["failed"] not in _INTERRUPTS:
                        raise RuntimeError(
                            f"expected {message['failed']}, as in process 0, got no error in process {self.processes.index}; "
                            "start all processes again to continue"
                        )
                    self._error = None
                    continue
                if self._error is not None:
                    raise self._error
                if "end" in message:
                    return message["end"]
                target = self._objects[message["on"]]
                arguments = [self._decode(x) for x in message["with"]]
                options = {key: self._decode(value) for key, value in message["options"].items()}
                call = functools.partial(getattr(target, message["call"]), *arguments, **options)
                del arguments  # donated arrays must not be held here
                try:
                    self._run(message, call)
                except _FATAL as error:
                    self._give_up(error, message["call"])
                except Exception as error:  # process 0 has had it too, or this process ends
                    self._error = error
                del call

    def _encode(self, value: Any) -> Any:
        """A JSON value; what the last call made is named instead."""
        if self._made is not None and value is self._made:
            return {"made": True}
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, jax.Array | np.ndarray):
            array = np.asarray(value)
            content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
            return {"array": content, "dtype": str(array.dtype), "shape": array.shape}
        if type(value).__name__ in _GENOMES:
            return {"genome": type(value).__name__, "fields": {k: self._encode(v) for k, v in value._asdict().items()}}
        if isinstance(value, dict):
            return {"mapping": {key: self._encode(item) for key, item in value.items()}}
        if isinstance(value, list | tuple):
            return [self._encode(item) for item in value]
        assert value is None or isinstance(value, bool | int | float | str), type(value)
        return value

    def _decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "made" in value:
            assert self._made is not None, "what the last call made"
            return self._made
        if "array" in value:
            content = base64.b64decode(value["array"])
            return np.frombuffer(content, np.dtype(value["dtype"])).reshape(value["shape"])
        if "genome" in value:
            fields = {key: self._decode(item) for key, item in value["fields"].items()}
            genome = _GENOMES[value["genome"]](**fields)
            return jax.tree.map(jax.numpy.asarray, genome)
        return {key: self._decode(item) for key, item in value["mapping"].items()}


def mirrored(name: str, *, makes: bool = False, deferred: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A method that all processes of a distributed run call, each on its own object of a name.

    The object has the attribute ``mirror``; where that is None, only this process calls the method. Calls inside of the method
    are not mirrored again. Arguments are numbers, texts, arrays, genomes, lists and mappings of them, and what the last call
    with ``makes`` has made.

    Args:
        name: the name of the object; see :meth:`Mirror.register`.
        makes: the method makes weights, which following calls may take as an argument until one has ``donate``.
        deferred: the method computes nothing on the devices, and the others may call it later, with the next call.
    """

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            if self.mirror is None:
                return method(self, *arguments, **options)
            return self.mirror.call(name, method, self, arguments, options, makes=makes, deferred=deferred)

        return call

    return decorate
