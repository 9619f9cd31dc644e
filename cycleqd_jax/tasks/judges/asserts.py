"""Judges a program by asserts that are executed beside it. Runs in the sandbox.

The job has ``code``, ``setup``, ``imports`` (texts), ``asserts`` (list of texts) and ``names`` (which of the program's names
the asserts may use); the verdict has ``passed`` and ``error``.

Before each assert the program's process is sent a fresh token that it has to return when the assert held: leaving early,
printing or killing proves nothing. Asserts see pristine built-ins and the named functions only, and call ``__plain__`` on what
they compare, which refuses results whose equality is the program's own. What this does not stop: a program that knows this
file, finds the socket among its open files and answers on it from within an assert.
"""

import builtins
import contextlib
import os

from cycleqd_jax.tasks.judges.equality import plain
from cycleqd_jax.tasks.judges.inside import Ended, describe, preside

__all__ = []


def program(link, job):
    """Runs the program, then assert after assert for as long as they hold."""
    stage = "program"
    pristine = dict(vars(builtins))
    tests = {"__name__": "tests", "__builtins__": dict(pristine), "__plain__": plain}
    try:
        compiled = [compile(text, f"<assert {n}>", "exec", optimize=0) for n, text in enumerate(job["asserts"], 1)]
        exec(compile(job["imports"], "<imports>", "exec"), tests)
        modules = [(vars(m), dict(vars(m))) for m in tests.values() if type(m) is type(builtins)]
        namespace = {"__name__": "__main__"}
        exec(compile(job["code"], "<program>", "exec", optimize=0), namespace)
        stage = "setup"
        exec(compile(job["setup"], "<setup>", "exec"), namespace)
        for current, before in [(vars(builtins), pristine), *modules]:
            current.update(before)
        tests.update((name, namespace[name]) for name in job["names"] if name in namespace)
        for number, code in enumerate(compiled, 1):
            stage = f"assert {number}"
            link.send("?")
            token = link.receive()
            exec(code, tests)
            link.send(token)
    except BaseException as error:
        with contextlib.suppress(Ended):
            link.send([stage, describe(error)])


def judge(link, job, secret):
    """Counts the asserts that held; an ``error`` of None with asserts left: the program ended before the verdict."""
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
    preside(program, judge)
