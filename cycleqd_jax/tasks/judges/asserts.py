"""Judges a program by asserts that run in the program's process. Runs in the sandbox.

The job contains ``code``, ``setup``, ``imports`` (texts), ``asserts`` (a list of texts) and ``names`` (the names of the program
that the asserts may use). The verdict contains ``passed`` and ``error``.

Before each assert, the judge sends the program's process a fresh token, which must be returned after the assert has held. A
program that exits early, prints or kills processes can't return it. Asserts see only the original built-ins and the named
functions. They call ``__plain__`` on their operands, which refuses values with an equality of their own. After each assert,
what it sees must be the same as before: a call may change it through the frames above it, or in a module. Not prevented: a
program that knows this file, and finds the socket among its open files and answers on it during an assert, changes local
variables of the frames above it, or takes its changes back before the assert ends.
"""

import builtins
import contextlib
import os
import sys
import types

from cycleqd_jax.tasks.judges.equality import Forged, changed, plain, remember, remember_check
from cycleqd_jax.tasks.judges.inside import Ended, describe, run_judge

__all__ = []


def program(link, job):
    """Runs the program and then the asserts, up to the first one that fails."""
    stage = "program"
    pristine = dict(vars(builtins))
    tests = {"__name__": "tests", "__builtins__": dict(pristine), "__plain__": plain}
    try:
        compiled = tuple(compile(text, f"<assert {n}>", "exec", optimize=0) for n, text in enumerate(job["asserts"], 1))
        exec(compile(job["imports"], "<imports>", "exec"), tests)
        modules = [(vars(m), dict(vars(m))) for m in tests.values() if type(m) is type(builtins)]
        module = types.ModuleType("program")
        sys.modules["program"] = module
        namespace = module.__dict__
        exec(compile(job["code"], "<program>", "exec", optimize=0), namespace)
        stage = "setup"
        exec(compile(job["setup"], "<setup>", "exec"), namespace)
        for current, before in [(vars(builtins), pristine), *modules]:
            current.update(before)
        tests.update((name, namespace[name]) for name in job["names"] if name in namespace)
        seen = [tests, tests["__builtins__"], vars(builtins), *(current for current, _ in modules)]
        before, check, known = remember(seen, is_fixed), remember_check(), set(tests)
        is_changed = changed  # a local name, which is not among the names of this file that frames show
        for number, code in enumerate(compiled, 1):
            stage = f"assert {number}"
            link.send("?")
            token = link.receive()
            exec(code, tests)
            if is_changed(before) or is_changed(check) or any(name in pristine and name not in known for name in tests):
                raise Forged("the built-ins, a module or the names of the asserts were changed")
            link.send(token)
    except BaseException as error:
        with contextlib.suppress(Ended):
            link.send([stage, describe(error)])


def is_fixed(name, value):
    """Whether a call must not bind the name to another value. Other values may change, such as ``sys.stdout``."""
    return callable(value) or isinstance(value, (types.ModuleType, int, float, str))


def judge(link, job, secret):
    """Counts the asserts that held; ``error`` is None if the program ended before the verdict."""
    passed, error = 0, None
    with contextlib.suppress(Ended, ValueError, TypeError):
        for _ in job["asserts"]:
            token = os.urandom(16).hex()
            answer = link.receive()
            if answer == "?":
                link.send(token)
                answer = link.receive()
            if answer != token:
                stage, text = answer
                error = [str(stage)[:40], str(text)[:200]]
                break
            passed += 1
    return {"passed": passed, "error": error}


if __name__ == "judge":
    run_judge(program, judge)
