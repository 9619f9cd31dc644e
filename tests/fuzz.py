"""Fuzz tests in two lengths, and the texts that they try on parsers of replies."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

__all__ = ["MANY", "NAMES", "SOME", "fuzzed", "json_values", "pieces", "replies"]

MANY = 100_000
SOME = 2_000
_ROUND = 5_000  # hypothesis remembers every case of a round
_SECONDS = 4 * 3600


def fuzzed(few: int, many: int = MANY, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Runs a test on ``few`` cases by default, and on ``many`` as a test with the marker ``slow`` (``pytest -m slow``).

    Args:
        few: number of cases of the default test.
        many: number of cases of the slow test.
        strategies: the cases, by the name of the test's argument; its other arguments are fixtures.
    """

    def decorate(function: Callable[..., None]) -> Any:
        def test(cases: int, **fixtures: Any) -> None:
            for number, begin in enumerate(range(0, cases, _ROUND)):

                @hypothesis.settings(max_examples=min(_ROUND, cases - begin), database=None)
                @hypothesis.given(**strategies)
                def check(**case: Any) -> None:
                    function(**fixtures, **case)

                (hypothesis.seed(number)(check) if cases == many else check)()

        parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in strategies]
        first = inspect.Parameter("cases", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        vars(test)["__signature__"] = inspect.Signature([first, *parameters])
        test.__name__, test.__doc__, test.__module__ = function.__name__, function.__doc__, function.__module__
        slow = pytest.param(many, marks=[pytest.mark.slow, pytest.mark.timeout(_SECONDS)])
        return pytest.mark.parametrize("cases", [few, slow])(test)

    return decorate


NAMES = ("f", "task_func")

_MARKS = (
    *(
        "```",
        "````",
        "~~~",
        "```python\n",
        "```py\n",
        "```sql\n",
        "```bash\n",
        "\n```",
        "\n```\n",
        "> ```",
        "  ```",
        "1. ```python\n",
    ),
    *("<think>", "</think>", "[THINK]", "[/THINK]", "<|end_of_thought|>", "[BEGIN]\n", "\n[DONE]", "<code>", "</code>"),
    *(
        "Action: Operation\n",
        "Action: Answer\n",
        "Final Answer: ",
        "\nFinal Answer:",
        "Act: bash\n",
        "Act: finish",
        "Act: answer(",
    ),
    *(
        "Think: ",
        "\nAct:",
        ")",
        "The output of the OS:\n",
        '["1"]',
        "[1.0, '2']",
        "[['a', 'b'], [1]]",
        "[[[[",
        "]]]]",
        "{}",
        "None",
    ),
)
_CODE = (
    *(
        "def f(n):\n",
        "def task_func(n): return n\n",
        "async def f(): ...\n",
        "class f:\n",
        "    return n\n",
        "\treturn 1\n",
        "  pass\n",
    ),
    *(
        "from __future__ import annotations\n",
        "import os, sys\n",
        "from math import *\n",
        "import f.g as f\n",
        "@f\n",
        "f = lambda: f\n",
    ),
    *(
        "if __name__ == '__main__':\n    f(1)\n",
        "for f in range(3): f\n",
        "while f: pass\n",
        "try:\n    f\nexcept f as f:\n    f\n",
    ),
    *(
        "with f as (f, g): f[0] = f.a\n",
        "global f\n",
        "f.a.b += 1\n",
        "del f, f[0]\n",
        "assert f(1)\n",
        "print(f(2))\n",
        "exit()\n",
    ),
    *(
        "exec('f = 1')\n",
        "globals()['f'] = 1\n",
        "match f:\n    case [f, *g]: f\n",
        "type f = int\n",
        "f: int = 1\n",
        "(f := 1)\n",
    ),
    *(
        "x = " + "9" * 5000 + "\n",
        "x = 0x" + "f" * 5000 + "\n",
        "x = 1e999j\n",
        "x = " + "(" * 150,
        ")" * 150,
        "x = " + "-" * 3000 + "1\n",
    ),
    *(
        "x = " + "+".join("1" * 1200) + "\n",
        "f" + "()" * 300 + "\n",
        "x = f'{f!r:>{f}}'\n",
        "x = b'\\xff'\n",
        "'\\ud800'\n",
        "x = '\\N{DASH}'\n",
    ),
    *(
        "'''",
        '"""',
        "'",
        '"',
        "\\",
        "\\\n",
        "#",
        ";",
        ":",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "$",
        "lambda *a, **k: ",
        "yield f\n",
        "return\n",
    ),
    *(
        "\x0c",
        "\r",
        "\r\n",
        "\t",
        "    ",
        "\n",
        "\n\n",
        "\0",
        "\ud800",
        "\udfff",
        "\ufeff",
        "\u2028",
        "é",
        "ﬁ",
        "٣",
        "𝟙",
        "\x1b[0m",
        "\x85",
    ),
)
_SQL = (
    *(
        "SELECT",
        "INSERT INTO t VALUES ('x')",
        "UPDATE t SET",
        "DELETE FROM",
        "`t`.",
        "`t`.`t`",
        "t.t",
        "``",
        "`",
        "/*",
        "*/",
        "/*!50000",
    ),
    *(
        "/*M!",
        "--",
        "-- \n",
        "# \n",
        "XA START 'x'",
        "XA",
        "PREPARE p FROM 'x'",
        "EXECUTE IMMEDIATE",
        "PARTITIONS 9999999999",
        "PARTITION BY",
    ),
    *(
        "SUBPARTITION",
        "PARTITIONS ٣",
        "GET_LOCK('x', 1)",
        "KILL",
        "max_statement_time",
        "SET NAMES gbk",
        "NO_BACKSLASH_ESCAPES",
        ",",
        ";",
    ),
)
_PROSE = (
    "",
    " ",
    "wrong",
    "That is wrong. Corrected:",
    "Here is the solution:",
    "12.0",
    "1,234",
    "50%",
    "nan",
    "inf",
    "1e400",
    "-0",
    "x",
)


def pieces(*groups: tuple[str, ...], most: int = 12) -> st.SearchStrategy[str]:
    """Texts of pieces: mostly of the given ones, one in seven an arbitrary character (lone surrogates and NUL included).

    They are drawn as bytes, two for a piece, which hypothesis draws and shrinks ten times as fast as lists.
    """
    table = [piece for group in groups for piece in group]

    def text(data: bytes) -> str:
        numbers = (int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
        found = (divmod(number, len(table) * 7 // 6) for number in numbers)
        return "".join(table[k] if k < len(table) else chr((q * 7919 + k * 104_729) % 0x110000) for q, k in found)

    return st.binary(max_size=2 * most).map(text)


def replies() -> st.SearchStrategy[str]:
    """Replies in the grammar of all protocols, well formed or not."""
    return pieces(_MARKS, _CODE, _SQL, _PROSE)


def json_values() -> st.SearchStrategy[Any]:
    """Any JSON value, with numbers beyond every type, lone surrogates and deep nesting."""
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from((10**400, -(10**4000), 1 << 64, -1)),
        st.floats(),
        st.text(st.characters(), max_size=6),
        st.sampled_from(
            ("l", "t", "d", "n", "o", "f", "r", "h", "e", "c", "b", "s", "z", "k", "i", "q", "?", "0x1", "value", "error")
        ),
    )
    deep = st.sampled_from((60, 500, 900)).map(_nested)
    return (
        st.recursive(
            leaves, lambda s: st.lists(s, max_size=4) | st.dictionaries(st.text(max_size=4), s, max_size=3), max_leaves=8
        )
        | deep
    )


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value
