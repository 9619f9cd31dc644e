"""Extraction of programs: every reply gives a program or nothing, and never an error."""

from __future__ import annotations

import json
import sys
import time
import types

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


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "piece",
    [
        "```",
        "```python\n",
        "\n```\n",
        "def ",
        "a",
        " ",
        "x=",
        "```python\ndef f(): pass\n```\n",
        "\n",
        "<pre>",
        "<pre ",
        "`def add(a): 1",
        "    def add(a): 1\n",
        "    \n",
        "<code>def add(a): 1</code>",
        ">>> def add\n",
        '"def add(a): 1\n',
        '\\"def add',
        '["def add(a):", ',
        "<|def add|>",
        "\nadd = lambda a: lambda: a",
        "1 | def add(a): 1\n",
        "\ufeff",
    ],
)
def test_extraction_of_megabytes_is_quick(piece):
    began = time.process_time()
    extract_code(piece * (2_000_000 // len(piece)), ("add", "other"))
    assert time.process_time() - began < 5


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


@pytest.mark.parametrize("value", ["0x" + "f" * 5000, "+".join("1" * 1200), "-" * 900 + "1", "lambda: " * 300 + "1"])
@pytest.mark.parametrize("first", ["", "from __future__ import annotations\n"])
def test_values_that_can_not_be_written_anew_are_no_error(first, value):
    code = f"import os\n{first}{PROGRAM}\nx = {value}\nprint(x)"
    assert PROGRAM.partition(":")[0] in only_program(code, "f")


@pytest.mark.parametrize(
    "raised", ["-" * 1200 + "x", "x" + ".a" * 1500, "+".join("1" * 1200), "0x" + "f" * 5000, "lambda: " * 300 + "1"]
)
def test_what_a_function_raises_is_no_error(raised):
    assert "def f" in only_program(f"def f(x):\n    raise ValueError({raised})\nprint(f(1))", "f")


@pytest.mark.parametrize("depth", [60, 99, 100, 101, 150])
def test_parentheses_that_are_doubled_when_a_program_is_written_anew(depth):
    nested = "sum(" * depth + "x" + " for i in x)" * depth
    code = f"import os\nfrom __future__ import annotations\ndef f(x):\n    return {nested}\n"
    assert "def f(x):" in only_program(code, "f")


def test_a_fence_of_many_backquotes_ends_the_code_and_is_quick():
    assert extract_code(f"```python\n{PROGRAM}\n`````", ("f",)).rstrip() == PROGRAM
    began = time.process_time()
    extract_code(f"```python\n{PROGRAM} {'`' * 50_000}a", ("f",))
    assert time.process_time() - began < 5


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "piece",
    [
        "(",
        "def f(x):\n  return (\n",
        "x = 1\n",
        "\0",
        "    ",
        "'''",
        "a.",
        "-",
        "[" * 50 + "\n",
        pytest.param("é\n", marks=pytest.mark.exhaustive),
    ],
)
def test_odd_programs_are_quick_and_no_error(piece):
    def seconds(characters: int) -> float:
        began = time.process_time()
        only_program(piece * (characters // len(piece)), "f")
        return time.process_time() - began

    third = seconds(50_000)
    assert seconds(150_000) < 6 * third + 1  # the time of a quadratic step would be nine times as much


# ------------------------------------------------------------------------------------------------ which block

RIGHT = "def area(w, h):\n    if w < 0:\n        return 0\n    return w * h"
F = "```"
REPLIES = {
    "draft in an open thought": f"<think>\n{F}\ndef area(w, h): return w\n{F}\nWait, that is wrong.\n{F}\n{RIGHT}\n{F}",
    "Markdown in a block": f"{F}`markdown\nSo:\n{F}python\n{RIGHT}\n{F}\n{F}`",
    "end of the block in a line of code": f"{F}python\n{RIGHT}{F}",
    "code in the line of the fence": f"{F}python {RIGHT}\n{F}",
    "warned of afterwards": f"{F}\n{RIGHT}\n{F}\nDon't write this, which is wrong:\n{F}\ndef area(w, h): return 1\n{F}",
    "draft in thoughts": f"<think>\nPerhaps\n{F}python\ndef area(w, h): return w\n{F}\n</think>\nSo:\n{F}python\n{RIGHT}\n{F}",
    "thoughts without a beginning": f"with w first, h next\n</think>\n\n{RIGHT}",
    "thoughts of another name": f"<reasoning>\ndef area(w, h): return 1\n</reasoning>\n{F}\n{RIGHT}\n{F}",
    "all in the thoughts": f"<think>\n{F}python\n{RIGHT}\n{F}\n</think>\nDone.",
    "head quoted": f"The task is\n{F}python\ndef area(w, h):\n    '''The area.'''\n    ...\n{F}\nMine:\n{F}python\n{RIGHT}\n"
    f"{F}",
    "head quoted last": f"{F}python\n{RIGHT}\n{F}\nIts head:\n{F}python\ndef area(w, h):\n    raise NotImplementedError\n{F}",
    "head without a body": f"{F}\ndef area(w, h):\n{F}\nbecomes\n{F}\n{RIGHT}\n{F}",
    "correction": f"{F}python\ndef area(w, h):\n    return w + h\n{F}\nOops, that is wrong. The corrected version:\n{F}python\n"
    f"{RIGHT}\n{F}",
    "shorter correction": f"{F}python\ndef area(w, h):\n    x = w\n    y = h\n    return x + y\n{F}\nWait.\n{F}python\n"
    f"def area(w, h): return max(w, 0) * h\n{F}",
    "mistake shown last": f"{F}python\n{RIGHT}\n{F}\nA common mistake is\n{F}python\ndef area(w, h):\n    return w + h\n{F}",
    "use shown last": f"{F}python\n{RIGHT}\n{F}\nUse it:\n{F}python\nprint(area(2, 3))\n{F}",
    "output shown": f"{F}Python 3\n{RIGHT}\n{F}\n{F}output\n6\n{F}",
    "tildes": f"~~~python\n{RIGHT}\n~~~",
    "four backquotes": f"{F}`python\n{RIGHT}\n{F}`",
    "braces": f"{F}{{.python}}\n{RIGHT}\n{F}",
    "python3.11": f"{F}python3.11\n{RIGHT}\n{F}",
    "quotation": "\n".join(f"> {line}" for line in f"{F}python\n{RIGHT}\n{F}".split("\n")),
    "item of a list": "2) " + f"{F}py\n{RIGHT}\n{F}".replace("\n", "\n   "),
    "began inside": f"{RIGHT}\n{F}\nThat was it.\n",
    "never closed": f"Sure:\n{F}python\n{RIGHT}",
    "fences in the docstring": f'{F}python\ndef area(w, h):\n    """Area.\n\n{F}python\narea(1, 2)\n{F}\n    """\n'
    "    return max(w, 0) * h\n"
    f"{F}\nOK",
    "marks": f"[PYTHON]\n{RIGHT}\n[/PYTHON]\n[DONE]",
    "tags": f"<code>\n{RIGHT}\n</code>",
    "end of text": f"{RIGHT}\n<|im_end|>",
    "prose like code": f"for a rectangle this is easy\nif w is negative, 0\n\n{RIGHT}\n\nwith this we are done",
    "output in a block": f"{RIGHT}\n\nIt prints\n{F}\n6\n{F}\n",
    **{
        f"followed by {lead!r}": f"{F}python\n{RIGHT}\n{F}\n{lead}\n{F}python\ndef area(w, h):\n    return w + h\n{F}"
        for lead in (
            "Common pitfall:",
            "For reference, the original code was:",
            "**Before:**",
            "An incomplete attempt:",
            "### Incorrect approach\n\nThis adds:",
            "**Common mistakes**\nAdding:",
        )
    },
    "heading about another block": f"## Wrong\nAdds:\n{F}\ndef area(w, h): return w + h\n{F}\n## Right\n{F}\n{RIGHT}\n{F}",
    "corrected below a heading": f"{F}\ndef area(w, h): return 1\n{F}\n### Mistakes\n\nThe corrected code:\n{F}\n{RIGHT}\n{F}",
    "head that returns nothing": f"{F}\n{RIGHT}\n{F}\nIts head:\n{F}\ndef area(w, h):\n    'The area.'\n    return\n{F}",
    "one line": f"{F}python def area(w, h): return max(w, 0) * h{F}",
    "in a sentence": "Take `def area(w, h): return max(w, 0) * h` here.",
    "HTML": f'<pre><code class="python">{RIGHT.replace("<", "&lt;")}\n</code></pre>\nDone.',
    "indented paragraph": "Take this:\n\n" + "\n".join(f"    {line}" for line in RIGHT.split("\n")) + "\n\nDone.",
    "session": f"{F}python\n>>> {RIGHT}\n".replace("\n    ", "\n...     ") + f"...\n>>> area(2, 3)\n6\n{F}",
    "notebook": f"{F}python\n%matplotlib inline\n!pip install x\n{RIGHT}\n{F}",
    "byte order marks": f"\ufeff{F}python\n\ufeff{RIGHT}\n{F}",
    "helper elsewhere": f"{F}python\nimport math\ndef side(w):\n    return math.fabs(max(w, 0))\n{F}\nthen\n"
    f"{F}python\ndef area(w, h):\n"
    f"    return side(w) * h\n{F}",
}

SESSION = "...\n" + "\n".join(f"{'...' if line[:1] == ' ' else '>>>'} {line}" for line in RIGHT.split("\n"))
SESSION = (
    SESSION.removeprefix("...\n") + "\n...\n>>> area(2, 3)\n6\n>>> area('x')\nTraceback (most recent call last):\nTypeError: no"
)
CELL = RIGHT.replace("\n", "\n   ...: ")
CELL = f"In [1]: {CELL}\n   ...:\n\nIn [2]: %timeit area(2, 3)\n\nIn [3]: area(2, 3)\nOut[3]: 6\n"
SHORT = "area = lambda w, h: max(w, 0) * h"
REPLIES |= {
    **{
        f"session tagged {tag!r}": f"{F}{tag}\n{SESSION}\n{F}"
        for tag in ("pycon", "Pycon3", "py-con", "python-repl", "PYTHON_CONSOLE", "doctest", "console", "shell", "text", "")
    },
    "session after the banner": f"{F}\nPython 3.12.1 (main)\n[GCC] on linux\n{SESSION}\n{F}",
    "session without a block": f"In the interpreter:\n\n{SESSION}\n",
    "session in an indented paragraph": "So:\n\n" + "\n".join(f"    {line}" for line in SESSION.split("\n")),
    "session of IDLE": f"{F}\n>>> {RIGHT}\n\n>>> area(2, 3)\n6\n{F}",
    "session of IPython": f"{F}ipython\n{CELL}{F}",
    "session of IPython without a block": CELL,
    "session that imports the function": f"{F}python\n{RIGHT}\n{F}\n{F}pycon\n>>> from a import area\n>>> area(1, 1)\n1\n{F}",
    "example that imports the function": f"{F}python\n{RIGHT}\n{F}\n{F}python\nfrom shapes import area\narea(1, 1)\n{F}",
    **{
        f"fence {info!r}": f"{F}{info}\n{RIGHT}\n{F}"
        for info in (
            "{#a .py .numberLines}",
            'Python title="import w"',
            "py:src/area.py",
            "{python}",
            "PY",
            "{code-block} python",
        )
    },
    "cell with options": f"{F}{{code-cell}} ipython3\n:tags: [hide]\n\n{RIGHT}\n{F}",
    "first line in the fence": f"{F}{RIGHT}\n{F}",
    "tildes with attributes": f"~~~~ {{.python}}\n{RIGHT}\n~~~~",
    "prose behind the last fence": f"{F}python\n{RIGHT}{F} That is all.",
    **{
        f"before {token}": f"{RIGHT}{token}"
        for token in (
            "<|im_end|>",
            "<|eot_id|>",
            "</s>",
            "<end_of_turn>",
            "<｜end▁of▁sentence｜>",
            "<|endoftext|>\nHuman: thanks",
        )
    },
    "token in an open block": f"{F}python\n{RIGHT}<|im_end|>",
    "token in a block": f"{F}python\n{RIGHT}</s>\n{F}",
    "after a token": f"<|python_tag|>{RIGHT}<|eom_id|>",
    "after a tag": f"<answer>{RIGHT}</answer>",
    "marks in the lines": f"[PYTHON]{RIGHT}[/PYTHON]",
    "in braces": f"\\boxed{{\n{RIGHT}\n}}",
    "coloured HTML": "<PRE>" + RIGHT.replace("<", "&lt;").replace("return", "<span class='k'>return</span>") + "</PRE>",
    "HTML with breaks": "<code>" + RIGHT.replace("<", "&lt;").replace("\n", "<br/>") + "</code>",
    "JSON": json.dumps({"language": "python", "program": RIGHT}),
    "JSON in a sentence": f"I return {json.dumps({'code': RIGHT})} as asked.",
    "JSON in a block": f"{F}json\n{json.dumps([{'type': 'code', 'text': RIGHT}], indent=1)}\n{F}",
    "JSON with a block": json.dumps({"answer": f"Here:\n{F}python\n{RIGHT}\n{F}"}),
    "JSON in JSON": json.dumps({"name": "python", "arguments": json.dumps({"code": RIGHT})}),
    "JSON with lines": json.dumps({"lines": RIGHT.split("\n")}),
    "JSON with line breaks": '{"code": "' + RIGHT + '"}',
    "repr": repr({"code": RIGHT}),
    "lambda in a line": f"Use `{SHORT}`.",
    "lambda in two backquotes": f"Use ``{SHORT}``.",
    "lambda in three backquotes": f"{F}{SHORT}{F}",
    "lambda in bold": f"The answer is **{SHORT}**.",
    "lambda in a sentence": f"Here {SHORT}",
    "numbers of lines": f"{F}python\n" + "\n".join(f"{n} | {line}" for n, line in enumerate(RIGHT.split("\n"), 1)) + f"\n{F}",
    "quotation without a block": "\n".join(f"> {line}" for line in RIGHT.split("\n")),
    "carriage returns": f"{F}python\n{RIGHT}\n{F}\n".replace("\n", "\r"),
    "spaces that do not break": f"{F}python\n{RIGHT}\n{F}".replace("    ", "\xa0" * 4),
}


@pytest.mark.parametrize("name", REPLIES)
def test_the_block_that_solves_the_problem(name):
    space: dict = {}
    exec(only_program(extract_code(REPLIES[name], ("area",)), "area"), space)
    assert [space["area"](*sides) for sides in ((2, 3), (-1, 3))] == [6, 0]


# ------------------------------------------------------------------------------------------------ what is reached

REACHED = {
    "alias": "say = print\ndef f(n):\n    say and 0\n    return n + 1",
    "table of functions": "steps = {'p': print, 'next': lambda n: n + 1}\ndef f(n): return steps['next'](n)",
    "under a condition": "import sys\nif sys.version_info > (3,):\n    def f(n): return f(0) + n if n else 1\nelse:\n"
    "    f = None",
    "attribute": "def f(n):\n    f.seen.add(n)\n    return n + f.step\nf.step = 1\nf.seen = set()",
    "table that a function fills": "table = []\ndef fill(k):\n    for i in range(k): table.append(i + 1)\nfill(50)\n"
    "def f(n): return table[n]",
    "table that a loop fills": "table = {}\nfor i in range(50):\n    table[i] = i + 1\ndef f(n): return table[n]",
    "table that is changed": "table = [0] * 50\ntable[0] = 1\ntable.sort()\ndef f(n): return n + table[-1]",
    "global variable": "count = 0\ndef up():\n    global count\n    count = 1\nup()\ndef f(n): return n + count",
    "fallback of an import": "try:\n    import nothing_like_this as m\nexcept ImportError:\n    print('no')\n    m = None\n"
    "def f(n): return n + (m is None)",
    "decorator": "def plus(g):\n    return lambda n: g(n) + 1\n@plus\ndef f(n): return n",
    "default": "ONE = 1\ndef f(n, one=ONE): return n + one",
    "class": "class A:\n    one = 1\nclass B(A):\n    pass\ndef f(n): return n + B.one",
    "annotation": "from typing import List\ndef f(n: List[int]) -> List[int]: return n + 1",
    "names at run time": "def g(n): return n + 1\ndef f(n): return globals()['g'](n)",
    "wrapped later": "import functools\ndef f(n): return n + 1\nf = functools.lru_cache(None)(f)\nf.cache_clear()",
    "star": "from math import *\ndef f(n): return n + floor(1.5)",
    "future": "'''A program.'''\nx = 1\nfrom __future__ import annotations\ndef f(n: Unknown): return n + 1",
    "main": "def f(n): return n + 1\ndef main():\n    print(f(int(input())))\nmain()",
    "main by another way": "def f(n): return n + 1\ndef solve():\n    return f(int(input()))\nfor _ in range(int(input())):\n"
    "    solve()",
    "ends": "import sys, os\ndef f(n): return n + 1\nsys.exit(f(1))\nexit()\nquit()\nraise SystemExit",
    "tests": "import unittest\ndef f(n): return n + 1\nclass T(unittest.TestCase):\n    pass\nunittest.main()",
    "local name of an example": "def f(n):\n    result = n + 1\n    return result\nresult = f('text')\nassert result == 7",
    "set by a function": "class A: pass\nsetattr(A, 'one', 1)\ndef f(n): return n + A.one",
    "filled by map": "ones = []\nlist(map(ones.append, [1]))\ndef f(n): return n + ones[0]",
    "argument that is changed": "ones = {}\ndef fill(d): d['a'] = 1\nfill(ones)\ndef f(n): return n + ones['a']",
    "argument that is passed on": "ones = []\ndef put(d): d.append(1)\ndef fill(d, k):\n    for _ in range(k): put(d)\n"
    "fill(k=2, d=ones)\ndef f(n): return n + ones[1]",
    "filled by a lambda": "ones = {}\nfill = lambda: ones.update(a=1)\nfill()\ndef f(n): return n + ones['a']",
    "filled by an assigned call": "ones = {}\ndef fill(): ones['a'] = 1\n_ = fill()\ndef f(n): return n + ones['a']",
    "filled by a constructor": "ones = {}\nclass A:\n    def __init__(self, d): d['a'] = 1\na = A(ones)\n"
    "def f(n): return n + ones['a']",
    "alias that is changed": "ones = {}\nsame: dict = ones\nsame['a'] = 1\ndef f(n): return n + ones['a']",
    "method under another name": "ones = []\nadd = ones.append\nadd(1)\ndef f(n): return n + ones[0]",
    "part that is changed": "ones = [[], []]\nfor row in ones:\n    row.append(1)\ndef f(n): return n + ones[1][0]",
    "filled by a thread": "from threading import Thread\nones = {}\ndef fill(d): d['a'] = 1\n"
    "t = Thread(target=fill, args=(ones,))\nt.start()\nt.join()\ndef f(n): return n + ones['a']",
    **{
        f"filled by {how}": f"import threading, functools\nones = []\n{how}\ndef f(n): return n + ones[0]"
        for how in (
            "t = threading.Thread(target=ones.append, args=(1,))\nt.start()\nt.join()",
            "t = threading.Thread(None, lambda: ones.append(1))\nt.start()\nt.join()",
            "add = functools.partial(ones.append, 1)\nadd()",
            "class W(threading.Thread):\n    def __init__(self, into):\n        super().__init__()\n        self.into = into\n"
            "    def run(self): self.into.append(1)\nw = W(ones)\nw.start()\nw.join()",
        )
    },
    **{
        f"bound by {how}": f"import sys, builtins\n{how}\ndef f(n): return n + one()"
        for how in (
            "globals()['one'] = lambda: 1",
            "space = globals()\nspace['one'] = lambda: 1",
            "vars().update(one=lambda: 1)",
            "locals()['one'] = lambda: 1",
            "setattr(sys.modules[__name__], 'one', lambda: 1)",
            "here = sys.modules[__name__]\nhere.one = lambda: 1",
            "def put(name, value):\n    globals()[name] = value\nput('one', lambda: 1)",
            "setattr(builtins, 'one', lambda: 1)",
        )
    },
    "entry point bound by globals": "def g(n): return n + 1\nglobals()['f'] = g",
    "example through globals": "def f(n): return n + 1\nfor name in ['f']:\n    print(globals()[name]('text'))",
    "iterator that has begun": "ones = iter([5, 1, 1, 1])\nnext(ones)\ndef f(n): return n + next(ones)",
    "thread of an example": "from threading import Thread\ndef f(n): return n + 1\nseen = []\n"
    "def main(d): d.append(f(int(input())))\nt = Thread(target=main, args=(seen,))\nt.run()\nmain(seen)",
    "example beside a table": "table = [1]\ndef show(d): print(d[5])\nshow(table)\nx = show(table)\n"
    "def f(n): return n + table[0]",
    "waits": "import os, time\ndef f(n): return n + 1\ntime.sleep(1000)\nos.kill(os.getpid(), 9)",
    "missing module": "import no_such_module\ndef f(n): return n + 1",
    "left over": "def f(n): return n + 1\n[DONE]\n</s>",
    "asserts first": "assert 1 == 2\ndef f(n): return n + 1",
    "guard": "def f(n): return n + 1\nif __name__ == '__main__' or True and __name__:\n    f(input())",
}


@pytest.mark.parametrize("name", REACHED)
def test_what_the_function_reaches_is_kept_and_the_rest_is_not(name, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: 1 / 0)
    monkeypatch.setattr("builtins.one", None, raising=False)
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    space = vars(module)
    exec(compile(only_program(REACHED[name], "f"), "program", "exec", dont_inherit=True), space)
    assert [space["f"](n) for n in (4, 0)] == [5, 1]
