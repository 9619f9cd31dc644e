"""Extraction of programs: every reply gives a program or nothing, and never an error."""

from __future__ import annotations

import time

import pytest

from cycleqd_jax.tasks.coding.extraction import extract_code, only_program


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Sure!\n```py\nx = 1\n```\nThis works.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("text\n```python\nx = 1", "x = 1"),
        ("x = 1\n```", "x = 1\n"),
        ("x = 1\n```\nexplained", "x = 1\n"),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("Here it is:\n\nimport re\ndef f(): pass", "import re\ndef f(): pass"),
        ("I can not do that.", ""),
        ("", ""),
        ("```", ""),
        ("``````", ""),
        ("```python\n```", ""),
        ("```bash\nls\n```\n```python\nx = 1\n```", "x = 1\n"),
        ("```bash\nls\n```\n```\nx = 1\n```", "x = 1\n"),
        ("```python\nimport re\n```\nand\n```python\ny = 2\n```", "import re\n\ny = 2\n"),
        ("```python\nadd(1, 2)\n```\nwith\n```python\ndef add(a): 1\n```\n```python\nadd(3)\n```", "def add(a): 1\n"),
        ("```python\nx = 1\n```python\ndef add(a): 2", "def add(a): 2"),
        ("  ```python\nx = 1\n  ```", "x = 1\n"),
    ],
)
def test_extraction(reply, code):
    assert extract_code(reply, ("add",)) == code


def test_several_names():
    apart = "```python\nclass Pair: 1\n```\nand\n```python\ndef add(a): 1\n```"
    assert extract_code(apart, ("Pair", "add")) == "class Pair: 1\n\ndef add(a): 1\n"
    whole = f"{apart}\nor\n```python\nclass Pair: 2\ndef add(a): 2\n```"
    assert extract_code(whole, ("Pair", "add")) == "class Pair: 2\ndef add(a): 2\n"


@pytest.mark.parametrize(
    "piece", ["```", "```python\n", "\n```\n", "def ", "a", " ", "x=", "```python\ndef f(): pass\n```\n", "\n"]
)
def test_extraction_of_megabytes_is_quick(piece):
    began = time.monotonic()
    extract_code(piece * (2_000_000 // len(piece)), ("add", "other"))
    assert time.monotonic() - began < 5


PROGRAM = "def f(x):\n    return x"


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        (PROGRAM, PROGRAM),
        (PROGRAM + "\n\nassert f(1) == 2", PROGRAM),
        (PROGRAM + "\n\nprint(f(1))", PROGRAM),
        (PROGRAM + "\nresult = f(3)", PROGRAM),
        (PROGRAM + "\nfor x in range(3):\n    f(x)", PROGRAM),
        (PROGRAM + "\nif __name__ == '__main__':\n    main()", PROGRAM),
        (PROGRAM + "\nf = cache(f)", PROGRAM + "\nf = cache(f)"),
        ("import sys\nsys.setrecursionlimit(9)\nN = 3\n" + PROGRAM,) * 2,
        ("class A:\n    g = 1\n    assert g\n" + PROGRAM,) * 2,
        # cut in the middle of something
        (PROGRAM + "\n\nprint(f(", PROGRAM),
        (PROGRAM + "\n\ndef g(x", PROGRAM),
        (PROGRAM + "\n\ndef g(x):", PROGRAM),
        (PROGRAM + "\n\nx = '''abc\nabc", PROGRAM),
        (PROGRAM + "\n\nThis function returns x.", PROGRAM),
        (PROGRAM + "\n@cache\ndef g(\n    x,\n):", PROGRAM),
        # nothing of it is Python
        ("I can't do that.",) * 2,
        ("def f(x:\n  return x",) * 2,
        ("",) * 2,
    ],
)
def test_examples_of_use_are_removed(code, kept):
    assert only_program(code, "f").rstrip() == kept


@pytest.mark.parametrize("terms", [10, 300, 500, 800, 950, 2000, 20_000])
def test_long_sums_are_no_error(terms):
    code = f"{PROGRAM}\nx = {'+'.join('1' * terms)}\nassert x"
    assert only_program(code, "f").startswith(PROGRAM)


@pytest.mark.parametrize(
    "piece", ["(", "def f(x):\n  return (\n", "x = 1\n", "\0", "    ", "'''", "a.", "-", "[" * 50 + "\n", "é\n"]
)
def test_odd_programs_are_quick_and_no_error(piece):
    began = time.monotonic()
    only_program(piece * (150_000 // len(piece)), "f")
    assert time.monotonic() - began < 20
