"""Judges a program by the results of its function, in a process that does not run the program. Runs in the sandbox.

The program's process receives arguments, calls the function and sends the result; both are encoded as data (``values``). Only
the judge knows the expected results, and the program can't change how results are compared.

The job contains ``code`` and the ``name`` of the function. The ``mode`` in the secret is one of:

* ``reference``: calls the function with all inputs within ``seconds``; the verdict contains ``outputs`` and ``times``.
* ``compare``: calls the function with the inputs of all ``groups``, each with ``inputs``, ``expected`` (outputs of a reference)
  and ``limits`` (seconds of each call), and compares by ``oracle`` and ``atol``.
* ``check``: executes ``setup`` and ``test`` in the judge's process, and ``check(f)``, where f calls the program's function.

The verdict contains ``failed``, which is None or [name, number or None, reason], and ``late``, whether a time limit was
exceeded.
"""

import base64
import json
import linecache
import math
import sys
import time
import traceback
import types
import zlib
from typing import Any

from cycleqd_jax.tasks.judges.inside import Ended, Late, describe, run_judge
from cycleqd_jax.tasks.judges.oracles import agrees
from cycleqd_jax.tasks.judges.values import decode, encode

__all__ = []

_LONGEST_GROUP = 60.0  # time limit of all calls of a group in seconds, the default of EvalPlus


class Failed(Exception):
    """The program's function raised an exception, or its result can't be encoded."""


def program(link, job):
    """Loads the program, then answers calls until the judge ends the process."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(job["code"], "<program>", "exec", optimize=0), module.__dict__)
    except BaseException as error:
        link.send({"error": describe(error)})
        return
    if job["name"] not in module.__dict__:
        link.send({"error": f"NameError: there is no {job['name']}"})
        return
    function = module.__dict__[job["name"]]
    link.send({"value": None})
    while True:
        request = link.receive()
        if request == ["peak", ["d"]]:
            link.send({"value": peak()})
            continue
        arguments, named = map(decode, request)
        try:
            answer = {"value": encode(function(*arguments, **named))}
        except BaseException as error:
            answer = {"error": describe(error)}
        try:
            link.send(answer)
        except (ValueError, RecursionError) as error:
            link.send({"error": describe(error)})


def ask(link, end, arguments=None, named=None) -> Any:
    """The encoded result of a call; without arguments, waits until the program is loaded."""
    if arguments is not None:
        link.send([arguments, named or ["d"]], end)
    answer = link.receive(end)
    if not isinstance(answer, dict):
        raise Ended
    if "error" in answer:
        raise Failed(str(answer["error"])[:200])
    return answer.get("value")


def peak():
    """Peak address space of this process in megabytes; 0 if it is unknown."""
    try:
        with open("/proc/self/status") as file:
            return max(int(line.split()[1]) >> 10 for line in file if line.startswith("VmPeak:"))
    except (OSError, ValueError):
        return 0


def judge(link, job, secret):
    """The verdict."""
    place = ["program", None]
    late = False
    try:
        return {**MODES[secret["mode"]](link, place, secret), "failed": None, "late": False}
    except Late:
        reason, late = "timed out", True
    except Ended:
        reason = "the program ended before the verdict"
    except (Failed, AssertionError) as error:
        reason = str(error)
    except BaseException as error:  # the comparison itself failed
        reason = describe(error)
    return {"failed": [*place, reason], "late": late}


def reference(link, place, secret):
    """The outputs and the times of the gold program, per group."""
    end = time.monotonic() + secret["seconds"]
    ask(link, end)
    outputs, times = [], []
    for inputs in secret["groups"]:
        returned, took = [], []
        for number, arguments in enumerate(inputs, 1):
            place[:] = "input", number
            began = time.monotonic()
            returned.append(ask(link, end, arguments))
            took.append(round(time.monotonic() - began, 4))
        outputs.append(base64.b64encode(zlib.compress(json.dumps(returned).encode(), 1)).decode())
        times.append(took)
    return {"outputs": outputs, "times": times, "peak_mb": peak() + ask(link, end, "peak")}


def compare(link, place, secret):
    """Compares the program's results with the expected ones."""
    loaded = False
    for group in secret["groups"]:
        atol = secret["atol"]
        expectations = json.loads(zlib.decompress(base64.b64decode(group["expected"])))
        end = time.monotonic() + min(_LONGEST_GROUP, sum(group["limits"])) + 1.0
        if not loaded:
            ask(link, end)
            loaded = True
        for number, arguments in enumerate(group["inputs"], 1):
            place[:] = f"{group['name']} test", number
            limit = time.monotonic() + group["limits"][number - 1]
            output = decode(ask(link, min(end, limit), arguments))
            expected = decode(expectations[number - 1])
            good, atol = agrees(secret["oracle"], lambda a=arguments: decode(a), output, expected, atol)
            if not good:
                raise AssertionError(f"returned {shown(output)}, expected {shown(expected)}")
    return {}


def check(link, place, secret):
    """Runs the test function of the benchmark."""
    ask(link, None)

    def candidate(*arguments, **named):
        return decode(ask(link, None, encode(list(arguments)), encode(named)))

    place[:] = "check", None
    tests: dict[str, Any] = {"__name__": "tests"}
    exec(compile(secret["setup"], "<setup>", "exec", optimize=0), tests)
    linecache.cache["<test>"] = len(secret["test"]), None, secret["test"].splitlines(True), "<test>"
    exec(compile(secret["test"], "<test>", "exec", optimize=0), tests)
    try:
        tests["check"](candidate)
    except (Late, Ended):
        raise
    except BaseException as error:
        lines = [frame.line or "" for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<test>"]
        reason = str(error) if isinstance(error, Failed) else describe(error)
        raise AssertionError(f"{' '.join(lines[-1:])[:200]}: {reason}") from error
    return {}


def shown(value):
    """A value as a short text."""
    text = f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


MODES = {"reference": reference, "compare": compare, "check": check}

if __name__ == "judge":
    run_judge(program, judge)
