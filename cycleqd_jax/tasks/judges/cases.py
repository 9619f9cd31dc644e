"""Judges a program by a ``unittest`` class that runs in the program's process. Runs in the sandbox.

The job contains ``code``, ``tests`` (source of the test class, which shares the program's names), ``name`` (of the tested
function), ``case`` (name of the class), ``skipped`` and ``failing`` (names of tests that are decorated so) and ``modules``
(that both use). The verdict contains ``passed`` and ``failed`` (numbers of tests), ``error`` (of the first failure) and
``over`` (whether the run was complete).

The tests replace parts of modules while they run, so they must run in the program's process. Three checks protect the verdict.
The process has to return a fresh token for every passed test and for the end of the run. After every test, ``unittest`` and the
built-ins must be the same as before the program, and the test class as before its first test. A trace function, which may move
a test past its assertions, must not have been set. A value with an equality of its own fails its test. The results of the
function are checked, whatever kind of callable it is, and so are the operands of all comparisons and assertions of the tests. A
class of the standard library may define equality if nothing that its operators use was changed.

Not prevented: a program that knows this file, finds the socket among its open files and answers on it during a test; one that
changes local variables of the frames above it; and one that changes other modules that the tests use.
"""

import ast
import builtins
import contextlib
import contextvars
import functools
import importlib
import inspect
import os
import sys
import types
import unittest
import unittest.mock

from cycleqd_jax.tasks.judges.classes import Existing, acting, snapshot
from cycleqd_jax.tasks.judges.equality import Forged, changed, plain, remember_check
from cycleqd_jax.tasks.judges.inside import Ended, describe, run_judge

__all__ = []

_OWNERS = (
    builtins, unittest, unittest.case, unittest.TestCase, unittest.TestSuite, unittest.BaseTestSuite, unittest.TestResult,
    unittest.TestLoader, vars(unittest.case)["_Outcome"],
)  # fmt: skip
_NO_RESULT = "the test recorded no result"
_OF_OTHERS = ("assertRaises", "assertRaisesRegex", "assertWarns", "assertWarnsRegex", "assertIsInstance", "assertIsNotNone")


class Results(unittest.TestResult):
    """Requests a token before each test, and returns it if the test has passed.

    ``is_forged`` and ``is_unfinished`` must return False: for the test, and for its name. ``skipped`` and ``failing`` are the
    names of tests that are decorated so.
    """

    def __init__(self, link, is_forged, is_unfinished, skipped=(), failing=()):
        super().__init__()
        self.link, self.is_forged, self.is_unfinished = link, is_forged, is_unfinished
        self.may_skip, self.may_fail = frozenset(skipped), frozenset(failing)
        self.token, self.bad, self.functions = None, None, None

    def startTest(self, test):
        """Requests the token."""
        super().startTest(test)
        self.link.send("?")
        self.token, self.bad = self.link.receive(), _NO_RESULT
        self.functions = dict(vars(test)["_type_equality_funcs"])

    def stopTest(self, test):
        """Returns the token, or the reason of the failure."""
        super().stopTest(test)
        if self.bad is None and (self.is_forged(test) or vars(test)["_type_equality_funcs"] != self.functions):
            self.bad = "Forged: unittest, the test class or the built-ins were changed"
        name = test.id().split(".")[-1]
        if self.bad is None and name not in self.may_skip | self.may_fail and self.is_unfinished(name):
            self.bad = "Forged: the test did not run to its end"
        self.link.send(self.token if self.bad is None else [name, self.bad])

    def addSuccess(self, test):
        """Records that all parts of a test have passed."""
        expected = vars(test)["_outcome"].expectedFailure
        self.bad = None if expected is None else "a failure was expected"

    def addFailure(self, test, err):
        """Records a failed assertion."""
        self.bad = describe(err[1])

    def addError(self, test, err):
        """Records an exception; an exception outside a test ends the run."""
        self.bad = describe(err[1])
        if not isinstance(test, unittest.TestCase):
            raise RuntimeError(f"{test.id()}: {self.bad}")

    def addSkip(self, test, reason):
        """Records a skipped test as failed, if it is not decorated so: the program may have skipped it."""
        self.bad = None if test.id().split(".")[-1] in self.may_skip else f"skipped: {reason}"[:200]

    def addExpectedFailure(self, test, err):
        """Records the failure of a test that is decorated so as passed."""
        self.bad = None if test.id().split(".")[-1] in self.may_fail else "a failure was expected"

    def addUnexpectedSuccess(self, test):
        """Records a test that is decorated as failing, and passes."""
        self.bad = "a failure was expected"

    def addSubTest(self, test, subtest, err):
        """Records the failure of a subtest."""
        if err is not None:
            self.bad = describe(err[1]) if self.bad in (None, _NO_RESULT) else self.bad


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


def finished(test, runner, ended):
    """A test that adds its name to ``ended`` after its last statement. If it is a coroutine, it is awaited.

    ``unittest`` passes a test that returns a coroutine or a generator without running it. It leaves a test without a result
    where a private exception ends it.
    """
    stop, name = vars(unittest.case)["_ShouldStop"], test.__name__

    def end(result):
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise Forged("the test is a generator")
        ended.add(name)

    async def wait(result):
        try:
            end(await result)
        except stop:
            raise Forged("the test was stopped") from None

    @functools.wraps(test)
    def run(self, *args, **kwargs):
        try:
            result = test(self, *args, **kwargs)
            if not inspect.isawaitable(result):
                return end(result)
        except stop:
            raise Forged("the test was stopped") from None
        its_own = vars(self).get("_asyncioRunner")  # of IsolatedAsyncioTestCase
        if its_own is not None:
            return its_own.run(wait(result), context=contextvars.copy_context())
        with runner() as one:
            return one.run(wait(result))

    return run


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


def watch_traces(doctests):
    """A list that has an item as soon as a trace function has been set.

    Args:
        doctests: whether ``doctest`` may set the one that was there before it.
    """
    traced, allowed = [], None
    if doctests:
        import doctest

        allowed = doctest.DocTestRunner.run.__code__

    def hook(event, _):
        if event == "sys.settrace" and (allowed is None or sys._getframe(1).f_code is not allowed):
            traced.append(event)

    sys.addaudithook(hook)
    return traced


def program(link, job):
    """Loads the program and the tests, and runs the tests."""
    stage = "program"
    try:
        os.chdir(os.environ.get("TMPDIR", "/tmp"))
        for name in job["modules"]:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        others, runner = [], None
        if "async" in job["tests"].lower():
            import asyncio

            runner = asyncio.Runner
            others = [unittest.IsolatedAsyncioTestCase, asyncio, asyncio.runners, runner, asyncio.Task, asyncio.Future]
        before, existing = snapshot([*map(vars, _OWNERS), vars(Results), *map(vars, others)]), Existing()
        trusted = remember_check(snapshot.__globals__)
        modules, traced = dict(sys.modules), watch_traces("doctest" in job["modules"])
        module = types.ModuleType("__test__")
        module.__dict__.update(__file__="__test__.py", sys=sys, os=os, environ=os.environ)
        sys.modules["__test__"] = module
        exec(compile(job["code"], "__test__.py", "exec", optimize=0), module.__dict__)
        function = module.__dict__.get(job["name"])

        def check(value, opened=existing.opened):
            return plain(value, opened)

        if callable(function):
            module.__dict__[job["name"]] = guarded(function, check)
        module.__dict__.update(__plain__=check, __builtins__=builtins.__dict__)
        stage = "tests"
        for owner, members in before[0][:3]:
            owner.update(members)
        sys.modules.update(modules)
        tests = ast.fix_missing_locations(Operands().visit(ast.parse(job["tests"])))
        exec(compile(tests, "__test__.py", "exec", optimize=0), module.__dict__)
        case = module.__dict__[job["case"]]
        kinds = case.__mro__[:-1]
        ended, wrapped = set(), set()
        members = {name: member for kind in reversed(kinds) for name, member in vars(kind).items()}
        for name, test in members.items():
            if name.startswith("test") and type(test) is types.FunctionType:
                test.__name__ = name
                setattr(case, name, finished(test, runner, ended))
                wrapped.add(name)
        suite = unittest.TestLoader().loadTestsFromTestCase(case)
        ours, own = snapshot([*map(vars, kinds), {"check": check}, vars(Existing)]), [(kind, set(vars(kind))) for kind in kinds]
        inherited = {n for kind in kinds for n, m in vars(kind).items() if acting(m)} | {"__getattribute__", "__getattr__"}
        names = {n: module.__dict__.get(n) for n in (*vars(builtins), "__plain__", "__builtins__", job["name"], job["case"])}

        def is_forged(test=None):
            if traced or type(test) not in (case, type(None)) or unittest.TestCase not in kinds or case.__mro__[:-1] != kinds:
                return True
            if test is not None and not inherited.isdisjoint(vars(test)):
                return True
            if any(acting(vars(kind)[name]) for kind, known in own for name in inherited.intersection(vars(kind)) - known):
                return True
            if any(module.__dict__.get(name) is not value for name, value in names.items()):
                return True
            return changed(before) or changed(existing.mocks) or changed(ours) or changed(trusted)

        if is_forged():
            raise Forged("unittest, the test class or the built-ins were changed")
        suite.run(Results(link, is_forged, lambda name: name in wrapped and name not in ended, job["skipped"], job["failing"]))
        link.send("over")
        link.send(link.receive())
    except BaseException as error:
        with contextlib.suppress(Ended):
            link.send([stage, describe(error)])


def judge(link, job, secret):
    """Counts the passed and the failed tests; ``error`` is None if the program ended before the verdict."""
    passed, failed, error, over = 0, 0, None, False
    with contextlib.suppress(Ended, ValueError, TypeError):
        while not over:
            token = os.urandom(16).hex()
            answer = asked = link.receive()
            if asked in ("?", "over"):
                link.send(token)
                answer = link.receive()
            if answer != token:
                stage, text = answer
                error = error or [str(stage)[:80], str(text)[:200]]
                failed += 1
                if asked != "?":
                    break
            elif asked == "over":
                over = True
            else:
                passed += 1
    return {"passed": passed, "failed": failed, "error": error, "over": over}


if __name__ == "judge":
    run_judge(program, judge)
