from __future__ import annotations

import pytest

from cycleqd_jax.types import InputError, Score

from .helpers import make

LETTERS = {
    "task_id": "BigCodeBench/9000",
    "complete_prompt": 'import json\nimport random\n\ndef task_func(n):\n    """Random numbers as JSON."""\n',
    "instruct_prompt": "Random numbers as JSON. Start with:\n```\nimport json\n```",
    "code_prompt": "import json\nimport random\ndef task_func(n):\n",
    "canonical_solution": "    return json.dumps([random.randint(0, 9) for _ in range(n)])",
    "entry_point": "task_func",
    "test": """\
import json
import unittest
from unittest.mock import patch

class TestCases(unittest.TestCase):
    def setUp(self):
        random.seed(0)
    def test_length(self):
        self.assertEqual(len(json.loads(task_func(5))), 5)
    def test_equal(self):
        self.assertEqual(task_func(0), "[]")
    @patch("random.randint", return_value=7)
    def test_mocked(self, mocked):
        self.assertEqual(task_func(2), "[7, 7]")
        self.assertEqual(mocked.call_count, 2)
    def test_type(self):
        with self.subTest("type"):
            self.assertIsInstance(task_func(1), str)
""",
}
OTHER = LETTERS | {"task_id": "BigCodeBench/9001", "note": "another problem"}
GOLD = "def task_func(n):\n    return json.dumps([random.randint(0, 9) for _ in range(n)])"


@pytest.fixture
def task(write, sandbox):
    return make(
        "bigcodebench", train=write(LETTERS), test=write(OTHER, name="test.jsonl"), sandbox=sandbox, memo=False, seconds=5
    )


def verdict(task, code) -> Score:
    return task.environment(task.records["train"][0]).step(f"```python\n{code}\n```")


def test_prompts(write, nowhere):
    def question(prompt):
        episodes = make("bigcodebench", data=write(LETTERS, OTHER), sandbox=nowhere, prompt=prompt).episodes("train")
        return episodes[0].start()[0]["content"]

    start = "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    assert question("instruct") == f"{start}{LETTERS['instruct_prompt']}\n"
    assert question("complete") == f"{start}```\n{LETTERS['complete_prompt'].strip()}\n```\n"
    assert question("brief") == LETTERS["instruct_prompt"]


def test_gold_passes(task):
    (solution,) = task.solutions(task.records["train"][0])
    assert task.environment(task.records["train"][0]).step(next(solution)) == Score(1.0, "passed")
    assert verdict(task, GOLD) == Score(1.0, "passed")  # the imports are the problem's
    assert verdict(task, GOLD + "\nprint(task_func(3))\nif __name__ == '__main__':\n    task_func()").value == 1.0


@pytest.mark.exhaustive
def test_reasons(task):
    assert verdict(task, "def task_func(n): return '[]'").reason.startswith(
        "2 of 4 tests passed; test_length failed: AssertionError"
    )
    assert "SyntaxError" in verdict(task, "def task_func(n) return 1").reason
    assert verdict(task, "import os\ndef task_func(n): os._exit(0)").reason == "the program ended before the verdict"
    assert verdict(task, "def task_func(n):\n  while 1: pass").reason == "timed out"


_E = "class E(str):\n  __eq__ = lambda s, o: True\n  __ne__ = lambda s, o: False\n  __len__ = lambda s: 5\n  __hash__ = None\n"
FORGERIES = {
    "constant": "def task_func(n): return 0",
    "exit": "exit(0)",
    "equal to all": (
        "class E(str):\n  __eq__ = lambda s, o: True\n  __hash__ = str.__hash__\ndef task_func(n):\n"
        "  random.randint(0, 1), random.randint(0, 1)\n  return E(json.dumps([0] * n))"
    ),
    "object": _E + "class C:\n  def __call__(self, n): return E()\ntask_func = C()",
    "cached": "import functools\n" + _E + "@functools.lru_cache(None)\ndef task_func(n): return E()",
    "partial": "import functools\n" + _E + "task_func = functools.partial(lambda a, n: E(), 1)",
    "class": _E + "class task_func(E):\n  def __init__(self, n): pass",
    "method": _E + "class C:\n  def m(self, n): return [E()]\ntask_func = C().m",
    "lambda": _E + "task_func = lambda n: {'a': E()}",
    "generator": _E
    + "class G(list):\n  __iter__ = lambda s: iter([E()])\n  __len__ = lambda s: 5\n  __getitem__ = lambda s, i: E()\n"
    "def task_func(n): return G()",
    "any": "from unittest.mock import ANY\ndef task_func(n): return ANY",
    "other tests": "import unittest\nunittest.TestCase.run = lambda *a, **k: None\ndef task_func(n): return 0",
    "other asserts": (
        "import unittest\ndef task_func(n):\n  for name in dir(unittest.TestCase):\n"
        "    if name.startswith('assert'): setattr(unittest.TestCase, name, lambda *a, **k: None)\n  return '[0, 0, 0, 0, 0]'"
    ),
    "other code": (
        "import unittest\nunittest.TestCase.assertEqual.__code__ = (lambda self, first, second, msg=None: None).__code__\n"
        "def task_func(n): return '[0, 0, 0, 0, 0]'"
    ),
    "code of the check": _E
    + "def task_func(n):\n  __plain__.__code__ = (lambda value, opened=None: value).__code__\n  return E('[7, 7]')",
    "default of the check": _E + "def task_func(n):\n  __plain__.__defaults__ = (lambda item: [],)\n  return E('[7, 7]')",
    "what the check looks for": _E
    + "def task_func(n):\n  __plain__.__globals__['plain'].__globals__['DECIDING'] = ()\n  return E('[7, 7]')",
    "what the check skips": _E
    + "def task_func(n):\n  __plain__.__globals__['plain'].__globals__['LEAVES'] |= {id(E)}\n  return E('[7, 7]')",
    "moved past the assertions by doctest": (
        "import sys\ndef task_func(n):\n  test = sys._getframe()\n"
        "  while not test.f_code.co_name.startswith('test_'): test = test.f_back\n"
        "  def move(frame, event, _):\n    if event == 'line': frame.f_lineno = sys.maxsize\n    return move\n"
        "  exec('sys.settrace(move)', {'__name__': 'doctest', 'sys': sys, 'move': move})\n  test.f_trace = move\n"
        "  return json.dumps([7] * n)"
    ),
    "moved past the assertions": (
        "import sys\ndef task_func(n):\n  test = sys._getframe()\n"
        "  while not test.f_code.co_name.startswith('test_'): test = test.f_back\n"
        "  def move(frame, event, _):\n    if event == 'line': frame.f_lineno = sys.maxsize\n    return move\n"
        "  sys.settrace(move)\n  test.f_trace = move\n  return json.dumps([7] * n)"
    ),
    "other len": "import builtins\ndef task_func(n):\n  builtins.len = lambda x: 5\n  return '[]' if n != 2 else '[7, 7]'",
    "other results": (
        "import unittest\nunittest.TestResult.addFailure = unittest.TestResult.addError = lambda *a: None\n"
        "def task_func(n): return ''"
    ),
    "own tests": "import unittest\nclass TestCases(unittest.TestCase):\n  def test(self): pass\ndef task_func(n): return 0",
    "no tests": "import unittest\nunittest.TestLoader.getTestCaseNames = lambda *a: []\ndef task_func(n): return 0",
    "fork": "import os\nif os.fork(): os._exit(0)\ndef task_func(n): return 0",
    "skip": "import unittest\ndef task_func(n): raise unittest.SkipTest",
    "stop": "import unittest\ndef task_func(n): raise unittest.case._ShouldStop",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_do_not_pass(task, name):
    score = verdict(task, FORGERIES[name])
    assert score.value == 0.0
    assert score.reason


UNIT = "import unittest\nclass Tests:\n  def test_z(self): self.assertEqual(task_func(3), 4)\n  def test_b(self): pass\n"
MARKED = "    @unittest.{}\n    def test_x(self): self.assertEqual(1, 2)\n"


def unit_record(*lines: str, cases: str = "unittest.TestCase") -> dict:
    test = f"{UNIT}class TestCases({cases}):\n    def test_a(self): self.assertEqual(task_func(1), 2)\n{''.join(lines)}"
    return LETTERS | {"test": test, "canonical_solution": "    return n + 1"}


def unit_task(write, sandbox, record):
    return make("bigcodebench", train=write(record), test=write(OTHER, name="t.jsonl"), sandbox=sandbox, memo=False, seconds=30)


def test_inherited_tests_are_judged(write, sandbox):
    task = unit_task(write, sandbox, unit_record(cases="Tests, unittest.TestCase"))
    assert verdict(task, "def task_func(n): return n + 1").value == 1.0
    score = verdict(task, "def task_func(n): return 2 if n == 1 else 0")
    assert score == Score(0.0, "2 of 3 tests passed; test_z failed: AssertionError: 0 != 4")


def test_tests_that_are_generated_are_judged(write, sandbox):
    lines = [
        f"    def make_{n}(n): return lambda self: self.assertEqual(task_func(n), n + 1)\n    test_{n} = make_{n}({n})\n"
        for n in (2, 3)
    ]
    task = unit_task(write, sandbox, unit_record(*lines))
    assert verdict(task, "def task_func(n): return n + 1").value == 1.0
    assert verdict(task, "def task_func(n): return min(n, 2) + 1").reason.startswith("2 of 3 tests passed; test_3 failed: ")


@pytest.mark.parametrize("mark", ["skip('later')", "expectedFailure"])
def test_tests_that_are_decorated_as_skipped_or_failing(write, sandbox, mark):
    task = unit_task(write, sandbox, unit_record(MARKED.format(mark)))
    assert verdict(task, "def task_func(n): return n + 1").value == 1.0
    assert verdict(task, "def task_func(n): return 0").value == 0.0
    assert verdict(task, "import unittest\ndef task_func(n): raise unittest.SkipTest('no')").value == 0.0
    with pytest.raises(InputError, match="got skipped tests only"):
        unit_task(
            write,
            sandbox,
            LETTERS | {"test": f"import unittest\nclass TestCases(unittest.TestCase):\n{MARKED.format('skip(1)')}"},
        )


def test_the_reason_of_a_failed_subtest(write, sandbox):
    line = "    def test_s(self):\n        for n in (1, 2):\n            with self.subTest(n=n):\n"
    line += "                self.assertEqual(task_func(n), n + 1)\n"
    task = unit_task(write, sandbox, unit_record(line))
    assert verdict(task, "def task_func(n): return 2").reason == "1 of 2 tests passed; test_s failed: AssertionError: 2 != 3"


@pytest.mark.parametrize(
    "shape", ["task_func = functools.lru_cache(None)(task_func)", "task_func = functools.partial(task_func)"]
)
def test_other_callables_pass(task, shape):
    assert verdict(task, f"{GOLD}\nimport functools\n{shape}") == Score(1.0, "passed")


@pytest.mark.parametrize("route", ["next(task_func(5))", "asyncio.run(task_func(5))", "task_func(5).value", "task_func(5)[0]"])
def test_operands_of_the_tests_are_checked(write, sandbox, route):
    shapes = {
        "next(": "def task_func(n): yield E()",
        "async": "async def task_func(n): return E()",
        "task_func(5).": "class C:\n  value = E()\ndef task_func(n): return C()",
        "task_func(5)[": "class C:\n  def __getitem__(s, i): return E()\ndef task_func(n): return C()",
    }
    code = next(code for begin, code in shapes.items() if route.startswith(begin))
    test = "import asyncio, unittest\nclass TestCases(unittest.TestCase):\n"
    test += f"  def test_one(self): self.assertEqual({route}, 26)\n  def test_two(self): self.assertTrue({route} == 26)\n"
    files = {"train": write(LETTERS | {"test": test}), "test": write(OTHER, name="t.jsonl")}
    score = verdict(make("bigcodebench", **files, sandbox=sandbox), _E + code)
    assert score.value == 0.0
    assert "0 of 2 tests passed" in score.reason
    assert "Forged" in score.reason


@pytest.mark.parametrize(
    "value",
    [
        "collections.UserList([5])",
        "types.SimpleNamespace(a=[5])",
        "types.MappingProxyType({'a': 5})",
        "collections.ChainMap({'a': 5})",
        "pathlib.Path('a/b')",
        "argparse.Namespace(a=5)",
        "uuid.UUID(int=5)",
        "weakref.ref(E)",
        "Words(['a'])",
    ],
)
def test_values_of_the_standard_library_pass(write, sandbox, value):
    imports = "import argparse, collections, pathlib, types, unittest, uuid, weakref\n"
    code = f"class E: pass\nclass Words(collections.UserList):\n  def longest(self): return 1\ndef task_func(n): return {value}"
    test = imports + "class TestCases(unittest.TestCase):\n"
    test += f"  def test_one(self): self.assertEqual(task_func(1), {value})\n"
    rows = [LETTERS | {"test": test, "code_prompt": imports + "def task_func(n):\n"}, OTHER]
    files = {"train": write(rows[0]), "test": write(rows[1], name="t.jsonl")}
    assert verdict(make("bigcodebench", **files, sandbox=sandbox, memo=False), code) == Score(1.0, "passed")


def test_future_imports_after_the_problem(task):
    assert verdict(task, f"from __future__ import annotations\n{GOLD}") == Score(1.0, "passed")


@pytest.mark.parametrize(
    "reply", ["", "```", "I can't.", "```sql\nSELECT 1\n```", "\ud800\0", "```python\n```", "x" * 3_000_000]
)
def test_replies_without_a_program(task, reply):
    assert task.environment(task.records["train"][0]).step(reply).value == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test": "x = 1"}, "a class TestCases with tests"),
        ({"test": "class TestCases:\n  pass"}, "a class TestCases with tests"),
        ({"test": "class TestCases("}, "valid Python in field 'test'"),
        ({"canonical_solution": "    return ("}, "valid Python in field 'canonical_solution'"),
        ({"instruct_prompt": None}, "'instruct_prompt', got nothing"),
    ],
)
def test_malformed_records_are_named(write, nowhere, change, words):
    with pytest.raises(InputError, match=words) as error:
        make(
            "bigcodebench",
            train=write(OTHER, LETTERS | change),
            test=write(LETTERS | {"task_id": "x"}, name="t.jsonl"),
            sandbox=nowhere,
        )
    assert "records.jsonl, line 2" in str(error.value)


def test_options_are_checked(write, nowhere):
    for option, value, words in [
        ("prompt", "chat", "one of instruct"),
        ("seconds", -1, "a finite"),
        ("memory_mb", 0, "at least 1"),
    ]:
        with pytest.raises(InputError, match=words):
            make("bigcodebench", data=write(LETTERS, OTHER), sandbox=nowhere, **{option: value})
