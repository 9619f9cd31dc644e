"""Which code block of a reply is its program: corrections, uses of the name, further turns, replies that were cut off."""

from __future__ import annotations

import pytest

from cycleqd_jax.tasks.coding.extraction import extract_code, only_program

RIGHT = "def area(w, h):\n    if w < 0:\n        return 0\n    return w * h"
F = "```"


def block(code: str) -> str:
    return f"{F}python\n{code}\n{F}"


WRONG = block("def area(w, h):\n    return w + h")
NOTHING = "def area(w, h):\n    return None"
REPLIES = {
    **{
        f"correction after {lead!r}": f"{WRONG}\n{lead}\n{block(RIGHT)}"
        for lead in (
            "Wait, if w is negative this fails:",
            "Hmm, but this doesn't handle negatives, which is incorrect. Let me rewrite:",
            "This is wrong because negatives fail",
            "Sorry, negatives fail. I don't want that:",
            "The above fails if w < 0, so",
        )
    },
    **{
        f"used in {code!r}": f"{block(RIGHT)}\nUse it:\n{block(code)}"
        for code in (
            "area = area(2, 3)\nprint(area)",
            "w, h = 2, 3\narea = w * h",
            "area = int(input())",
            "shape = Shape(2, 3)\narea = shape.area()",
        )
    },
    "head that returns None": f"{block(RIGHT)}\nIts head:\n{block(NOTHING)}",
    **{
        f"next turn {turn!r}": f"{block(RIGHT)}\n{turn}\nAdd them.\nASSISTANT:\n{WRONG}"
        for turn in ("### Instruction:", "Human: next", "<|im_start|>user", "<start_of_turn>user", "[INST] next [/INST]")
    },
    **{
        f"{opened} after the answer{rest!r}": f"{block(RIGHT)}\n{opened}\nPerhaps\n{WRONG}\n{closed}{rest}"
        for opened, closed in (("<think>", "</think>"), ("<reasoning>", "</reasoning>"), ("[THINK]", "[/THINK]"))
        for rest in ("", "\nThat is all.")
    },
    "helpers of helpers elsewhere": "\nwith\n".join(
        map(
            block,
            ("def low(x):\n    return max(x, 0)", "def side(w):\n    return low(w)", "def area(w, h):\n    return side(w) * h"),
        )
    ),
    "helpers of helpers below": "\nwith\n".join(
        map(
            block,
            ("def area(w, h):\n    return side(w) * h", "def side(w):\n    return low(w)", "def low(x):\n    return max(x, 0)"),
        )
    ),
    "question repeated first": f"### Instruction:\nThe area?\n### Response:\n{block(RIGHT)}",
    "cut in a repetition": f"{block(RIGHT)}\n\nAgain:\n{F}python\ndef area(w, h):\n    if w < 0:\n        return",
    "cut in a word": f"{block(RIGHT)}\n\nOr:\n{F}python\ndef area(w, h):\n    a = w\n    retur",
    "fence in the line of a text": f"**Answer:** {block(RIGHT)}",
    "fence behind a token": f"<unused94>{WRONG}<unused95>{block(RIGHT)}",
    "draft and answer in lines of text": f"First: {WRONG}\nBetter: {block(RIGHT)}",
    "escaped HTML in a block": block(RIGHT.replace("<", "&lt;")),
    "escaped ends of lines": RIGHT.replace("\n", "\\n"),
    "escaped ends of lines in a block": f"{F}python\n{RIGHT}\n{F}".replace("\n", "\\n"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_the_block_that_solves_the_problem(name):
    space: dict = {}
    exec(only_program(extract_code(REPLIES[name], ("area",)), "area"), space)
    assert [space["area"](*sides) for sides in ((2, 3), (-1, 3))] == [6, 0]
