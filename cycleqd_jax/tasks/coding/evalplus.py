"""MBPP+ and HumanEval+: Python functions, judged as EvalPlus does on many more inputs than the benchmarks they extend.

Expected results are those of the gold programs, computed in the sandbox when a problem is first judged. Programs and
comparisons are kept apart (``judges/calls.py``).
"""

from __future__ import annotations

import ast
import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from cycleqd_jax.sandbox import Limits, Sandbox
from cycleqd_jax.tasks.base import one_of
from cycleqd_jax.tasks.coding.base import INSTRUCTION, CodingTask, FunctionRecord
from cycleqd_jax.tasks.judges import preside
from cycleqd_jax.tasks.judges.values import encode
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.types import InputError, Score

__all__ = ["EvalPlus", "EvalPlusRecord", "typed_inputs"]

_TIME_FACTOR = 4.0  # a call may take so many times as long as the gold program's
_MOST_SECONDS = 60.0  # all calls with base inputs, and all with plus inputs
_GOLD_SECONDS = 300.0
_GOLD_MEMORY_MB = 4096
_MEMORY_FACTOR = 2  # a program may take so many times as much as the gold program
_START_SECONDS = 5.0
_REFERENCE_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class EvalPlusRecord(FunctionRecord):
    """One problem.

    Attributes:
        base: arguments of each call of the benchmark's own tests, as the judge takes them.
        plus: arguments of each call that EvalPlus adds.
        atol: absolute tolerance of results; 0 for none, but for floats.
        oracle: the function's name, where its results may be compared by a rule of their own.
        fingerprint: of the row it was read from.
    """

    base: tuple[Any, ...]
    plus: tuple[Any, ...]
    atol: float
    oracle: str | None
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class _Reference:
    """What the gold program returns for base and plus inputs, the seconds of each call, and the memory it takes to judge it."""

    outputs: tuple[str, str]
    times: tuple[list[float], list[float]]
    peak_mb: int


class EvalPlus(CodingTask[EvalPlusRecord]):
    """Single-turn coding, judged by EvalPlus's rules. Reads MBPP+ (v0.1.0, v0.2.0) and HumanEval+ (also mini) files.

    With ``tests: plus`` a program has to be right on base and plus inputs, with ``tests: base`` on base inputs only. The reason
    of a score says which it failed, so that one run has both figures (:meth:`measures`).
    """

    def __init__(
        self,
        *,
        sandbox: Sandbox,
        name: str = "evalplus",
        max_new_tokens: int = 512,
        train: str | Path | None = None,
        test: str | Path | None = None,
        data: str | Path | None = None,
        prompt: Literal["chat", "brief"] = "chat",
        tests: Literal["plus", "base"] = "plus",
        version: Literal["v0.2.0", "v0.1.0"] = "v0.2.0",
        seconds: float = 4.0,
        memo: bool = True,
        cache: str | Path | None = None,
        workers: int = 4,
    ) -> None:
        """Reads and checks all records (see :class:`~cycleqd_jax.tasks.base.RecordTask` for the options not listed here).

        Args:
            sandbox: where programs run.
            name: as in configs, journals and tables.
            max_new_tokens: most tokens a reply may have.
            train: file with the records the search may see.
            test: file with the records to report on.
            data: instead of both, one file to be split evenly.
            prompt: ``"chat"`` asks as EvalPlus does, ``"brief"`` gives the problem and nothing else.
            tests: which inputs a program has to be right on.
            version: of MBPP+, where a record has the prompts of both.
            seconds: least time limit of each call; where the gold program takes more than a quarter of it, four times that.
            memo: whether verdicts are remembered.
            cache: folder where demonstrations are kept, or None.
            workers: threads that replay demonstrations.

        Raises:
            InputError: for an unknown option, a missing or empty file, or a malformed record.
        """
        self.prompt = one_of(name, "prompt", prompt, ("chat", "brief"))
        self.tests = one_of(name, "tests", tests, ("plus", "base"))
        self.version = one_of(name, "version", version, ("v0.2.0", "v0.1.0"))
        self._references: dict[str, _Reference] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        super().__init__(
            sandbox=sandbox,
            name=name,
            max_new_tokens=max_new_tokens,
            train=train,
            test=test,
            data=data,
            seconds=seconds,
            memo=memo,
            cache=cache,
            workers=workers,
        )
        self.seconds = self.limits.wall_s

    def options(self) -> dict[str, Any]:
        """What decides about prompts and verdicts."""
        own = {"prompt": self.prompt, "tests": self.tests, "version": self.version}
        return {**own, "limits": dataclasses.asdict(self.limits)}

    def parse(self, row: Row) -> EvalPlusRecord:
        """A record as EvalPlus publishes it.

        For problems whose types are not known here, ``base_input_repr`` and ``plus_input_repr`` may have the inputs in Python.
        """
        identity = row.text("task_id")
        dataset, _, number = identity.partition("/")
        if dataset not in ("Mbpp", "HumanEval") or not number.isdigit():
            raise row.error("a task_id such as 'Mbpp/2' or 'HumanEval/2'", repr(identity))
        prompt = row.text("prompt")
        gold = prompt + row.text("canonical_solution")
        if dataset == "Mbpp" and self.version == "v0.1.0":
            prompt = row.text("prompt_v0_1_0", prompt)
        atol = row.fields.get("atol")
        if not isinstance(atol, int | float) or isinstance(atol, bool) or not 0 <= atol < 1:
            raise row.error("a tolerance in field 'atol'", repr(atol))
        name = row.text("entry_point")
        base, plus = (self._inputs(row, field, int(number) if dataset == "Mbpp" else None) for field in ("base", "plus"))
        if not base:
            raise row.error("at least one input in field 'base_input'", "none")
        oracle = name if (dataset == "Mbpp") != (name == "find_zero") else None
        return EvalPlusRecord(identity, prompt, name, gold, base, plus, float(atol), oracle, row.fingerprint)

    def _inputs(self, row: Row, group: str, number: int | None) -> tuple[Any, ...]:
        field = f"{group}_input"
        if row.fields.get(field) == {}:  # as v0.1.0 and v0.2.0 have it where there are none
            return ()
        inputs = row.get(field, list)
        try:
            if number in _TYPES:
                inputs = typed_inputs(number, inputs)
            elif f"{field}_repr" in row.fields:
                field = f"{field}_repr"
                inputs = ast.literal_eval(row.text(field))
            return tuple(encode(list(arguments)) for arguments in inputs)
        except (ValueError, TypeError, SyntaxError, IndexError, AttributeError, RecursionError) as error:
            raise row.error(f"lists of arguments in field {field!r}", str(error)) from error

    def question(self, record: EvalPlusRecord) -> str:
        """The user's message."""
        problem = record.prompt.strip()
        return problem if self.prompt == "brief" else f"{INSTRUCTION}\n```python\n{problem}\n```"

    def judge(self, record: EvalPlusRecord, code: str) -> tuple[Score, bool]:
        """Compares what the program returns with what the gold program does."""
        known = self._reference(record)
        groups = [
            {
                "name": name,
                "inputs": inputs,
                "expected": known.outputs[number],
                "limits": [max(self.seconds, _TIME_FACTOR * time) for time in known.times[number]],
            }
            for number, (name, inputs) in enumerate({"base": record.base, "plus": record.plus}.items())
            if name == "base" or self.tests == "plus"
        ]
        seconds = sum(min(_MOST_SECONDS, sum(group["limits"])) + 1.0 for group in groups)
        limits = self._limits(seconds, _MEMORY_FACTOR * known.peak_mb)
        secret = {"mode": "compare", "groups": groups, "atol": record.atol, "oracle": record.oracle}
        ruling = preside(self.sandbox, "calls", {"code": code, "name": record.name}, secret, limits)
        if ruling.verdict is None:
            return Score(0.0, ruling.reason), False
        if ruling.verdict["failed"] is None:
            return Score(1.0, "passed"), True
        place, number, reason = ruling.verdict["failed"]
        before = "base passed, " if place == "plus test" else ""
        where = place if number is None else f"{place} {number}"
        settled = not ruling.verdict["late"] and "ended before" not in reason
        return Score(0.0, f"{before}{where} failed: {reason}"), settled

    def measures(self, scores: Sequence[Score]) -> dict[str, float]:
        """pass@1 on the base inputs and, where they are judged, on base and plus inputs."""
        if not scores:
            return {}
        plus = [score.value for score in scores]
        if self.tests == "base":
            return {"base": sum(plus) / len(plus)}
        base = [1.0 if score.reason.startswith("base passed") else score.value for score in scores]
        return {"base": sum(base) / len(base), "plus": sum(plus) / len(plus)}

    def _reference(self, record: EvalPlusRecord) -> _Reference:
        with self._lock:
            lock = self._locks.setdefault(record.fingerprint, threading.Lock())
        with lock:
            if record.fingerprint not in self._references:
                self._references[record.fingerprint] = self._replay(record)
            return self._references[record.fingerprint]

    def _replay(self, record: EvalPlusRecord) -> _Reference:
        limits = dataclasses.replace(self._limits(_GOLD_SECONDS, _GOLD_MEMORY_MB), output_bytes=_REFERENCE_BYTES)
        secret = {"mode": "reference", "groups": [record.base, record.plus], "seconds": _GOLD_SECONDS}
        ruling = preside(self.sandbox, "calls", {"code": record.gold, "name": record.name}, secret, limits)
        if ruling.verdict is None or ruling.verdict["failed"] is not None:
            reason = ruling.reason if ruling.verdict is None else " ".join(map(str, ruling.verdict["failed"]))
            raise InputError(
                f"task {self.name!r}: expected the gold program of {record.id} to return for all inputs within "
                f"{_GOLD_SECONDS:g} s, got: {reason}; mend or remove the record"
            )
        verdict = ruling.verdict
        return _Reference(verdict["outputs"], verdict["times"], verdict["peak_mb"])

    def _limits(self, seconds: float, memory_mb: int) -> Limits:
        seconds += _START_SECONDS
        memory_mb = max(memory_mb, self.limits.memory_mb)
        return dataclasses.replace(self.limits, wall_s=seconds, cpu_s=seconds, memory_mb=memory_mb)


def typed_inputs(number: int, inputs: Sequence[Any]) -> list[Any]:
    """The inputs of a problem of MBPP+ with the types that JSON has lost.

    Args:
        number: of the problem.
        inputs: lists of arguments as in the published file.

    Raises:
        ValueError, TypeError, IndexError, AttributeError: they are not shaped as that problem's.
    """
    restore = _TYPES.get(number)
    return list(inputs) if restore is None else [restore(list(arguments)) for arguments in inputs]


def _tuples(arguments: list[Any]) -> list[Any]:
    return [tuple(argument) for argument in arguments]


def _lists_of_tuples(arguments: list[Any]) -> list[Any]:
    return [[tuple(item) for item in argument] for argument in arguments]


def _tuples_of_tuples(arguments: list[Any]) -> list[Any]:
    return [tuple(tuple(item) for item in argument) for argument in arguments]


def _tuple_of_mixed(arguments: list[Any]) -> list[Any]:
    return [tuple(tuple(item) if isinstance(item, list) else item for item in argument) for argument in arguments]


def _first_lists_tuples(arguments: list[Any]) -> list[Any]:
    return [[tuple(item) for item in arguments[0]], *arguments[1:]]


def _first_tuple(arguments: list[Any]) -> list[Any]:
    return [tuple(arguments[0]), *arguments[1:]]


def _second_tuple(arguments: list[Any]) -> list[Any]:
    return [arguments[0], tuple(arguments[1])]


def _all_tuples(value: Any) -> Any:
    return tuple(map(_all_tuples, value)) if isinstance(value, list) else value


def _list_of_sets(arguments: list[Any]) -> list[Any]:
    # EvalPlus empties the dictionaries as well, and then a function that always returns True is right.
    return [[(set(item) if item else {}) if isinstance(item, list) else item for item in arguments[0]]]


def _dict_of_tuples(arguments: list[Any]) -> list[Any]:
    return [{key: tuple(value) for key, value in arguments[0].items()}, *arguments[1:]]


_TYPES: dict[int, Callable[[list[Any]], Any]] = {
    **dict.fromkeys(
        (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809), _tuples
    ),
    **dict.fromkeys((63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780), _lists_of_tuples),
    **dict.fromkeys((75, 413, 444, 753), _first_lists_tuples),
    **dict.fromkeys((106, 750), _second_tuple),
    **dict.fromkeys((250, 307, 405, 446, 617, 720, 763, 808), _first_tuple),
    **dict.fromkeys((259, 401, 445), _tuples_of_tuples),
    **dict.fromkeys((580, 615, 791), _all_tuples),
    115: _list_of_sets,
    124: lambda arguments: [float(arguments[0]), complex(arguments[1])],
    252: lambda arguments: [complex(arguments[0])],
    278: _tuple_of_mixed,
    722: _dict_of_tuples,
}
