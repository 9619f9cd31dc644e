"""Generated MBPP problems: a reduction of a map of a filter of a list."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

from cycleqd_jax.tasks.miniature.common import FUNCTION_NAMES, Phrase, Problem, conversation, draw_phrase

__all__ = ["NUMBERS", "STRINGS", "compiled", "draw_mbpp"]


@dataclasses.dataclass(frozen=True)
class Domain:
    """The phrases about lists of one type of items.

    Attributes:
        filters: phrases that select items.
        maps: phrases that change every item.
        reductions: phrases that make a result of the list.
        items: the items of random lists.
    """

    filters: Sequence[Phrase]
    maps: Sequence[Phrase]
    reductions: Sequence[Phrase]
    items: Sequence[Any]


_LETTERS = "aeioblt"
_WORDS = (
    "apple", "table", "lion", "bird", "tea", "ant", "boat", "light", "oil", "iron", "echo", "ball", "tiger", "lamp",
    "enter", "idea", "bat", "to", "alto", "elbow", "at", "bread", "olive", "little", "ice", "beat",
)  # fmt: skip

NUMBERS = Domain(
    filters=(
        Phrase("all numbers", "", basic=True),
        Phrase("the even numbers", " if i % 2 == 0", basic=True),
        Phrase("the numbers above {n}", " if i > {n}", basic=True),
        Phrase("the odd numbers", " if i % 2 == 1"),
        Phrase("the negative numbers", " if i < 0"),
        Phrase("the numbers below {n}", " if i < {n}"),
        Phrase("the multiples of {n}", " if i % {n} == 0"),
        Phrase("the numbers other than {n}", " if i != {n}"),
    ),
    maps=(
        Phrase("", "i", basic=True),
        Phrase("the doubles of ", "i * 2", basic=True),
        Phrase("the squares of ", "i * i"),
        Phrase("{n} plus ", "i + {n}", basic=True),
        Phrase("{n} times ", "i * {n}"),
        Phrase("the halves of ", "i // 2"),
        Phrase("the negatives of ", "-i"),
        Phrase("the remainders by {n} of ", "i % {n}"),
    ),
    reductions=(
        Phrase("the sum of", "sum([{}])", basic=True),
        Phrase("a list of", "[{}]", basic=True),
        Phrase("the largest of", "max([{}])", basic=True),
        Phrase("the smallest of", "min([{}])"),
        Phrase("the count of", "len([{}])"),
        Phrase("the first of", "[{}][0]"),
        Phrase("a sorted list of", "sorted([{}])"),
        Phrase("a reversed list of", "[{}][::-1]"),
    ),
    items=range(-9, 21),
)

STRINGS = Domain(
    filters=(
        Phrase("all words", "", basic=True),
        Phrase("the words longer than {n}", " if len(i) > {n}", basic=True),
        Phrase("the words shorter than {n}", " if len(i) < {n}"),
        Phrase("the words with {c}", " if '{c}' in i", basic=True),
        Phrase("the words starting with {c}", " if i[0] == '{c}'"),
        Phrase("the words ending with {c}", " if i[-1] == '{c}'"),
    ),
    maps=(
        Phrase("", "i", basic=True),
        Phrase("the lengths of ", "len(i)", basic=True),
        Phrase("the upper case of ", "i.upper()", basic=True),
        Phrase("the reverses of ", "i[::-1]"),
        Phrase("the initials of ", "i[0]"),
        Phrase("the first {n} letters of ", "i[:{n}]"),
    ),
    reductions=(
        Phrase("a list of", "[{}]", basic=True),
        Phrase("the largest of", "max([{}])", basic=True),
        Phrase("the count of", "len([{}])"),
        Phrase("the last of", "[{}][-1]"),
        Phrase("a sorted list of", "sorted([{}])"),
        Phrase("a reversed list of", "[{}][::-1]"),
    ),
    items=_WORDS,
)


def draw_mbpp(rng: random.Random, basic: bool) -> Problem | None:
    """A random problem, or None if the asserts drawn for it do not distinguish its program from shorter ones."""
    domain = rng.choice((NUMBERS, STRINGS))
    kept, mapped, reduced = (
        draw_phrase(rng, phrases, basic, _LETTERS) for phrases in (domain.filters, domain.maps, domain.reductions)
    )
    if reduced.code == "len([{}])":  # a map does not change a count, so no assert could test it
        mapped = domain.maps[0]
    body = _body(kept.code, mapped.code, reduced.code)
    name = rng.choice(FUNCTION_NAMES)
    unfiltered = _body("", mapped.code, reduced.code)
    codes = itertools.product((kept.code, ""), (mapped.code, "i"), (reduced.code, "[{}]"))
    shorter = {_body(*some) for some in codes} - {body}  # programs that lack some of the phrases
    cases: list[tuple[list[Any], Any]] = []
    for _ in range(12):
        values = [rng.choice(domain.items) for _ in range(rng.randint(3, 4))]
        result = compiled(body)(values)
        if result is None or result in ([], *(r for _, r in cases)):
            continue
        agreeing = {program for program in shorter if compiled(program)(values) == result}
        # Already the first two asserts depend on the filter, and every shorter program fails one of the three.
        if agreeing if len(cases) == 2 else kept.code and compiled(unfiltered)(values) == result:
            continue
        shorter = agreeing
        cases.append((values, result))
        if len(cases) == 3:
            break
    else:
        return None
    tests = [f"assert {name}({values!r}) == {result!r}" for values, result in cases]
    code = f"def {name}(x):\n    return {body}"
    text = f"Return {reduced.text} {mapped.text}{kept.text}."
    record = {"text": text, "code": code, "test_list": tests, "test_setup_code": "", "challenge_test_list": []}
    return Problem(_behaviour(body, domain), record, conversation(f"{text}\n{tests[0]}", f"```python\n{code}\n```"))


def _body(kept: str, mapped: str, reduced: str) -> str:
    """The program that consists of three pieces."""
    return reduced.replace("{}", f"{mapped} for i in x{kept}")


_SOURCE = """
def run(x):
    try:
        return {body}
    except (ValueError, IndexError):
        return None
"""


@functools.cache
def compiled(body: str) -> Callable[[list[Any]], Any]:
    """The function of a program; it returns None for lists for which the program fails, since no item passes its filter."""
    namespace: dict[str, Any] = {}
    exec(_SOURCE.format(body=body), namespace)
    return namespace["run"]


def _behaviour(body: str, domain: Domain) -> str:
    """The results of a program for each item, which show its filter and map, and for some lists, which show its reduction.

    Different programs may be the same function: the count of ``i * 5`` is the count of ``i * 6``.
    """
    rng = random.Random(0)
    several = [[rng.choice(domain.items) for _ in range(size)] for size in range(2, 22)]
    run = compiled(body)
    return repr([run(values) for values in (*([item] for item in domain.items), *several)])
