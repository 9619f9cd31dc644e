"""Programs that forge the verdict of MBPP's asserts, which run in the program's process."""

from __future__ import annotations

from .attack import Attack

__all__ = ["VERDICTS_MBPP"]

VERDICTS_MBPP = [
    Attack(
        "exit",
        "sys.exit in the call",
        "mbpp",
        """\
import sys
def add(a, b): sys.exit(0)
""",
        "tokens that only the judge knows, sent before each assert",
    ),
    Attack(
        "exit",
        "SystemExit while loading",
        "mbpp",
        """\
class add:
    raise SystemExit(0)
""",
        "tokens that only the judge knows, sent before each assert",
    ),
    Attack(
        "exit",
        "os._exit with a forged verdict",
        "mbpp",
        """\
import os
def add(a, b):
    os.write(1, b'{"passed": 3, "error": null}')
    os._exit(0)
""",
        "tokens that only the judge knows, sent before each assert",
    ),
    Attack(
        "exit",
        "a verdict on every descriptor",
        "mbpp",
        """\
import os
def add(a, b):
    for fd in range(64):
        try: os.write(fd, b'\\0' * 7 + b'\\x03"?"')
        except OSError: pass
""",
        "tokens that only the judge knows, sent before each assert",
    ),
    Attack(
        "exit",
        "atexit",
        "mbpp",
        """\
import atexit, os
def add(a, b):
    atexit.register(os._exit, 0)
    return 0
""",
        "tokens that only the judge knows, sent before each assert",
    ),
    Attack(
        "exit",
        "exec of another program",
        "mbpp",
        """\
import os
def add(a, b): os.execv('/bin/true', ['true'])
""",
        "tokens that only the judge knows, sent before each assert",
    ),
    Attack(
        "exit",
        "a child that goes on",
        "mbpp",
        """\
import os
def add(a, b):
    if os.fork(): os._exit(0)
    return 0
""",
        "tokens that only the judge knows, sent before each assert",
    ),
    Attack(
        "exit",
        "a signal to the judge",
        "mbpp",
        """\
import os
def add(a, b): os.kill(os.getppid(), 9)
""",
        "the verdict of a judge that has ended is 0",
    ),
    Attack(
        "exit",
        "a stopped judge",
        "mbpp",
        """\
import os
def add(a, b): os.kill(os.getppid(), 19)
""",
        "the wall clock of the supervisor",
    ),
    Attack(
        "equality",
        "always equal",
        "mbpp",
        """\
class E:
    def __eq__(s, o): return True
    def __ne__(s, o): return False
    def __hash__(s): return 1
def add(a, b): return E()
""",
        "operands whose operators are the program's own are refused",
        default=True,
    ),
    Attack(
        "equality",
        "always equal, deep in a list",
        "mbpp",
        """\
class E:
    def __eq__(s, o): return True
    def __ne__(s, o): return False
    def __hash__(s): return 1
def add(a, b): return [[{1: E()}]]
""",
        "operands whose operators are the program's own are refused",
    ),
    Attack(
        "equality",
        "a metaclass",
        "mbpp",
        """\
class M(type):
    def __eq__(c, o): return True
    def __hash__(c): return 1
class C(metaclass=M): pass
def add(a, b): return C
""",
        "operands whose operators are the program's own are refused",
    ),
    Attack(
        "equality",
        "a false __class__",
        "mbpp",
        """\
class E:
    def __eq__(s, o): return True
    def __ne__(s, o): return False
    def __hash__(s): return 1
class F(E):
    __class__ = property(lambda s: int)
def add(a, b): return F()
""",
        "operands whose operators are the program's own are refused",
    ),
    Attack(
        "equality",
        "an int that compares itself",
        "mbpp",
        """\
class I(int):
    __eq__ = lambda s, o: True
    __hash__ = int.__hash__
def add(a, b): return I(9)
""",
        "operands whose operators are the program's own are refused",
    ),
    Attack(
        "equality",
        "reflected arithmetic",
        "mbpp",
        """\
class E:
    def __eq__(s, o): return True
    def __ne__(s, o): return False
    def __hash__(s): return 1
class R(E):
    __sub__ = __rsub__ = __add__ = __radd__ = lambda s, o: 0
def add(a, b): return R()
""",
        "operands whose operators are the program's own are refused",
    ),
    Attack(
        "built-ins",
        "set",
        "mbpp",
        """\
import builtins
def add(a, b):
    builtins.set = lambda x: 0
    return {1: 3, 2: 4}.get(a)
""",
        "asserts see saved built-ins and modules",
    ),
    Attack(
        "built-ins",
        "AssertionError",
        "mbpp",
        """\
import builtins
def add(a, b):
    builtins.AssertionError = type('A', (BaseException,), {'__new__': lambda c, *a: 1})
    return 0
""",
        "tokens that only the judge knows, sent before each assert",
    ),
    Attack(
        "built-ins",
        "__import__ and exec",
        "mbpp",
        """\
import builtins
builtins.exec = builtins.compile = lambda *a, **k: None
def add(a, b): return 0
""",
        "asserts see saved built-ins and modules",
    ),
    Attack(
        "built-ins",
        "trace functions",
        "mbpp",
        """\
import sys
def add(a, b):
    sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None); sys.excepthook = print
    return 0
""",
        "tokens that only the judge knows, sent before each assert",
    ),
    Attack(
        "huge",
        "a result without end",
        "mbpp",
        """\
def add(a, b):
    x = []
    x.append(x)
    return x
""",
        "the comparison fails",
    ),
    Attack(
        "huge",
        "a representation of a gigabyte",
        "mbpp",
        """\
class H:
    def __repr__(s): return 'x' * 10**9
def add(a, b): raise ValueError(H())
""",
        "memory limit; reasons are cut",
    ),
    Attack(
        "huge",
        "an error that raises when it is printed",
        "mbpp",
        """\
class H(Exception):
    def __str__(s): raise SystemExit(0)
def add(a, b): raise H
""",
        "tokens that only the judge knows, sent before each assert",
    ),
]
