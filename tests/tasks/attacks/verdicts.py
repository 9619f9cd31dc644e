"""Programs that forge the verdict on themselves."""

from __future__ import annotations

from .attack import Attack
from .verdicts_mbpp import VERDICTS_MBPP

__all__ = ["VERDICTS"]

VERDICTS = [
    *VERDICTS_MBPP,
    Attack(
        "arguments",
        "changed while they are compared",
        "bigcodebench",
        """\
def task_func(n):
    json.loads = lambda s: range(5)
    return '[]'
""",
        "one of the tests does not use what was changed",
    ),
    Attack(
        "frames",
        "the expected value in the callers' frames",
        "humaneval",
        """\
import gc, sys
def _found():
    frame, seen = sys._getframe(), []
    while frame:
        seen += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    return seen + gc.get_objects()
def twice(x):
    for v in _found():
        if isinstance(v, str) and 'META' + 'DATA' in v: return [x + 1, x + 1]
    return 0
""",
        "the judge's process, which does not run the program",
        default=True,
    ),
    Attack(
        "frames",
        "the test in the memory of its own process",
        "humaneval",
        """\
import re
def twice(x):
    with open("/proc/self/mem", "rb") as memory, open("/proc/self/maps") as maps:
        for line in maps:
            first, last = (int(n, 16) for n in line.split()[0].split("-"))
            try:
                memory.seek(first)
                if re.search(rb"METADAT[A] = [{]}", memory.read(last - first)): return [x + 1] * 2
            except (OSError, ValueError, OverflowError): pass
    return 0
""",
        "the test is read by the judge only; the program's process never has it in its memory",
    ),
    Attack(
        "frames",
        "the secret among all objects",
        "evalplus",
        """\
import gc, sys
def _found():
    frame, seen = sys._getframe(), []
    while frame:
        seen += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    return seen + gc.get_objects()
def f(n):
    for v in _found():
        if isinstance(v, dict) and ('expected' in v or 'nonce' in v): return n + 1
    return 0
""",
        "the judge's process, which does not run the program",
    ),
    Attack(
        "frames",
        "the memory of the judge",
        "evalplus",
        """\
import os
def f(n):
    with open(f'/proc/{os.getppid()}/mem', 'rb') as m:
        m.read(1)
    return n + 1
""",
        "the judge is not dumpable",
    ),
    Attack(
        "frames",
        "the descriptors of the judge",
        "evalplus",
        """\
import os
def f(n):
    os.listdir(f'/proc/{os.getppid()}/fd')
    return n + 1
""",
        "the judge is not dumpable",
    ),
    Attack(
        "frames",
        "ptrace of the judge",
        "humaneval",
        """\
import ctypes, os
def twice(x):
    if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0: return [x + 1] * 2
""",
        "system call filter",
    ),
    Attack(
        "arguments",
        "a result that changes after it was returned",
        "evalplus",
        """\
import threading
last = []
def f(n):
    last.append(n)
    return last
""",
        "results are sent as data",
    ),
    Attack(
        "arguments",
        "an argument that is changed",
        "evalplus",
        """\
def f(n):
    n = n.__class__(0)
    return n
""",
        "the judge's process, which does not run the program",
    ),
    Attack(
        "equality",
        "a subclass of int",
        "evalplus",
        """\
class I(int):
    def __eq__(s, o): return True
    __hash__ = None
def f(n): return I(0)
""",
        "results are decoded as built-in types",
    ),
    Attack(
        "equality",
        "a false encoding of a result",
        "evalplus",
        """\
class L(list):
    def __iter__(s): return iter([1])
def f(n): return L([n + 9])
""",
        "items are read by list's own method",
    ),
    Attack(
        "frames",
        "the module of the judge",
        "evalplus",
        """\
import sys
def f(n):
    for m in list(sys.modules.values()):
        if hasattr(m, 'agrees') or hasattr(m, 'run_judge'): m.agrees = lambda *a: (True, 0)
    return 0
""",
        "the judge's process, which does not run the program",
    ),
    Attack(
        "exit",
        "half a message",
        "evalplus",
        """\
import os
def f(n):
    for fd in range(3, 64):
        try: os.write(fd, b'\\0\\0\\0')
        except OSError: pass
    os._exit(0)
""",
        "a message that is no JSON ends the program",
    ),
    Attack(
        "exit",
        "a message of another size",
        "humaneval",
        """\
import os
def twice(x):
    for fd in range(3, 64):
        try: os.write(fd, b'\\xff' * 64)
        except OSError: pass
""",
        "the size of messages is limited",
    ),
    Attack(
        "huge",
        "a nested result",
        "evalplus",
        """\
def f(n):
    x = []
    for _ in range(10**5): x = [x]
    return x
""",
        "values nested too deeply are refused",
    ),
    Attack(
        "huge",
        "a number of a million digits",
        "evalplus",
        "def f(n): return 10**(10**6)",
        "numbers are compared as numbers",
    ),
    Attack(
        "built-ins",
        "unittest's assertions",
        "bigcodebench",
        """\
import unittest
unittest.TestCase.assertEqual = lambda *a: None
def task_func(n): return ''
""",
        "unittest must be unchanged after each test",
    ),
    Attack(
        "built-ins",
        "unittest's runner",
        "bigcodebench",
        """\
import unittest
unittest.TestSuite.run = lambda s, r: r
def task_func(n): return ''
""",
        "unittest must be unchanged",
    ),
    Attack(
        "built-ins",
        "an assertion that is restored",
        "bigcodebench",
        """\
import unittest
def task_func(n):
    case, old = unittest.TestCase, unittest.TestCase.assertEqual
    def once(*a): case.assertEqual = old
    case.assertEqual = once
    return ''
""",
        "the number of passed tests must be that of the record",
    ),
    Attack(
        "equality",
        "a callable object",
        "bigcodebench",
        """\
class E:
    def __eq__(s, o): return True
    def __ne__(s, o): return False
    def __hash__(s): return 1
class C:
    def __call__(s, n): return E()
task_func = C()
""",
        "results of every kind of callable are checked",
        default=True,
    ),
    Attack(
        "equality",
        "a text of every length",
        "bigcodebench",
        """\
class S(str):
    __eq__ = lambda s, o: True
    __len__ = lambda s: 5
    __hash__ = None
def task_func(n): return S('[]')
""",
        "operands whose operators are the program's own are refused",
    ),
    Attack(
        "exit",
        "a test that exits",
        "bigcodebench",
        """\
import os
def task_func(n): os._exit(0)
""",
        "tokens that only the judge knows, sent before each assert",
    ),
    Attack(
        "exit",
        "a skipped test",
        "bigcodebench",
        """\
import unittest
def task_func(n): raise unittest.SkipTest
""",
        "skipped tests count as failed",
    ),
]
