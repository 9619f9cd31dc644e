"""Judges: scripts that run in the sandbox and decide whether a program is correct.

A judge is sent to the sandbox as compiled code, together with the modules of this folder that it imports; the package itself is
not installed there.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import json
import marshal
import secrets
import types
from importlib import resources
from typing import Any, Literal

from cycleqd_jax.sandbox import Completed, InfraError, Limits, Sandbox

__all__ = ["JudgeResult", "run_judge"]

_SLOW_START_SECONDS = 30.0
_MODULES = {
    "asserts": ("inside", "equality"),
    "calls": ("inside", "values", "oracles"),
    "cases": ("inside", "equality", "classes"),
}
_EMPTY_JOB = {"code": "", "setup": "", "imports": "", "asserts": [], "names": [], "tests": "", "case": "", "skipped": []} | {
    "name": "f",
    "failing": [],
    "modules": [],
}
_EMPTY_SECRET = {"mode": "check", "setup": "", "test": "def check(f): pass"}
# Only this process writes the script, and the same Python executes it, so the compiled form of its modules is valid there.
_LOADER = """\
import base64, marshal, sys, types
*modules, judge = marshal.loads(base64.b64decode({data!r}))
for name, code in modules:
    module = types.ModuleType(name)
    exec(code, module.__dict__)
    sys.modules[name] = module
exec(judge, {{"__name__": "judge"}})
"""


@dataclasses.dataclass(frozen=True)
class JudgeResult:
    """The result of judging a program.

    Attributes:
        verdict: the verdict of the judge, or None if the sandbox ended before there was one.
        reason: why there is no verdict: ``"timed out"`` or ``"the program ended its box"``.
    """

    verdict: dict[str, Any] | None
    reason: str = ""


def run_judge(
    sandbox: Sandbox, judge: Literal["asserts", "calls", "cases"], job: dict[str, Any], secret: dict[str, Any], limits: Limits
) -> JudgeResult:
    """Judges a program in the sandbox.

    Args:
        sandbox: runs the judge and the program.
        judge: name of the judge.
        job: data that the program's process may see.
        secret: data that only the judge may see.
        limits: limits of judge and program together.

    If the judge starts for another problem but not for this one, the problem or the size of the program is at fault.

    Raises:
        InfraError: the judge does not start for any problem.
    """
    done, verdict, ready = _run(sandbox, judge, job, secret, limits)
    if done.timed_out and not ready:  # the machine was too slow to start the judge; the program used no time
        slow = dataclasses.replace(limits, wall_s=limits.wall_s + _SLOW_START_SECONDS)
        done, verdict, ready = _run(sandbox, judge, job, secret, slow)
    if not ready:
        if not done.timed_out:
            done, _, ready = _run(sandbox, judge, _EMPTY_JOB, _EMPTY_SECRET, limits)
        if not ready:
            raise InfraError(
                f"expected the judge to start, got exit code {done.exit_code} (timed out: {done.timed_out}) and the output "
                f"{done.output[-300:]!r} in the sandbox; check it with cycleqd doctor"
            )
        return JudgeResult(None, "the judge does not start with this problem within its limits")
    if verdict is None:
        return JudgeResult(None, "timed out" if done.timed_out else "the program ended its box")
    return JudgeResult(verdict)


def _run(
    sandbox: Sandbox, judge: str, job: dict[str, Any], secret: dict[str, Any], limits: Limits
) -> tuple[Completed, dict[str, Any] | None, bool]:
    """How the judge ended, its verdict if there is one, and whether the program was started."""
    nonce = secrets.token_hex(16)
    texts = [json.dumps(job), json.dumps({**secret, "nonce": nonce})]
    stdin = "".join(f"{len(text):016x}{text}" for text in texts)
    done = sandbox.run_python(_script(judge), stdin=stdin, limits=limits)
    verdict, ready = None, False
    for line in done.output.splitlines():
        head, _, rest = line.partition(" ")
        if head == nonce:
            ready = True
            with contextlib.suppress(ValueError):  # the output was cut
                verdict = json.loads(rest) if rest != "ready" else verdict
    return done, verdict, ready


@functools.cache
def _script(judge: str) -> str:
    folder = resources.files("cycleqd_jax.tasks.judges")

    def compiled(module: str, name: str) -> types.CodeType:
        source = folder.joinpath(f"{module}.py").read_text(encoding="utf-8")
        return compile(source, name, "exec", dont_inherit=True, optimize=0)

    names = {module: f"{__name__}.{module}" for module in _MODULES[judge]}
    codes = [*((name, compiled(module, name)) for module, name in names.items()), compiled(judge, "judge")]
    return _LOADER.format(data=base64.b64encode(marshal.dumps(codes)).decode())
