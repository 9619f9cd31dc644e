"""Generated HumanEval problems: one of two expressions of two numbers, as a condition says."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

from cycleqd_jax.tasks.miniature.common import FUNCTION_NAMES, Phrase, Problem, conversation, draw_phrase

__all__ = ["draw_humaneval", "function"]

_GRID = [(a, b) for a in range(13) for b in range(13)]
_CASES = 4


_VALUES = (
    Phrase("a", "a", basic=True),
    Phrase("b", "b", basic=True),
    Phrase("a plus b", "a + b", basic=True),
    Phrase("a minus b", "a - b"),
    Phrase("a times b", "a * b"),
    Phrase("a plus {n}", "a + {n}", basic=True),
    Phrase("b plus {n}", "b + {n}"),
    Phrase("a times {n}", "a * {n}"),
    Phrase("b times {n}", "b * {n}", basic=True),
    Phrase("the larger", "max(a, b)"),
    Phrase("the smaller", "min(a, b)"),
)

_CONDITIONS = (
    Phrase("a is above {n}", "a > {n}", basic=True),
    Phrase("a is below {n}", "a < {n}"),
    Phrase("b is above {n}", "b > {n}"),
    Phrase("b is below {n}", "b < {n}", basic=True),
    Phrase("a is above b", "a > b", basic=True),
    Phrase("a is even", "a % 2 == 0", basic=True),
    Phrase("b is odd", "b % 2 == 1"),
    Phrase("{n} divides a", "a % {n} == 0"),
)


def draw_humaneval(rng: random.Random, basic: bool) -> Problem | None:
    """A random problem, or None if the cases drawn for it do not distinguish its program from shorter ones."""
    first, condition, second = (draw_phrase(rng, phrases, basic) for phrases in (_VALUES, _CONDITIONS, _VALUES))
    body = f"{first.code} if {condition.code} else {second.code}"
    run, name = function(body), rng.choice(FUNCTION_NAMES)
    cases = rng.sample(_GRID, _CASES)
    results = [run(*case) for case in cases]
    shorter = [first.code, second.code, f"{second.code} if {condition.code} else {first.code}", *(v.code for v in _VALUES[:5])]
    if len({*results}) < _CASES or any([function(code)(*case) for case in cases] == results for code in shorter):
        return None
    prompt = f'def {name}(a, b):\n    """{first.text} if {condition.text}, else {second.text}"""\n'
    solution = f"    return {body}\n"
    asserts = "".join(f"    assert candidate{case} == {result}\n" for case, result in zip(cases, results, strict=True))
    record = {
        "prompt": prompt,
        "canonical_solution": solution,
        "entry_point": name,
        "test": f"def check(candidate):\n{asserts}",
    }
    gold = f"{prompt}{solution}".strip("\n")
    behaviour = repr([run(*case) for case in _GRID])
    return Problem(behaviour, record, conversation(prompt.strip(), f"```python\n{gold}\n```"))


@functools.cache
def function(body: str) -> Callable[[int, int], int]:
    """The function of a program."""
    return eval(f"lambda a, b: {body}")
