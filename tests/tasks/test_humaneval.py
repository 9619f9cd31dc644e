from __future__ import annotations

import pytest

from cycleqd_jax.types import InputError, Score

from .helpers import make

# As HumanEval/38: the test uses a helper of the prompt's.
TWICE = {
    "task_id": "HumanEval/900",
    "prompt": (
        "from typing import List\n\n\ndef once(x):\n    return x + 1\n\n\n"
        'def twice(x: int) -> List[int]:\n    """ Twice.\n    """\n'
    ),
    "canonical_solution": "    return [once(x), once(x)]\n",
    "entry_point": "twice",
    "test": (
        "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate(1) == [2, 2]\n    for n in range(3):\n"
        "        assert candidate(x=n) == [once(n)] * 2, 'no'\n    assert sorted(set(candidate(7))) == [8]\n"
    ),
}
OTHER = TWICE | {"task_id": "HumanEval/901", "note": "another problem"}
BODY = "    y = x + 1\n    return [y, y]"
WHOLE = "def twice(x: int) -> List[int]:\n" + BODY


@pytest.fixture
def task(write, sandbox):
    return make("humaneval", train=write(TWICE), test=write(OTHER, name="test.jsonl"), sandbox=sandbox, memo=False)


def verdict(task, reply) -> Score:
    return task.environment(task.records["train"][0]).step(reply)


def test_prompt(write, nowhere):
    (message,) = make("humaneval", data=write(TWICE, OTHER), sandbox=nowhere).episodes("train")[0].start()
    assert message["content"].endswith(f"in a markdown code block:\n```python\n{TWICE['prompt'].strip()}\n```")
    (message,) = make("humaneval", data=write(TWICE, OTHER), sandbox=nowhere, prompt="brief").episodes("train")[0].start()
    assert message["content"] == TWICE["prompt"].strip()


@pytest.mark.parametrize(
    "reply",
    [
        f"```python\n{WHOLE}\n```",
        f"Here:\n```python\n{WHOLE}\n\nprint(twice(3))\nassert twice(0) == 1\n```",
        f"```python\n{BODY}\n```",
        f"{BODY}\n",
        f"```python\nfrom typing import List\n{WHOLE}",
        f"```python\n{TWICE['prompt']}{BODY}\n```",
    ],
)
def test_functions_and_bodies_pass(task, reply):
    assert verdict(task, reply) == Score(1.0, "passed")


def test_reasons(task):
    wrong = verdict(task, "```python\ndef twice(x): return [2, 2]\n```")
    assert wrong.reason == "check failed: assert candidate(x=n) == [once(n)] * 2, 'no': AssertionError: no"
    assert "ZeroDivisionError" in verdict(task, "```python\ndef twice(x): return 1 / 0\n```").reason
    assert (
        verdict(task, "```python\ndef twice(x) return\n```").reason
        == "check failed: assert candidate(1) == [2, 2]: AssertionError: "
    )
    assert verdict(task, "No.").reason == "no code"


FORGERIES = {
    "constant": "return 0",
    "equal to all": "return type('E', (list,), {'__eq__': lambda s, o: True, '__hash__': lambda s: 1})()",
    "leave": "import os\n    os._exit(0)",
    "exit": "raise SystemExit(0)",
    "the helper": "import sys\n    sys.modules['program'].once = lambda x: 0\n    return [0, 0]",
    "builtins": "import builtins\n    builtins.sorted = lambda x: [8]\n    return [2, 2]",
    "kill": "import os\n    os.kill(os.getppid(), 9)\n    return [x + 1] * 2",
    "no data": "return print",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_do_not_pass(task, name):
    score = verdict(task, f"```python\ndef twice(x):\n    {FORGERIES[name]}\n```")
    assert score.value == 0.0
    assert score.reason


def test_time_is_limited(write, sandbox):
    task = make("humaneval", data=write(TWICE, OTHER), sandbox=sandbox, seconds=1)
    environment = task.environment(task.records["train"][0])
    assert environment.step("```python\ndef twice(x):\n    while x: pass\n```") == Score(0.0, "timed out")
    assert not environment.repeatable


@pytest.mark.parametrize(
    "reply", ["", "```", "I can't.", "```sql\nSELECT 1\n```", "\ud800\0", "```python\n```", "x" * 3_000_000]
)
def test_replies_without_a_program(task, reply):
    assert task.environment(task.records["train"][0]).step(reply).value == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": None}, "'prompt', got nothing"),
        ({"test": "def f(): 1"}, "a function check in field 'test'"),
        ({"test": "def check("}, "valid Python in field 'test'"),
        ({"canonical_solution": "return ("}, "valid Python in field 'canonical_solution'"),
        ({"entry_point": 3}, "'entry_point', got 3"),
    ],
)
def test_malformed_records_are_named(write, nowhere, change, words):
    with pytest.raises(InputError, match=words) as error:
        make(
            "humaneval",
            train=write(OTHER, TWICE | change),
            test=write(TWICE | {"task_id": "x"}, name="t.jsonl"),
            sandbox=nowhere,
        )
    assert "records.jsonl, line 2" in str(error.value)


def test_options_are_checked(write, nowhere):
    with pytest.raises(InputError, match="one of chat, brief"):
        make("humaneval", data=write(TWICE, OTHER), sandbox=nowhere, prompt="long")
