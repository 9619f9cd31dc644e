"""Replies of many forms around a right program."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

PARTS = Path(__file__).with_name("programs_of_parts.txt")


def forms(code: str, name: str) -> Iterator[tuple[str, str]]:
    """What surrounds a right program in a reply: kinds, and a reply of each."""
    call = f"{name}(1, 2, 3, 4, 5, 6, 7)"
    bad = f"def {name}(*args):\n    raise ValueError\n    return 1\n"
    helper = "import math\n\ndef helper_of_it(x):\n    return x\n"

    def fence(program: str, language: str = "python") -> str:
        return f"```{language}\n{program}\n```"

    doc = '"""A program.\n\nMore text.\n"""\n'
    yield "bare", code
    yield "fence", fence(code)
    yield "prose around", f"Sure, here it is:\n\n{fence(code)}\n\nIt returns what you want, doesn't it?"
    yield "prose without fences", f"Sure, here it is:\n\n{code}\n\nThis doesn't need more."
    yield "no language", fence(code, "")
    yield "Python 3", fence(code, "python3")
    yield "py", fence(code, "py")
    yield "tildes", f"~~~python\n{code}\n~~~"
    yield "no end", f"Here:\n```python\n{code}"
    yield "continued prompt", f"{code}\n```\nThat was it."
    yield "main guard", fence(f"{code}\n\nif __name__ == '__main__':\n    print({call})\n    raise SystemExit(3)")
    yield "input", fence(f"{code}\n\nn = int(input())\nprint({call})")
    yield "wrong assert", fence(f"{code}\n\nassert {call} == 'no'")
    yield "wrong print", fence(f"{code}\n\nprint({call})")
    yield "tests in a block of their own", f"{fence(code)}\n\nTests:\n\n{fence(f'assert {call} == 0')}"
    yield "usage first", f"It is used so:\n\n{fence(f'print({call})')}\n\n{fence(code)}"
    yield "wrong first, corrected later", f"{fence(bad)}\n\nWait, that is wrong. Corrected:\n\n{fence(code)}"
    yield "draft in think", f"<think>\nPerhaps\n{fence(bad)}\nno.\n</think>\n{fence(code)}"
    yield "draft in think, end only", f"Perhaps\n{fence(bad)}\nno.\n</think>\n{fence(code)}"
    yield "bare draft in think", f"<think>\n{bad}\n</think>\n\n{code}"
    yield "imports in a block of their own", f"{fence('import math, re, itertools, collections, heapq')}\n\n{fence(code)}"
    yield "helper apart", f"{fence(helper)}\n\nand\n\n{fence(code)}"
    yield "helper and unused parts", fence(f"{helper}\n{code}\n\ndef main():\n    print({call})\n\nmain()")
    yield "doc of the module", fence(doc + code)
    yield "numbered list", "1. First:\n\n" + textwrap.indent(fence(code), "   ")
    yield "quoted", textwrap.indent(fence(code), "> ", lambda line: True)
    yield "pip first", f"```bash\npip install numpy\n```\n\n{fence(code)}"
    yield "output block", f"{fence(code)}\n\nOutput:\n\n```\n3\n```"
    yield "json block", f'{fence(code)}\n\n```json\n{{"a": 1}}\n```'
    yield "alternative of the same", f"{fence(code)}\n\nAlso:\n\n{fence(code)}"
    yield "windows lines", fence(code).replace("\n", "\r\n")
    yield "tabs", fence(code.replace("    ", "\t"))
    yield "BOM", "\ufeff" + code
    yield "cut in a second function", fence(f"{code}\n\ndef unfinished(x):\n    y = [1,")[:-4]
    yield "cut in an example", f"```python\n{code}\n\nprint({name}("
    yield "repeated", "\n\n".join([fence(code)] * 3)
    yield "special tokens", f"{fence(code)}<|im_end|>"
    yield "begin and end tags", f"[PYTHON]\n{code}\n[/PYTHON]"
    yield "code tags", f"<code>\n{code}\n</code>"
    yield "signature, then code", f"The function `def {name}(x)` is:\n\n{fence(code)}"
    yield "class with main", fence(f"{code}\n\nclass Tester:\n    def run(self):\n        return {call}\n\nTester().run()")
    yield "decorator", fence(f"import functools\n\ndef same(f):\n    return f\n\n{code}\n\n{name} = same({name})")
    yield "constant", fence(f"LIMIT = 10\n{code}")
    yield "indented all", textwrap.indent(code, "    ")
    yield "indented after text", "The program:\n\n" + textwrap.indent(code, "    ")
    yield "doctest below", fence(code + f"\n\n>>> {call}\n3")
    yield "prose with apostrophe inside", f"Let's do it. It isn't hard.\n{code}\nDon't forget: it's tested."
    yield "blank lines with markdown", f"## Solution\n\n{fence(code)}\n\n## Explanation\n\n- it's `good`\n- 1) 2)"


def parts(code: str, name: str) -> Iterator[tuple[str, str]]:
    """Programs whose entry point needs other parts, or that run more than what it needs: kinds, and a reply of each.

    In the file, INNER stands for a right program whose function is called ``inner``, NAME for the name of the entry point.
    """
    inner = re.sub(rf"\b{name}\b", "inner", code)
    for section in re.split(r"^### ", PARTS.read_text(), flags=re.MULTILINE)[1:]:
        kind, _, program = section.partition("\n")
        yield kind, f"```python\n{program.replace('INNER', inner).replace('NAME', name)}```"
