from __future__ import annotations

import pytest

from cycleqd_jax.sandbox import Completed, InfraError
from cycleqd_jax.tasks.base import is_unprepared
from cycleqd_jax.tasks.coding import evalplus
from cycleqd_jax.tasks.coding.evalplus_inputs import typed_inputs
from cycleqd_jax.tasks.judges import JudgeResult
from cycleqd_jax.types import InputError, Score

from .helpers import FakeSandbox, make

ADD = {
    "task_id": "HumanEval/900",
    "prompt": 'def add(a, b):\n    """ Add.\n    """\n',
    "canonical_solution": "    return a + b\n",
    "entry_point": "add",
    "base_input": [[1, 2], [0, 0]],
    "plus_input": [[0.1, 0.2], [-1, 1], ["a", "b"]],
    "atol": 0,
}
# Its inputs are tuples, which JSON makes lists of.
SIMILAR = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nShared elements.\nassert set(similar_elements((3, 4), (4, 5))) == {4}\n"""\n',
    "canonical_solution": "def similar_elements(a, b):\n    return tuple(set(a) & set(b))",
    "entry_point": "similar_elements",
    "base_input": [[[3, 4, 5, 6], [5, 7, 4, 10]], [[1, 2], [3, 4]]],
    "plus_input": [[[1, 2, 3], [3, 2]]],
    "atol": 0,
    "prompt_v0_1_0": "old prompt",
}
ZERO = {
    "task_id": "HumanEval/32",
    "prompt": "def find_zero(xs):\n",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "entry_point": "find_zero",
    "base_input": [[[1, 2]], [[3, 4]]],
    "plus_input": [[[0, 5]]],
    "atol": 0.0001,
}
GOLD = "def add(a, b):\n    return a + b"


@pytest.fixture
def task(write, sandbox):
    return make("evalplus", train=write(ADD), test=write(SIMILAR, ZERO, name="test.jsonl"), sandbox=sandbox, memo=False)


def verdict(task, code, split="train", number=0) -> Score:
    return task.environment(task.records[split][number]).step(code if "```" in code else f"```python\n{code}\n```")


def test_prompts(write, nowhere):
    files = {"train": write(ADD), "test": write(SIMILAR, name="t.jsonl"), "sandbox": nowhere}
    (message,) = make("evalplus", **files).episodes("train")[0].start()
    assert message == {
        "role": "user",
        "content": "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
        '```python\ndef add(a, b):\n    """ Add.\n    """\n```',
    }
    assert make("evalplus", **files, prompt="brief").episodes("train")[0].start()[0]["content"] == ADD["prompt"].strip()
    old = make("evalplus", **files, prompt="brief", version="v0.1.0").episodes("test")[0].start()
    assert old[0]["content"] == "old prompt"


def test_gold_passes(task):
    for split, number in (("train", 0), ("test", 0), ("test", 1)):
        (solution,) = task.solutions(task.records[split][number])
        assert verdict(task, next(solution), split, number) == Score(1.0, "passed")


def test_reasons_distinguish_base_from_plus(task, write, sandbox):
    only_base = "def add(a, b): return int(a) + int(b)"
    wrong = "def add(a, b): return a - b"
    scores = [verdict(task, code) for code in (GOLD, only_base, wrong, "def add(a, b): return a + b + 1e-9")]
    assert [score.value for score in scores] == [1.0, 0.0, 0.0, 0.0]
    assert scores[1].reason == "base passed, plus test 1 failed: returned 0, expected 0.3"
    assert scores[2].reason == "base test 1 failed: returned -1, expected 3"
    assert scores[3].reason.startswith("base test 1 failed: returned 3")
    assert task.measures(scores) == {"base": 0.5, "plus": 0.25}
    base = make("evalplus", train=write(ADD), test=write(SIMILAR, name="t.jsonl"), sandbox=sandbox, tests="base")
    scores = [verdict(base, code) for code in (GOLD, only_base, wrong)]
    assert [score.value for score in scores] == [1.0, 1.0, 0.0]
    assert base.measures(scores) == {"base": pytest.approx(2 / 3)}


def test_other_correct_programs_pass(task):
    assert verdict(task, "def add(*a):\n    return a[0].__add__(a[1])").value == 1.0
    assert verdict(task, GOLD + "\nassert add(1, 1) == 3\nprint(add(input(), 1))").value == 1.0
    assert verdict(task, GOLD + "\n\nprint(add(1,").value == 1.0
    assert verdict(task, "def similar_elements(a, b):\n    return [x for x in b if x in a]", "test").value == 1.0
    assert verdict(task, "def similar_elements(a, b):\n    yield from {*a} & {*b}", "test").value == 1.0
    assert (
        verdict(task, "def similar_elements(a, b):\n    assert type(a) is tuple\n    return {*a} & {*b}", "test").value == 1.0
    )
    assert verdict(task, "def find_zero(xs):\n    return 0.00001 - xs[0] / xs[1]", "test", 1).value == 1.0
    assert verdict(task, "def find_zero(xs):\n    return 0.01 - xs[0] / xs[1]", "test", 1).value == 0.0


EQUAL = "class E:\n    def __eq__(s, o): return True\n    __ne__ = lambda s, o: False\n    def __hash__(s): return 1\n"
FORGERIES = {
    "nothing": "",
    "exit": "exit(0)",
    "os._exit": "import os\ndef add(a, b): os._exit(0)",
    "none": "def add(a, b): pass",
    "equal to all": EQUAL + "def add(a, b): return E()",
    "number equal to all": EQUAL + "class F(E, float): pass\ndef add(a, b): return F(7)",
    "mock": "from unittest.mock import ANY\ndef add(a, b): return ANY",
    "nan": "def add(a, b): return float('nan')",
    "print": "print('{\"failed\": null}')\ndef add(a, b): return 0",
    "fork": "import os\nif os.fork(): os._exit(0)\ndef add(a, b): return 0",
    "kill": "import os\ndef add(a, b):\n    os.kill(os.getppid(), 9)\n    return a + b",
    "builtins": "import builtins\nbuiltins.sum = builtins.abs = lambda *a: 0\ntype.__eq__ = None\ndef add(a, b): return 0",
    "answers on all files": (
        "import os, json\ndef f(v):\n  d = json.dumps(v).encode()\n  return len(d).to_bytes(8, 'big') + d\n"
        "for fd in range(3, 64):\n  for v in ({'value': None}, {'value': True}, {'failed': None}, None, []):\n"
        "    try: os.write(fd, f(v))\n    except OSError: pass\ndef add(a, b): return 0"
    ),
    "the judge's memory": (
        "import os\ndef add(a, b):\n  p = os.getppid()\n  open(f'/proc/{p}/mem', 'rb').read(1)\n  return a + b"
    ),
    "what is expected": (
        "import gc, sys\ndef add(a, b):\n"
        "  found = [o for o in gc.get_objects() if isinstance(o, dict) and {'expected', 'groups', 'nonce'} & {*map(str, o)}]\n"
        "  found += [m for m in sys.modules if 'judges' in m]\n"
        "  if not found: raise LookupError('nothing to be found')\n  return a + b"
    ),
    "recursive": "def add(a, b):\n  x = []\n  x.append(x)\n  return x",
    "deep": "def add(a, b):\n  x = []\n  for _ in range(100000): x = [x]\n  return x",
    "endless": "import itertools\ndef add(a, b): return itertools.count()",
    "huge": "def add(a, b): return 'x' * (80 << 20)",
    "megabytes": "def add(a, b): return 0\n" + "# x\n" * 500_000,
    "crash": "import ctypes\nctypes.string_at(0)",
    "other language": "function add(a, b) { return a + b; }",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_do_not_pass(task, name):
    score = verdict(task, FORGERIES[name])
    assert score.value == 0.0
    assert score.reason
    assert verdict(task, GOLD).value == 1.0


@pytest.mark.parametrize(
    "reply", ["", "```", "I can't.", "```sql\nSELECT 1\n```", "\ud800\0", "```python\n```", "x" * 3_000_000]
)
def test_replies_without_a_program(task, reply):
    assert task.environment(task.records["train"][0]).step(reply).value == 0.0


@pytest.mark.exhaustive
def test_each_call_has_a_time_limit(write, sandbox):
    task = make("evalplus", train=write(ADD), test=write(SIMILAR, name="t.jsonl"), sandbox=sandbox, seconds=0.5)
    environment = task.environment(task.records["train"][0])
    score = environment.step("```python\nimport itertools\ndef add(a, b):\n  while a == 0.1: pass\n  return a + b\n```")
    assert score == Score(0.0, "base passed, plus test 1 failed: timed out")
    assert not environment.repeatable
    slow = "from time import sleep\ndef add(a, b):\n  sleep(0.3)\n  return a + b"  # longer than 0.5 s in all
    assert verdict(task, slow).value == 1.0


def test_a_failing_gold_program_is_a_fault_of_the_record(write, sandbox, monkeypatch):
    bad = ADD | {"canonical_solution": "    return 1 / a\n"}
    task = make("evalplus", train=write(bad), test=write(SIMILAR, name="t.jsonl"), sandbox=sandbox)
    score = verdict(task, GOLD)
    assert is_unprepared(score)
    assert "HumanEval/900 can't be prepared: its gold program does not return for all inputs" in score.reason
    assert "input 2 ZeroDivisionError" in score.reason
    monkeypatch.setattr(task, "sandbox", None)  # the gold program is not run again
    assert verdict(task, GOLD) == score
    assert task.demonstrations("train") == []


def test_a_gold_program_that_a_busy_machine_has_slowed_is_run_again(write, sandbox, monkeypatch):
    task = make("evalplus", train=write(ADD), test=write(SIMILAR, name="t.jsonl"), sandbox=sandbox)
    judges, run = [], evalplus.run_judge

    def once_late(*args):
        judges.append(args)
        return JudgeResult(None, "timed out") if len(judges) == 1 else run(*args)

    monkeypatch.setattr(evalplus, "run_judge", once_late)
    assert verdict(task, GOLD).value == 1.0
    assert len(judges) == 3  # the gold program twice, and the reply


def test_a_judge_that_does_not_start_is_no_score(write):
    class Broken(FakeSandbox):
        def run_python(self, *_, **__):
            return Completed("no python", 1, False, False, 0.1)

    task = make("evalplus", train=write(ADD), test=write(SIMILAR, name="t.jsonl"), sandbox=Broken())
    with pytest.raises(InfraError, match=r"expected the judge to start, got .*no python"):
        verdict(task, GOLD)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task_id": "add"}, "a task_id such as"),
        ({"task_id": 5}, "'task_id', got 5"),
        ({"entry_point": None}, "'entry_point', got nothing"),
        ({"atol": "0"}, "'atol', got '0'"),
        ({"atol": -1}, "'atol'"),
        ({"base_input": []}, "at least one input"),
        ({"base_input": {"a": 1}}, "a list in field 'base_input'"),
        ({"plus_input": [3]}, "lists of arguments in field 'plus_input'"),
        ({"plus_input_repr": "f(1)"}, "lists of arguments in field 'plus_input_repr'"),
        ({"task_id": "Mbpp/750"}, None),
        ({"task_id": "Mbpp/750", "base_input": [[1]]}, "lists of arguments in field 'base_input'"),
    ],
)
def test_malformed_records_are_named(write, nowhere, change, words):
    files = {
        "train": write(SIMILAR, ADD | {"plus_input": [["a", "b"]], "base_input": [["a", "b"]]} | change),
        "sandbox": nowhere,
    }
    files["test"] = write(ZERO, name="t.jsonl")
    if words is None:
        make("evalplus", **files)
        return
    with pytest.raises(InputError, match=words) as error:
        make("evalplus", **files)
    assert "records.jsonl, line 2" in str(error.value)


def test_options_are_checked(write, nowhere):
    path = write(ADD, SIMILAR)
    for option, value, words in [
        ("prompt", "long", "one of chat, brief"),
        ("tests", "all", "one of plus, base"),
        ("version", "v3", "one of v0.2.0, v0.1.0"),
        ("seconds", 0, "a finite number above 0"),
    ]:
        with pytest.raises(InputError, match=words):
            make("evalplus", data=path, sandbox=nowhere, **{option: value})
    plain = make("evalplus", data=path, sandbox=nowhere).settings()
    for option, value in [("prompt", "brief"), ("tests", "base"), ("version", "v0.1.0"), ("seconds", 1.0)]:
        assert make("evalplus", data=path, sandbox=nowhere, **{option: value}).settings() != plain


def test_types_are_restored():
    assert typed_inputs(2, [[[1], [2]]]) == [[(1,), (2,)]]
    assert typed_inputs(63, [[[[1, 2], [3, 4]]]]) == [[[(1, 2), (3, 4)]]]
    assert typed_inputs(750, [[[1], [2]]]) == [[[1], (2,)]]
    assert typed_inputs(124, [["0", "1j"]]) == [[0.0, 1j]]
    assert typed_inputs(580, [[[1, [2, [3]]]]]) == [((1, (2, (3,))),)]
    assert typed_inputs(115, [[[[1, 2], [], {"a": []}]]]) == [[[{1, 2}, {}, {"a": []}]]]
    assert typed_inputs(3, [[[1]]]) == [[[1]]]


def test_verdicts_are_cached(write, sandbox):
    task = make("evalplus", train=write(ADD), test=write(SIMILAR, name="t.jsonl"), sandbox=sandbox)
    for _ in range(3):
        (episode,) = task.episodes("train")
        episode.start()
        assert episode.step(f"```python\n{GOLD}\n```").value == 1.0
    assert task.memo is not None
    assert (task.memo.hits, task.memo.misses) == (2, 1)
