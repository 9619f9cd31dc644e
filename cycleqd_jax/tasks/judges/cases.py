"""Judges a program by a ``unittest`` class that runs in the program's process. Runs in the sandbox.

The job contains ``code``, ``tests`` (source of the test class, which shares the program's names), ``name`` (of the tested
function), ``case`` (name of the class), ``count`` (number of tests) and ``modules`` (that both use). The verdict contains
``passed`` and ``failed`` (numbers of tests), ``error`` (of the first failure) and ``over`` (whether the run was complete).

The tests replace parts of modules while they run, so they must run in the program's process. Three checks protect the verdict.
The process has to return a fresh token for every passed test and for the end of the run. After every test, ``unittest`` and the
built-ins must be the same as before the program. A value with an equality of its own fails its test: the results of the
function are checked, whatever kind of callable it is, and the operands of all comparisons and assertions of the tests. Not
prevented: a program
that knows this file, finds the socket among its open files and answers on it during a test, or a program that changes other
modules that the tests use.
"""

import ast
import builtins
import contextlib
import functools
import importlib
import os
import sys
import types
import unittest
import unittest.mock

from cycleqd_jax.tasks.judges.equality import DECIDING, Forged, plain
from cycleqd_jax.tasks.judges.inside import Ended, describe, run_judge

__all__ = []

_OWNERS = (builtins, unittest, unittest.case, unittest.TestCase, unittest.TestSuite, unittest.TestResult, unittest.TestLoader)
_ANY = type(unittest.mock.ANY)
_MOCKS = [
    (getattr(unittest.mock, name),)
    for name in ("NonCallableMock", "NonCallableMagicMock", "Mock", "MagicMock", "AsyncMock", "PropertyMock")
]
_OF_OTHERS = ("assertRaises", "assertRaisesRegex", "assertWarns", "assertWarnsRegex", "assertIsInstance", "assertIsNotNone")
_OF_MOCKS = unittest.mock.MagicProxy


def snapshot():
    """The members of ``unittest`` and the built-ins, and the code of their functions."""
    members = [dict(vars(owner)) for owner in _OWNERS]
    functions = {id(m): m for group in members for m in group.values() if type(m) is types.FunctionType}
    return members, [(function, function.__code__) for function in functions.values()]


def changed(before):
    """Whether ``unittest`` or the built-ins differ from a snapshot."""
    members, codes = before
    for owner, group in zip(_OWNERS, members, strict=True):
        now = vars(owner)
        if any(now.get(name) is not member for name, member in group.items() if name not in ("_", "__warningregistry__")):
            return True
    return any(function.__code__ is not code for function, code in codes)


def operators():
    """The operators of all existing classes by the id of the class, and the classes, so that their ids stay in use."""
    classes, pending = {}, [object]
    while pending:
        for kind in type.__subclasses__(pending.pop()):
            if id(kind) not in classes:
                classes[id(kind)] = kind
                pending.append(kind)
    return {key: [vars(kind).get(name) for name in DECIDING] for key, kind in classes.items()}, classes


class Results(unittest.TestResult):
    """Requests a token before each test, and returns it if the test has passed."""

    def __init__(self, link, before):
        super().__init__()
        self.link, self.before = link, before
        self.token, self.bad = None, None

    def startTest(self, test):
        """Requests the token."""
        super().startTest(test)
        self.link.send("?")
        self.token, self.bad = self.link.receive(), None

    def stopTest(self, test):
        """Returns the token, or the reason of the failure."""
        super().stopTest(test)
        if self.bad is None and changed(self.before):
            self.bad = "Forged: unittest or the built-ins were changed"
        self.link.send(self.token if self.bad is None else [test.id().split(".")[-1], self.bad])

    def addFailure(self, test, err):
        """Records a failed assertion."""
        self.bad = describe(err[1])

    def addError(self, test, err):
        """Records an exception; an exception outside a test ends the run."""
        self.bad = describe(err[1])
        if not isinstance(test, unittest.TestCase):
            raise RuntimeError(f"{test.id()}: {self.bad}")

    def addSkip(self, test, reason):
        """Records a skipped test as failed: the program may have skipped it."""
        self.bad = f"skipped: {reason}"[:200]

    def addSubTest(self, test, subtest, err):
        """Records the failure of a subtest."""
        if err is not None:
            self.bad = self.bad or describe(err[1])


def checker(known):
    """A function that returns its argument, and refuses values of a class of the program with operators of its own."""
    before, classes = known

    def is_allowed(kind):
        deciding = [vars(kind).get(name) for name in DECIDING]
        if id(kind) in before:
            return kind is not _ANY and before[id(kind)] == deciding
        # Each mock has a class of its own, whose operators are those of all mocks until they are set.
        return kind.__bases__ in _MOCKS and all(member is None or type(member) is _OF_MOCKS for member in deciding)

    def check(value):
        return plain(value, is_allowed)

    check.__dict__["classes"] = classes  # keeps the classes alive, so that their ids are not reused
    return check


def guarded(function, check):
    """A callable of any kind, with a check of its results."""

    @functools.wraps(function, updated=())
    def call(*args, **kwargs):
        return check(function(*args, **kwargs))

    for name in dir(function):  # such as cache_clear of a function with a cache
        if not name.startswith("__"):
            with contextlib.suppress(Exception):
                setattr(call, name, getattr(function, name))
    return call


class Operands(ast.NodeTransformer):
    """Checks the operands of comparisons, and the arguments of assertions, in the source of the tests."""

    def visit_Compare(self, node):
        """Checks both sides of each comparison, but for identity."""
        self.generic_visit(node)
        if not all(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops):
            node.left = checked(node.left)
            node.comparators = [checked(side) for side in node.comparators]
        return node

    def visit_Call(self, node):
        """Checks the arguments of ``self.assert…``."""
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name.startswith("assert") and name[6:7].isupper() and name not in _OF_OTHERS:
            node.args = [argument if isinstance(argument, ast.Starred) else checked(argument) for argument in node.args]
        return node


def checked(node):
    """A call of ``__plain__`` with a node; a constant needs no check."""
    return node if isinstance(node, ast.Constant) else ast.Call(ast.Name("__plain__", ast.Load()), [node], [])


def program(link, job):
    """Loads the program and the tests, and runs the tests."""
    stage = "program"
    try:
        os.chdir(os.environ.get("TMPDIR", "/tmp"))
        for name in job["modules"]:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        before, known = snapshot(), operators()
        module = types.ModuleType("__test__")
        module.__dict__.update(__file__="__test__.py", sys=sys, os=os, environ=os.environ)
        sys.modules["__test__"] = module
        exec(compile(job["code"], "__test__.py", "exec", optimize=0), module.__dict__)
        function = module.__dict__.get(job["name"])
        check = checker(known)
        if callable(function):
            module.__dict__[job["name"]] = guarded(function, check)
        module.__dict__["__plain__"] = check
        stage = "tests"
        for owner, members in zip(_OWNERS[:3], before[0], strict=False):
            vars(owner).update(members)
        tests = ast.fix_missing_locations(Operands().visit(ast.parse(job["tests"])))
        exec(compile(tests, "__test__.py", "exec", optimize=0), module.__dict__)
        suite = unittest.TestLoader().loadTestsFromTestCase(module.__dict__[job["case"]])
        if changed(before):
            raise Forged("unittest or the built-ins were changed")
        suite.run(Results(link, before))
        link.send("?")
        link.send(link.receive())
    except BaseException as error:
        with contextlib.suppress(Ended):
            link.send([stage, describe(error)])


def judge(link, job, secret):
    """Counts the passed and the failed tests; ``error`` is None if the program ended before the verdict."""
    passed, failed, error, over = 0, 0, None, False
    with contextlib.suppress(Ended, ValueError, TypeError):
        for number in range(job["count"] + 1):
            token = os.urandom(16).hex()
            answer = link.receive()
            asked = answer == "?"
            if asked:
                link.send(token)
                answer = link.receive()
            if answer != token:
                stage, text = answer
                error = error or [str(stage)[:80], str(text)[:200]]
                failed += 1
                if not asked:
                    break
            elif number < job["count"]:
                passed += 1
            else:
                over = True
    return {"passed": passed, "failed": failed, "error": error, "over": over}


if __name__ == "judge":
    run_judge(program, judge)
