"""MBPP+ and HumanEval+: Python functions, judged as EvalPlus does on many more inputs than the benchmarks they extend.

Expected results are computed from the gold programs in the sandbox when a problem is first judged. Results are compared in
another process than the program's (``judges/calls.py``).
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any, Literal

from cycleqd_jax.sandbox import Limits
from cycleqd_jax.tasks.base import unprepared
from cycleqd_jax.tasks.coding.base import INSTRUCTION, FunctionRecord, FunctionTask
from cycleqd_jax.tasks.coding.evalplus_inputs import has_types, typed_inputs
from cycleqd_jax.tasks.judges import run_judge
from cycleqd_jax.tasks.judges.values import encode
from cycleqd_jax.tasks.options import TaskOptions
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.tasks.syntax import literal
from cycleqd_jax.types import Score

__all__ = ["EvalPlus", "EvalPlusRecord"]

_TIME_FACTOR = 4.0  # times the duration of the gold program's call
_MOST_SECONDS = 60.0  # of all calls with base inputs, and of all calls with plus inputs
_GOLD_TRIES = 2
_GOLD_SECONDS = 300.0
_GOLD_MEMORY_MB = 4096
_MEMORY_FACTOR = 2  # times the memory of the gold program
_START_SECONDS = 5.0
_REFERENCE_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class EvalPlusRecord(FunctionRecord):
    """One problem.

    Attributes:
        base: encoded arguments of each call in the tests of the original benchmark.
        plus: encoded arguments of each call that EvalPlus adds.
        atol: absolute tolerance of results; with 0, only floats have a tolerance.
        oracle: name of the function, if its results may be compared by a rule of their own; else None.
        fingerprint: fingerprint of the row.
    """

    base: tuple[Any, ...]
    plus: tuple[Any, ...]
    atol: float
    oracle: str | None
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class _Reference:
    """A replay of the gold program.

    Attributes:
        outputs: encoded results for the base and the plus inputs.
        times: seconds of each call, for the base and the plus inputs.
        peak_mb: peak memory of judge and program together.
    """

    outputs: tuple[str, str]
    times: tuple[list[float], list[float]]
    peak_mb: int


class EvalPlus(FunctionTask[EvalPlusRecord]):
    """Single-turn coding, judged by the rules of EvalPlus. Reads MBPP+ (v0.1.0, v0.2.0) and HumanEval+ (also mini) files.

    With ``tests="plus"`` a program has to be correct on base and plus inputs, with ``tests="base"`` on base inputs only. The
    reason of a score names the failed group, so that one run gives both figures (:meth:`measures`).
    """

    default_seconds = 4.0  # of each call

    def __init__(
        self,
        options: TaskOptions,
        *,
        prompt: Literal["chat", "brief"] = "chat",
        tests: Literal["plus", "base"] = "plus",
        version: Literal["v0.2.0", "v0.1.0"] = "v0.2.0",
    ) -> None:
        """Reads and checks all records.

        Args:
            options: the options that all tasks share. ``seconds`` limits each call; a call may always take four times as long
                as that of the gold program.
            prompt: ``"chat"`` is the prompt of EvalPlus, ``"brief"`` the problem alone.
            tests: the inputs on which a program has to be correct.
            version: version of MBPP+ whose prompts are used, for records that have the prompts of both.

        Raises:
            InputError: a file is missing or empty, or a record is malformed.
        """
        self.prompt = prompt
        self.tests = tests
        self.version = version
        self._references: dict[str, _Reference | str] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        super().__init__(options)

    def settings(self) -> dict[str, Any]:
        """Everything besides the records that affects prompts or verdicts."""
        own = {"prompt": self.prompt, "tests": self.tests, "version": self.version}
        return {**own, "limits": dataclasses.asdict(self.limits)}

    def parse(self, row: Row) -> EvalPlusRecord:
        """Parses a record in the format that EvalPlus published.

        For problems whose types are not listed in this package, ``base_input_repr`` and ``plus_input_repr`` may hold the inputs
        as Python literals.
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
        if row.fields.get(field) == {}:  # v0.1.0 and v0.2.0 write an empty list like this
            return ()
        inputs = row.get(field, list)
        try:
            if number is not None and has_types(number):
                inputs = typed_inputs(number, inputs)
            elif f"{field}_repr" in row.fields:
                field = f"{field}_repr"
                inputs = literal(row.text(field))
            return tuple(encode(list(arguments)) for arguments in inputs)
        except (ValueError, TypeError, SyntaxError, IndexError, AttributeError, RecursionError, MemoryError) as error:
            raise row.error(f"lists of arguments in field {field!r}", str(error)) from error

    def question(self, record: EvalPlusRecord) -> str:
        """The user message."""
        problem = record.prompt.strip()
        return problem if self.prompt == "brief" else f"{INSTRUCTION}\n```python\n{problem}\n```"

    def judge(self, record: EvalPlusRecord, code: str) -> tuple[Score, bool]:
        """Compares the results of the program with those of the gold program."""
        known = self._reference(record)
        if isinstance(known, str):
            return unprepared(record.id, known), False
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
        judged = run_judge(self.sandbox, "calls", {"code": code, "name": record.name}, secret, limits)
        if judged.verdict is None:
            return Score(0.0, judged.reason), False
        if judged.verdict["failed"] is None:
            return Score(1.0, "passed"), True
        place, number, reason = judged.verdict["failed"]
        before = "base passed, " if place == "plus test" else ""
        where = place if number is None else f"{place} {number}"
        settled = not judged.verdict["late"] and "ended before" not in reason
        return Score(0.0, f"{before}{where} failed: {reason}"), settled

    def measures(self, scores: Sequence[Score]) -> dict[str, float]:
        """pass@1 on the base inputs, and on base and plus inputs if both are judged."""
        if not scores:
            return {}
        plus = [score.value for score in scores]
        if self.tests == "base":
            return {"base": sum(plus) / len(plus)}
        base = [1.0 if score.reason.startswith("base passed") else score.value for score in scores]
        return {"base": sum(base) / len(base), "plus": sum(plus) / len(plus)}

    def _reference(self, record: EvalPlusRecord) -> _Reference | str:
        """What the gold program returns, or why that is not known."""
        with self._lock:
            lock = self._locks.setdefault(record.fingerprint, threading.Lock())
        with lock:
            if record.fingerprint not in self._references:
                self._references[record.fingerprint] = self._replay(record)
            return self._references[record.fingerprint]

    def _replay(self, record: EvalPlusRecord) -> _Reference | str:
        limits = dataclasses.replace(self._limits(_GOLD_SECONDS, _GOLD_MEMORY_MB), output_bytes=_REFERENCE_BYTES)
        secret = {"mode": "reference", "groups": [record.base, record.plus], "seconds": _GOLD_SECONDS}
        for _ in range(_GOLD_TRIES):
            judged = run_judge(self.sandbox, "calls", {"code": record.gold, "name": record.name}, secret, limits)
            if judged.verdict is not None and not judged.verdict["late"]:  # otherwise a busy machine may be the reason
                break
        if judged.verdict is None or judged.verdict["failed"] is not None:
            reason = judged.reason if judged.verdict is None else " ".join(map(str, judged.verdict["failed"]))
            return f"its gold program does not return for all inputs within {_GOLD_SECONDS:g} s: {reason}"
        (base, plus), (base_times, plus_times) = judged.verdict["outputs"], judged.verdict["times"]
        return _Reference((base, plus), (base_times, plus_times), judged.verdict["peak_mb"])

    def _limits(self, seconds: float, memory_mb: int) -> Limits:
        seconds += _START_SECONDS
        memory_mb = max(memory_mb, self.limits.memory_mb)
        return dataclasses.replace(self.limits, wall_s=seconds, cpu_s=seconds, memory_mb=memory_mb)
