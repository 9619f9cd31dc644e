"""Judges of programs: what runs in the sandbox to say whether a program is right, and how it is started.

Each judge is a script, executed in the sandbox with the modules that it imports from here; the package itself is not there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import secrets
import signal
from importlib import resources
from typing import Any, Literal

from cycleqd_jax.sandbox import Completed, InfraError, Limits, Sandbox

__all__ = ["Ruling", "preside"]

_SLOW_START_SECONDS = 30.0
_MODULES = {
    "asserts": ("inside", "equality"),
    "calls": ("inside", "values", "oracles"),
    "cases": ("inside", "equality"),
}
_LOADER = """\
import sys, types
for name, text in {modules!r}.items():
    module = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
    sys.modules[name] = module
exec(compile({script!r}, "judge", "exec"), {{"__name__": "judge"}})
"""


@dataclasses.dataclass(frozen=True)
class Ruling:
    """What became of a program.

    Attributes:
        verdict: the judge's, or None where the program's box ended before there was one.
        reason: why there is none: ``"timed out"`` or ``"the program ended its box"``.
    """

    verdict: dict[str, Any] | None
    reason: str = ""


def preside(
    sandbox: Sandbox, judge: Literal["asserts", "calls", "cases"], job: dict[str, Any], secret: dict[str, Any], limits: Limits
) -> Ruling:
    """Has a program judged in the sandbox.

    Args:
        sandbox: where it runs.
        judge: which one.
        job: what the program's process may know.
        secret: what it may not.
        limits: of judge and program together.

    Raises:
        InfraError: the judge did not start: that is not the program's doing.
    """
    done, verdict, ready = _run(sandbox, judge, job, secret, limits)
    if done.timed_out and not ready:  # a machine that is slow to start the judge: not the program's time
        slow = dataclasses.replace(limits, wall_s=limits.wall_s + _SLOW_START_SECONDS)
        done, verdict, ready = _run(sandbox, judge, job, secret, slow)
    if not ready and done.exit_code != -signal.SIGKILL:
        # The program only begins after that line: this isn't its doing.
        raise InfraError(
            f"the sandbox did not start the test program (exit code {done.exit_code}, timed out: {done.timed_out}): "
            f"{done.output[-300:]!r}"
        )
    if verdict is None:
        return Ruling(None, "timed out" if done.timed_out else "the program ended its box")
    return Ruling(verdict)


def _run(
    sandbox: Sandbox, judge: str, job: dict[str, Any], secret: dict[str, Any], limits: Limits
) -> tuple[Completed, dict[str, Any] | None, bool]:
    """How the judge ended, its verdict if there is one, and whether the program was begun at all."""
    nonce = secrets.token_hex(16)
    texts = [json.dumps(job), json.dumps({**secret, "nonce": nonce})]
    stdin = "".join(f"{len(text):016x}{text}" for text in texts)
    done = sandbox.run_python(_script(judge), stdin=stdin, limits=limits)
    verdict, ready = None, False
    for line in done.output.splitlines():
        head, _, rest = line.partition(" ")
        if head == nonce:
            ready = True
            verdict = json.loads(rest) if rest != "ready" else verdict
    return done, verdict, ready


@functools.cache
def _script(judge: str) -> str:
    folder = resources.files("cycleqd_jax.tasks.judges")

    def source(name: str) -> str:
        return folder.joinpath(f"{name}.py").read_text(encoding="utf-8")

    modules = {f"{__name__}.{name}": source(name) for name in _MODULES[judge]}
    return _LOADER.format(modules=modules, script=source(judge))
