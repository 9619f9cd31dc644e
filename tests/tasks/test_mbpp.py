from __future__ import annotations

import time

import pytest

from cycleqd_jax.sandbox import Completed, InfraError
from cycleqd_jax.tasks import Mbpp
from cycleqd_jax.types import InputError, Score

from .helpers import FakeSandbox, make

ADD = {
    "task_id": 1,
    "text": "Add two numbers.",
    "code": "def add(a, b):\r\n    return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4", "assert set([add(0, 1)]) == set([1])"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
AREA = {
    "task_id": 2,
    "prompt": "Area of a circle.",
    "code": "def area(r):\n    return 3.14159 * r * r",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(area(10), 314.159, rel_tol=0.001)"],
}
# The setup uses the program's class, the asserts what the setup made.
NODE = {
    "task_id": 3,
    "text": "Depth of a tree.",
    "code": "class Node:\n  def __init__(self):\n    self.left = None\ndef depth(n):\n  return 1 + depth(n.left) if n else 0",
    "test_list": ["assert depth(root) == 2"],
    "test_setup_code": "root = Node()\nroot.left = Node()",
}
GOLD = "def add(a, b):\n    return a + b\n"


@pytest.fixture
def task(write, sandbox):
    return make("mbpp", train=write(ADD), test=write(AREA, NODE, name="test.jsonl"), sandbox=sandbox, memo=False)


def verdict(task, code, split="train", number=0) -> Score:
    episode = task.episodes(split)[number]
    try:
        assert episode.start()[-1]["role"] == "user"
        return episode.step(code if "```" in code else f"```python\n{code}\n```")
    finally:
        episode.close()


# ------------------------------------------------------------------------------------------------ verdicts


def test_gold_passes(task):
    assert verdict(task, GOLD) == Score(1.0, "passed")
    assert verdict(task, AREA["code"], "test", 0).value == 1.0
    assert verdict(task, NODE["code"], "test", 1).value == 1.0


def test_reasons(task):
    assert "assert 2 failed" in verdict(task, "def add(a, b): return 3").reason
    assert "SyntaxError" in verdict(task, "def add(a, b) return 3").reason
    assert "NameError" in verdict(task, "def plus(a, b): return a + b").reason
    assert verdict(task, "```").reason == "no code"


FORGERIES = {
    "exit": "exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "exit in call": "def add(a, b):\n    raise SystemExit(0)",
    "os._exit in call": "import os\ndef add(a, b):\n    os._exit(0)",
    "print": "print('passed')\nprint('{\"passed\": 3, \"error\": null}')",
    "print and leave": "import os\nprint('ready')\nprint('{\"passed\": 3, \"error\": null}', flush=True)\nos._exit(0)",
    "constant": "def add(a, b): return 0",
    "none": "def add(a, b): pass",
    "always equal": "class E:\n  def __eq__(s, o): return True\n  def __hash__(s): return 1\ndef add(a, b): return E()",
    "equal inside": "class E(int):\n  __eq__ = lambda s, o: True\n  __hash__ = lambda s: 1\ndef add(a, b): return E()",
    "set": "def set(x): return 0\ndef add(a, b): return {1: 3, 2: 4}.get(a, 9)",
    "builtins.set": "import builtins\nbuiltins.set = lambda x: 0\ndef add(a, b): return {1: 3, 2: 4}.get(a, 9)",
    "AssertionError": "AssertionError = None\nimport builtins\nbuiltins.AssertionError = Exception\ndef add(a, b): return 0",
    "trace": "import sys\nsys.settrace(lambda *a: None)\nsys.excepthook = lambda *a: None\ndef add(a, b): return 0",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef add(a, b): return 0",
    "fork": "import os\nif os.fork(): os._exit(0)\ndef add(a, b): return 0",
    "kill parent": "import os, signal\ndef add(a, b):\n    os.kill(os.getppid(), signal.SIGKILL)\n    return a + b",
    "stdin": "import sys\nprint(sys.stdin.read())\ndef add(a, b): return 0",
    "crash": "import ctypes\nctypes.string_at(0)",
    "recursion": "def add(a, b): return add(b, a)",
    "answer on all files": (
        "import os\nfor fd in range(3, 64):\n  for text in (b'?', b'go', b'passed', b'0' * 16):\n"
        "    try: os.write(fd, text)\n    except OSError: pass\ndef add(a, b): return 0"
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_do_not_pass(task, name):
    score = verdict(task, FORGERIES[name])
    assert score.value == 0.0
    assert score.reason


# Programs of one argument whose results have an equality of their own.
E = "class E:\n  def __eq__(s, o): return True\n  def __hash__(s): return 1\n"
EQUAL_TO_ALL = {
    "class": "class f(E):\n  def __init__(s, x): pass",
    "callable": "class F:\n  def __call__(s, x): return E()\nf = F()",
    "partial": "import functools\nf = functools.partial(lambda x: E())",
    "cached": "import functools\nf = functools.cache(lambda x: E())",
    "mock.ANY": "from unittest.mock import ANY\ndef f(x): return ANY",
    "compiled": "exec(compile('class G:\\n def __eq__(s, o): return True', 'x', 'exec'))\ndef f(x): return G()",
    "unequal to nothing": "class G:\n  def __ne__(s, o): return False\n  __eq__ = E.__eq__\ndef f(x): return G()",
    "native method": "class G(float):\n  __eq__ = float.__ge__\ndef f(x): return G('inf')",
    "metaclass": (
        "class M(type):\n  def __eq__(c, o): return True\n  __hash__ = lambda c: hash(int)\n  __mro__ = (int, object)\n"
        "class G(E, metaclass=M): pass\ndef f(x): return G()"
    ),
    "a class itself": "class M(type):\n  __eq__ = E.__eq__\nclass f(metaclass=M):\n  def __new__(c, x): return f",
    "said to be of a module": (
        "import fractions\nclass Fraction(E):\n  __module__ = 'fractions'\nfractions.Fraction = Fraction\n"
        "def f(x): return Fraction()"
    ),
    "patched": "from fractions import Fraction\nFraction.__eq__ = lambda s, o: True\ndef f(x): return Fraction(7)",
    "patched code": (
        "from fractions import Fraction\nFraction.__eq__.__code__ = (lambda a, b: True).__code__\ndef f(x): return Fraction(7)"
    ),
    "hollow": "from fractions import Fraction\ndef f(x):\n  y = Fraction(1)\n  y._numerator = E()\n  return y",
    "proxy": "import weakref\ne = E()\ndef f(x): return weakref.proxy(e)",
}


@pytest.mark.parametrize("name", EQUAL_TO_ALL)
def test_results_that_equal_everything_do_not_pass(write, sandbox, name):
    record = {
        "task_id": 1,
        "text": "?",
        "code": "def f(x): return x + 1",
        "test_list": ["assert f(1) == 2", "assert f(0) == 1"],
    }
    task = make("mbpp", train=write(record), test=write(AREA, name="t.jsonl"), sandbox=sandbox, memo=False)
    score = verdict(task, E + EQUAL_TO_ALL[name])
    assert score.value == 0.0
    assert "Forged: the result defines its own __" in score.reason


# The ways in which published asserts use a result, with a correct program and one whose result has operators of its own.
CONSUMERS = {
    "list(f(4)) == [0, 1, 2, 3]": ("return iter(range(n))", "yield from [E()] * 4"),
    "f(4)[0][0][0][0][0][0] == 4": ("return [[[[[[n]]]]]]", "return [[[[[[E()]]]]]]"),
    "f(4) == {4: {'a': [4]}}": ("return {n: {'a': [n]}}", "return {n: {'a': [E()]}}"),
    "f(4) == deque([4])": ("return deque([n])", "return deque([E()])"),
    "f(4) == Counter('aab')": ("return Counter('aba')", "return Counter({'a': E(), 'b': E()})"),
    "f(4).items() == {4: 4}.items()": ("return {n: n}", "return {E(): E()}"),
    "abs(f(4) - 2.5) < 0.1": ("return Fraction(5, 2)", "return E()"),
    "2.5 < f(4)": ("return Decimal(n)", "return E()"),
    "4 in f(4)": ("return [n]", "return E()"),
    "-f(4) == -4": ("return n", "return E()"),
    "f(4) == (4, 5)": ("return P(n, 5)", "return P(n, E())"),
    "f([Pair(4, 1), Pair(2, 2)]) == 4": ("return max(n, key=lambda pair: pair.a).a", "return E()"),
}
CONSUMED = """
from collections import Counter, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
P = namedtuple("P", "a b")
class Pair(P):  # an argument may have operators of its own
    def __lt__(self, other): return True
class E:
    def yes(*_): return True
    __eq__ = __lt__ = __gt__ = __contains__ = yes
    def __hash__(self): return hash(4)
    def __sub__(self, _): return 0
    def __neg__(self): return -4
def f(n):
    """


@pytest.mark.parametrize("line", CONSUMERS)
def test_results_are_judged_by_native_equality(write, sandbox, line):
    right, forged = CONSUMERS[line]
    imports = ["from collections import Counter, deque"]
    record = {"task_id": 1, "prompt": "?", "code": CONSUMED + right, "test_imports": imports, "test_list": [f"assert {line}"]}
    task = make("mbpp", train=write(record), test=write(AREA, name="t.jsonl"), sandbox=sandbox, memo=False)
    assert verdict(task, CONSUMED + right) == Score(1.0, "passed")
    score = verdict(task, CONSUMED + forged)
    assert score.value == 0.0
    assert "Forged: the result defines its own __" in score.reason


def test_overridden_test_module_does_not_pass(task):
    assert verdict(task, "import math\nmath.isclose = lambda *a, **k: True\ndef area(r): return 0", "test").value == 0.0


# A call that gives the first assert what it wants, and changes what the second one sees. The asserts are in the prompt.
IN_A_CALL = {
    "a function of a module": "math.isclose = lambda *a, **k: True",
    "a constant of a module": "math.pi = 7",
    "a built-in of the asserts": "sys._getframe(1).f_builtins['sorted'] = lambda x: [3]",
    "a name that hides a built-in": "sys._getframe(1).f_globals['sorted'] = lambda x: [3]",
    "the check of results": "sys._getframe(1).f_globals['__plain__'] = lambda x: [3]",
    "the code of the check": "sys._getframe(1).f_globals['__plain__'].__code__ = (lambda x: [3]).__code__",
    "what the check trusts": "g = sys._getframe(1).f_globals['__plain__'].__globals__; g['NATIVE_IDS'] |= {id(E)}",
    "what the check skips": "g = sys._getframe(1).f_globals['__plain__'].__globals__; g['LEAVES'] |= {id(E)}",
    "what the check looks for": "sys._getframe(1).f_globals['__plain__'].__globals__['DECIDING'] = ()",
    "a table of the check": "sys._getframe(1).f_globals['__plain__'].__globals__['ITERATED'].clear()",
    "a built-in of the check": "import builtins; k = id(int); builtins.id = lambda v: k",
    "the asserts that follow": "sys._getframe(2).f_locals['compiled'][1] = compile('0', 'x', 'exec')",
}


@pytest.mark.parametrize("name", IN_A_CALL)
def test_a_call_that_changes_what_later_asserts_see_does_not_pass(write, sandbox, name):
    record = AREA | {
        "code": "def f(x):\n    return x + 1",
        "test_list": ["assert sorted([f(1)]) == [2] and math.isclose(f(1), 2)", "assert sorted([f(2)]) == [3]"],
    }
    task = make("mbpp", train=write(record), test=write(AREA, name="t.jsonl"), sandbox=sandbox, memo=False)
    start = "import math, sys\nclass E(list):\n    __eq__ = lambda s, o: True\ndef f(x):\n"
    assert verdict(task, f"{start}    math.log(2)\n    sys.stdout = None\n    return x + 1").value == 1.0
    assert verdict(task, f"{start}    {IN_A_CALL[name]}\n    return 2").reason.startswith("assert 1 failed: ")


def test_prints_and_replaced_streams_do_not_fail_a_correct_program(task):
    assert verdict(task, "import sys\nprint('x' * 10**6)\nsys.stdout = None\n" + GOLD).value == 1.0


@pytest.mark.exhaustive
def test_endless_program_times_out(write, sandbox):
    task = make("mbpp", train=write(ADD), test=write(AREA, name="t.jsonl"), sandbox=sandbox, seconds=1.0)
    for code in ("while True: pass", "def add(a, b):\n  import time\n  time.sleep(60)"):
        began = time.monotonic()
        assert verdict(task, code).value == 0.0
        assert time.monotonic() - began < 15
    assert len(task.memo) == 0


def test_odd_characters_are_harmless(task):
    for reply in ("\ud800", "```python\nx = '\0'\n" + GOLD + "```", "```python\n# \ud800 é ✓\n" + GOLD + "```"):
        assert isinstance(verdict(task, reply), Score)
    assert verdict(task, "# \ud800 é ✓\n" + GOLD).value == 1.0


@pytest.mark.exhaustive
def test_huge_program_is_refused_without_a_sandbox(write, nowhere):
    task = make("mbpp", train=write(ADD), test=write(AREA, name="t.jsonl"), sandbox=nowhere)
    assert "too long" in verdict(task, "x = 1\n" * 1_000_000).reason


@pytest.mark.parametrize(
    "done", [Completed("", 127, False, False, 0.0), Completed("sh: python3: not found", 0, False, False, 0.0)]
)
def test_a_judge_that_did_not_start_is_no_score(write, done):
    class Broken(FakeSandbox):
        def run_python(self, *args, **kwargs):
            return done

    task = make("mbpp", train=write(ADD), test=write(AREA, name="t.jsonl"), sandbox=Broken())
    with pytest.raises(InfraError, match="expected the judge to start"):
        verdict(task, GOLD)
    assert len(task.memo) == 0


class Slow(FakeSandbox):
    """A sandbox that starts programs in so many seconds."""

    def __init__(self, sandbox, seconds):
        super().__init__()
        self.sandbox, self.seconds, self.limits, self.asked = sandbox, seconds, sandbox.limits, []

    def run_python(self, source, *, stdin, limits):
        self.asked.append(limits.wall_s)
        if limits.wall_s < self.seconds:
            return Completed("", None, True, False, limits.wall_s)
        return self.sandbox.run_python(source, stdin=stdin, limits=limits)


def test_a_judge_that_is_slow_to_start_gets_more_time_once(write, sandbox):
    paths = {"train": write(ADD), "test": write(AREA, name="t.jsonl")}
    slow, dead = Slow(sandbox, 20), Slow(sandbox, 60)
    assert verdict(make("mbpp", **paths, sandbox=slow, seconds=2), GOLD).value == 1.0
    assert slow.asked == [2, 32]
    with pytest.raises(InfraError, match="expected the judge to start"):
        verdict(make("mbpp", **paths, sandbox=dead, seconds=2), GOLD)
    assert dead.asked == [2, 32]


# ------------------------------------------------------------------------------------------------ prompts, records


def test_prompts(write, nowhere):
    paths = {"train": write(ADD), "test": write(AREA, name="t.jsonl"), "sandbox": nowhere}
    brief = make("mbpp", **paths, prompt="brief", shown="first").episodes("train")[0].start()
    assert brief == [{"role": "user", "content": "Add two numbers.\nassert add(1, 2) == 3"}]
    full = make("mbpp", **paths).episodes("train")[0].start()[0]["content"]
    assert all(line in full for line in ADD["test_list"])
    assert ADD["text"] in full


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": None}, "'text', got nothing"),
        ({"text": 5}, "'text', got 5"),
        ({"code": "def add(:"}, "valid Python in field 'code'"),
        ({"prompt": "Add.", "test_imports": ["import ("]}, "valid Python in field 'test_imports'"),
        ({"test_list": []}, "at least one assert"),
        ({"test_list": "assert add(1, 2) == 3"}, "a list in field 'test_list'"),
        ({"test_list": ["add(1, 2)"]}, "assert statements"),
        ({"test_list": ["assert 1 +"]}, "valid Python"),
        ({"test_list": [f"assert add(1, 2) == {'+'.join(['1'] * 3000)}"]}, "(a shorter assert|valid Python) in field"),
        ({"test_list": ["assert other(1) == 2"]}, "what the gold code defines"),
    ],
)
def test_malformed_records_are_named(write, change, words, nowhere):
    with pytest.raises(InputError, match=words) as error:
        make("mbpp", train=write(ADD | {"task_id": 7}, ADD | change), test=write(AREA, name="t.jsonl"), sandbox=nowhere)
    assert "records.jsonl, line 2" in str(error.value)


def test_options_are_checked(write, nowhere):
    path = write(ADD, AREA)
    for options, words in [
        ({"data": path, "prompt": "long"}, "one of instruct, brief"),
        ({"data": path, "shown": "none"}, "one of all, first"),
        ({"data": path, "max_new_tokens": 0}, "at least 1"),
        ({"data": path, "train": path}, "either the two files"),
        ({"train": path}, "either the two files"),
        ({}, "either the two files"),
        ({"train": path, "test": path}, "different records"),
    ]:
        with pytest.raises(InputError, match=words):
            make("mbpp", sandbox=nowhere, **options)


def test_one_problem_in_two_wordings_is_refused_in_both_halves(write, nowhere):
    reworded = ADD | {"text": "Write a function that sums two numbers."}
    with pytest.raises(InputError, match="different records"):
        make("mbpp", sandbox=nowhere, train=write(ADD), test=write(reworded, AREA, name="t.jsonl"))
    numbered = AREA | {"task_id": ADD["task_id"]}  # only the number is the same
    make("mbpp", sandbox=nowhere, train=write(ADD), test=write(numbered, name="t.jsonl"))


def test_any_error_of_parse_names_the_record(write, nowhere, monkeypatch):
    monkeypatch.setattr(Mbpp, "parse", lambda self, row: row.fields["absent"])
    with pytest.raises(
        InputError, match=r"expected a record in the format of the task, got KeyError: 'absent' in .*line 1; correct"
    ):
        make("mbpp", sandbox=nowhere, data=write(ADD, AREA))


def test_demonstrations_are_solved_and_cached(write, sandbox, tmp_path, nowhere):
    unsolvable = ADD | {"task_id": 9, "code": "def add(a, b): return 0"}
    paths = {"train": write(ADD, unsolvable), "test": write(AREA, NODE, name="t.jsonl")}
    first = make("mbpp", **paths, sandbox=sandbox, cache=tmp_path / "cache")
    (talk,) = first.demonstrations("train")
    assert talk[-1] == {"role": "assistant", "content": f"```python\n{GOLD}```"}
    assert len(first.demonstrations("test")) == 2
    again = make("mbpp", **paths, sandbox=nowhere, cache=tmp_path / "cache")
    assert again.demonstrations("train") == [talk]
    other = make("mbpp", **paths, sandbox=nowhere, cache=tmp_path / "cache", shown="first")
    with pytest.raises(AttributeError):  # other options: nothing in the cache, and there is no sandbox
        other.demonstrations("train")
