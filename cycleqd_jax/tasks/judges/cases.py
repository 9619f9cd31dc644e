"""Judges a program by a ``unittest`` class that is executed beside it. Runs in the sandbox.

The job has ``code``, ``tests`` (the test class's source, which shares the program's names), ``name`` (of the function under
test), ``case`` (of the class), ``count`` (how many tests it has) and ``modules`` (that both use); the verdict has ``passed``
and ``failed`` (how many tests did), ``error`` (of the first), and ``over`` (whether all ended well).

Such tests replace parts of modules while they run, so they can't be kept apart from the program. Instead: for each test that
has passed, and for their end, the program's process has to return a fresh token; ``unittest`` and the built-ins must be after
each test what they were before the program; and a result of the function that decides itself what it is equal to fails its
test. What this does not stop: a program that knows this file, finds the socket among its open files and answers on it from
within a test, or one that changes other modules that the tests rely on.
"""

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
from cycleqd_jax.tasks.judges.inside import Ended, describe, preside

__all__ = []

_OWNERS = (builtins, unittest, unittest.case, unittest.TestCase, unittest.TestSuite, unittest.TestResult, unittest.TestLoader)
_ANY = type(unittest.mock.ANY)
_MOCKS = [
    (getattr(unittest.mock, name),)
    for name in ("NonCallableMock", "NonCallableMagicMock", "Mock", "MagicMock", "AsyncMock", "PropertyMock")
]
_OF_MOCKS = unittest.mock.MagicProxy


def snapshot():
    """What ``unittest`` and the built-ins are made of."""
    members = [dict(vars(owner)) for owner in _OWNERS]
    functions = {id(m): m for group in members for m in group.values() if type(m) is types.FunctionType}
    return members, [(function, function.__code__) for function in functions.values()]


def changed(before):
    """Whether they are something else now."""
    members, codes = before
    for owner, group in zip(_OWNERS, members, strict=True):
        now = vars(owner)
        if any(now.get(name) is not member for name, member in group.items() if name not in ("_", "__warningregistry__")):
            return True
    return any(function.__code__ is not code for function, code in codes)


def operators():
    """What decides for each class that there is, by its id; and the classes, to keep their ids."""
    classes, pending = {}, [object]
    while pending:
        for kind in type.__subclasses__(pending.pop()):
            if id(kind) not in classes:
                classes[id(kind)] = kind
                pending.append(kind)
    return {key: [vars(kind).get(name) for name in DECIDING] for key, kind in classes.items()}, classes


class Results(unittest.TestResult):
    """Asks for a token before each test, and returns it where the test passed."""

    def __init__(self, link, before):
        super().__init__()
        self.link, self.before = link, before
        self.token, self.bad = None, None

    def startTest(self, test):
        """Asks for the token."""
        super().startTest(test)
        self.link.send("?")
        self.token, self.bad = self.link.receive(), None

    def stopTest(self, test):
        """Returns it, or what happened."""
        super().stopTest(test)
        if self.bad is None and changed(self.before):
            self.bad = "Forged: unittest or the built-ins were changed"
        self.link.send(self.token if self.bad is None else [test.id().split(".")[-1], self.bad])

    def addFailure(self, test, err):
        """Notes a failed assertion."""
        self.bad = describe(err[1])

    def addError(self, test, err):
        """Notes an exception; one outside of any test ends it all."""
        self.bad = describe(err[1])
        if not isinstance(test, unittest.TestCase):
            raise RuntimeError(f"{test.id()}: {self.bad}")

    def addSkip(self, test, reason):
        """Notes a test that was not done: the program may have said so."""
        self.bad = f"skipped: {reason}"[:200]

    def addSubTest(self, test, subtest, err):
        """Notes the failure of a part of a test."""
        if err is not None:
            self.bad = self.bad or describe(err[1])


def guarded(function, known):
    """``function``, whose results must not be of a class of the program's with operators of its own."""
    before, classes = known

    def decent(kind):
        deciding = [vars(kind).get(name) for name in DECIDING]
        if id(kind) in before:
            return kind is not _ANY and before[id(kind)] == deciding
        # Each mock has a class of its own, with operators that are those of all mocks until somebody sets them.
        return kind.__bases__ in _MOCKS and all(member is None or type(member) is _OF_MOCKS for member in deciding)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return plain(function(*args, **kwargs), decent)

    call.__dict__["classes"] = classes  # kept alive: others could get their ids
    return call


def program(link, job):
    """Loads program and tests, and runs all tests."""
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
        if type(function) is types.FunctionType:
            module.__dict__[job["name"]] = guarded(function, known)
        stage = "tests"
        for owner, members in zip(_OWNERS[:3], before[0], strict=False):
            vars(owner).update(members)
        exec(compile(job["tests"], "__test__.py", "exec", optimize=0), module.__dict__)
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
    """Counts the tests that passed and failed; an ``error`` of None with tests left: the program ended before the verdict."""
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
    preside(program, judge)
