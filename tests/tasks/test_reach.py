"""What of a program its function reaches: statements whose change is hidden, and examples that look like a part of it."""

from __future__ import annotations

import sys
import types

import pytest

from cycleqd_jax.tasks.coding.extraction import only_program

RIGHT = "def f(n): return n + 1"


def using(module: str, last: str) -> str:
    """A program whose function uses a module, with an example that calls the module too."""
    return f"import {module}\ndef f(n):\n    {module}\n    return n + 1\n{last}"


PARTS = {
    "captured": "match [1, 2]:\n    case [one, *_]: pass\ndef f(n): return n + one",
    "captured by a star": "match [0, 1]:\n    case [_, *ones]: pass\ndef f(n): return n + ones[0]",
    "captured rest": "match {'a': 0, 'b': 1}:\n    case {'a': 0, **rest}: pass\ndef f(n): return n + rest['b']",
    "bound in an assert": "assert (one := 1) == 1\ndef f(n): return n + one",
    "changed in an assert": "ones = []\nassert ones.append(1) is None\ndef f(n): return n + ones[0]",
    "method of a type": "ones = []\nlist.append(ones, 1)\ndef f(n): return n + ones[0]",
    "method that is passed on": "ones = []\nlist(filter(ones.append, [1]))\ndef f(n): return n + ones[0]",
    "method as a key": "ones = []\nsorted([1], key=ones.append)\ndef f(n): return n + ones[0]",
    "lambda as a key": "ones = []\nmax([1, 1], key=lambda x: ones.append(x) or x)\ndef f(n): return n + ones[0]",
    "pool": "from concurrent.futures import ThreadPoolExecutor\nones = []\nwith ThreadPoolExecutor() as pool:\n"
    "    pool.submit(ones.append, 1)\ndef f(n): return n + ones[0]",
    "attribute in a loop": "def f(n): return n + f.ones[0]\nf.ones = []\nfor i in [1]: f.ones.append(i)",
    "attribute by setattr": "def f(n): return n + f.one\nsetattr(f, 'one', 1)",
    "attribute of another by an example": f"{RIGHT}\nclass A: pass\nsetattr(A, 'shown', f('text'))",
    "context by a star": "from decimal import *\ngetcontext().prec = 2\ndef f(n): return n + (len(str(Decimal(1) / 3)) == 4)",
    "context": "import decimal\nhere = decimal.getcontext()\nhere.prec = 2\n"
    "def f(n): return n + (len(str(decimal.Decimal(1) / 3)) == 4)",
    "not the main module": "if __name__ != '__main__':\n    one = 1\ndef f(n): return n + one",
    "other side of the guard": "if __name__ == '__main__':\n    one = 0\nelse:\n    one = 1\ndef f(n): return n + one",
    "docstring": "'1'\nfrom __future__ import annotations\ndef f(n): return n + int(__doc__)",
    **{
        f"uses a module, and {last!r}": using(module, last)
        for module, last in (
            ("sys", "sys.exit(0)"),
            ("sys", "sys.exit(f('text'))"),
            ("sys", "n = int(sys.stdin.readline())"),
            ("sys", "sys.stdin.read().split()"),
            ("sys", "sys.setrecursionlimit(int(input()))"),
            ("time", "time.sleep(1000)"),
            ("os", "os.kill(os.getpid(), 9)"),
            ("json", "print(json.loads('no JSON'))"),
            ("unittest", "unittest.main()"),
            ("subprocess", "subprocess.check_call(['false'])"),
            ("asyncio", "async def main(): print(int(input()))\nasyncio.run(main())"),
        )
    },
    "module that is not there": f"import no_such_module as plot\n{RIGHT}\nplot.plot([1])\nplot.done()",
    "example in a class": f"{RIGHT}\nclass Demo:\n    shown = f('text')",
    "example as a default": f"{RIGHT}\ndef demo(x=f('text')): pass",
    "example that a decorator runs": f"{RIGHT}\ndef run(g):\n    g()\n    return g\n@run\ndef main(): print(f('text'))",
    "example by another name": f"{RIGHT}\ng = f\nprint(g('text'))\ndel g",
    "example in a table": "table = {}\ndef f(n): return n + 1 + 0 * len(table)\ntable['x'] = f('text')",
    "example that uses a name again": "seen = {}\ndef f(n): return seen.setdefault(n, n + 1)\nseen = f(3)",
    "loop that uses a name again": "k = 1\ndef f(n): return n + k\nfor k in [5, 6]: print(f(k))",
    "input that uses a name again": "k = 1\ndef f(n): return n + k\nk = int(input())",
    "sum of examples": "total = 1\ndef f(n): return n + total\ntotal += f(3)",
    "value that fails": f"{RIGHT}\nx = 1 / 0",
    "argument twice": f"{RIGHT}\ndef g(a, a): pass",
    "nonlocal of nothing": f"{RIGHT}\ndef g():\n    nonlocal a\n    a = 1",
    "await in a function": f"{RIGHT}\ndef g():\n    await f(1)",
    "return in a class": f"{RIGHT}\nclass A:\n    return 1",
}


@pytest.mark.parametrize("name", PARTS)
def test_what_the_function_needs_is_kept_and_examples_are_not(name, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "stdin", None)
    module = types.ModuleType("program")
    monkeypatch.setitem(sys.modules, "program", module)
    space = vars(module)
    exec(compile(only_program(PARTS[name], "f"), "program", "exec", dont_inherit=True), space)
    assert [space["f"](n) for n in (4, 0)] == [5, 1]
