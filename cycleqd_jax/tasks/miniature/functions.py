"""Generated HumanEval problems: one of two expressions of two numbers, as a condition says."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence

from cycleqd_jax.tasks.miniature.common import Problem, conversation, fill

__all__ = ["draw_humaneval", "function"]

_NAMES = ("solve", "run", "calc", "find", "work", "make", "pick", "task")
_GRID = [(a, b) for a in range(13) for b in range(13)]
_CASES = 4


@dataclasses.dataclass(frozen=True)
class _Phrase:
    """A phrase of a docstring and its piece of the program; ``{n}`` is a digit."""

    text: str
    code: str
    basic: bool = False


_VALUES = (
    _Phrase("a", "a", basic=True),
    _Phrase("b", "b", basic=True),
    _Phrase("a plus b", "a + b", basic=True),
    _Phrase("a minus b", "a - b"),
    _Phrase("a times b", "a * b"),
    _Phrase("a plus {n}", "a + {n}", basic=True),
    _Phrase("b plus {n}", "b + {n}"),
    _Phrase("a times {n}", "a * {n}"),
    _Phrase("b times {n}", "b * {n}", basic=True),
    _Phrase("the larger", "max(a, b)"),
    _Phrase("the smaller", "min(a, b)"),
)

_CONDITIONS = (
    _Phrase("a is above {n}", "a > {n}", basic=True),
    _Phrase("a is below {n}", "a < {n}"),
    _Phrase("b is above {n}", "b > {n}"),
    _Phrase("b is below {n}", "b < {n}", basic=True),
    _Phrase("a is above b", "a > b", basic=True),
    _Phrase("a is even", "a % 2 == 0", basic=True),
    _Phrase("b is odd", "b % 2 == 1"),
    _Phrase("{n} divides a", "a % {n} == 0"),
)


def draw_humaneval(rng: random.Random, basic: bool) -> Problem | None:
    """A random problem, or None if the cases drawn for it do not distinguish its program from shorter ones."""
    first, condition, second = (_drawn(rng, phrases, basic) for phrases in (_VALUES, _CONDITIONS, _VALUES))
    body = f"{first.code} if {condition.code} else {second.code}"
    run, name = function(body), rng.choice(_NAMES)
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


def _drawn(rng: random.Random, phrases: Sequence[_Phrase], basic: bool) -> _Phrase:
    """A random phrase with a random digit."""
    phrase = rng.choice([one for one in phrases if one.basic or not basic])
    values = {"n": str(rng.randint(2, 9))}
    return _Phrase(fill(phrase.text, values), fill(phrase.code, values))


@functools.cache
def function(body: str) -> Callable[[int, int], int]:
    """The function of a program."""
    return eval(f"lambda a, b: {body}")
