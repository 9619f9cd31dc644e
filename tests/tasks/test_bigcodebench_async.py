"""Tests of BigCodeBench that are coroutines are awaited: they pass and fail as other tests do."""

from __future__ import annotations

import pytest

from cycleqd_jax.types import Score

from .helpers import make
from .test_bigcodebench import LETTERS, OTHER, verdict

GOLD = "async def task_func(n):\n    await asyncio.sleep(0)\n    return [n, n + 1]"
ISOLATED = """\
import asyncio
import unittest
from unittest.mock import patch

class TestCases(unittest.IsolatedAsyncioTestCase):
    def setUp(self):
        self.first = 1
    async def asyncSetUp(self):
        self.second = await task_func(1)
    async def test_pair(self):
        self.assertEqual(await task_func(4), [4, 5])
    async def test_prepared(self):
        self.assertEqual(self.second, [self.first, 2])
    @patch("asyncio.sleep")
    async def test_mocked(self, mocked):
        await task_func(2)
        mocked.assert_awaited_once_with(0)
    def test_outside(self):
        self.assertEqual(asyncio.run(task_func(0)), [0, 1])
"""
PLAIN = """\
import asyncio
import functools
import unittest

def twice(test):
    @functools.wraps(test)
    def run(self):
        return test(self)
    return run

class TestCases(unittest.TestCase):
    def setUp(self):
        self.number = 4
    async def test_pair(self):
        self.assertEqual(await task_func(self.number), [4, 5])
    async def test_both(self):
        self.assertEqual(await asyncio.gather(task_func(0), task_func(1)), [[0, 1], [1, 2]])
    @twice
    async def test_wrapped(self):
        self.assertEqual(await task_func(2), [2, 3])
    def test_outside(self):
        self.assertEqual(asyncio.run(task_func(0)), [0, 1])
"""
CLASSES = {"isolated": ISOLATED, "plain": PLAIN}


@pytest.fixture(params=CLASSES)
def task(request, write, sandbox):
    record = LETTERS | {
        "test": CLASSES[request.param],
        "code_prompt": "import asyncio\nasync def task_func(n):\n",
        "canonical_solution": "    await asyncio.sleep(0)\n    return [n, n + 1]",
    }
    files = {"train": write(record), "test": write(OTHER, name="test.jsonl")}
    return make("bigcodebench", **files, sandbox=sandbox, memo=False, seconds=5)


def test_gold_passes_and_stubs_fail(task):
    record = task.records["train"][0]
    assert record.count == 4
    (solution,) = task.solutions(record)
    assert task.environment(record).step(next(solution)) == Score(1.0, "passed")
    assert verdict(task, GOLD) == Score(1.0, "passed")
    for stub in task.stubs(record):
        assert task.environment(record).step(next(stub)).value == 0.0


WRONG = {
    "constant": "async def task_func(n): return 0",
    "one test": GOLD.replace("n + 1", "5"),
    "no coroutine": "def task_func(n): return [n, n + 1]",
    "never ends": "async def task_func(n):\n  while True: await asyncio.sleep(0)",
    "equal to all": (
        "class E(list):\n  __eq__ = lambda s, o: True\n  __ne__ = lambda s, o: False\n  __hash__ = None\n"
        "async def task_func(n):\n  await asyncio.sleep(0)\n  return E()"
    ),
    "cancelled": "async def task_func(n):\n  asyncio.current_task().cancel()\n  await asyncio.sleep(0)",
    "loop stopped": "async def task_func(n):\n  asyncio.get_running_loop().stop()\n  await asyncio.sleep(0)",
    "stop": "import unittest\nasync def task_func(n): raise unittest.case._ShouldStop",
    "skip": "import unittest\nasync def task_func(n): raise unittest.SkipTest",
    "exit": "async def task_func(n): raise SystemExit(0)",
    "nothing is run": (
        "class Loop(asyncio.SelectorEventLoop):\n  def run_until_complete(self, future): return None\n"
        "class Policy(asyncio.DefaultEventLoopPolicy):\n  def new_event_loop(self): return Loop()\n"
        "asyncio.set_event_loop_policy(Policy())\nasync def task_func(n): return 0"
    ),
    "other runner": "asyncio.Runner.run = lambda *a, **k: None\nasync def task_func(n): return 0",
    "other run": "asyncio.run = lambda *a, **k: [0, 1]\nasync def task_func(n): return 0",
    "other calls": (
        "import unittest\nunittest.IsolatedAsyncioTestCase._callMaybeAsync = lambda *a, **k: None\n"
        "unittest.TestCase._callTestMethod = lambda *a, **k: None\nasync def task_func(n): return 0"
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_programs_fail(task, name):
    score = verdict(task, WRONG[name])
    assert score.value == 0.0
    assert score.reason


@pytest.mark.parametrize("body", ["yield 1", "yield self.fail()"])
@pytest.mark.parametrize("word", ["def", "async def"])
def test_a_generator_is_no_test(write, sandbox, word, body):
    test = f"import unittest\nclass TestCases(unittest.TestCase):\n  {word} test_one(self): {body}\n"
    files = {"train": write(LETTERS | {"test": test}), "test": write(OTHER, name="t.jsonl")}
    score = verdict(make("bigcodebench", **files, sandbox=sandbox), "def task_func(n): return 0")
    assert score.value == 0.0
    assert "generator" in score.reason
