"""Options that all tasks share: their types, and the limits they take from the sandbox."""

from __future__ import annotations

import dataclasses
import math

import pytest

from cycleqd_jax.sandbox import Limits
from cycleqd_jax.tasks import TASKS, miniature
from cycleqd_jax.types import InputError

ALL = miniature.TASKS
ROUNDS = ("dbbench", "os_interaction")

WHOLE = [(0, "0"), (-1, "-1"), (2.5, "2.5"), (2.0, "2.0"), (True, "True"), ("3", "'3'"), (None, "None")]
TIMES = [*((n, str(n)) for n in (0, -1, math.nan, math.inf, -math.inf, True)), ("5", "'5'"), ([5], r"\[5\]")]
FLAGS = [(5, "5"), (None, "None"), ("yes", "'yes'"), (0, "0")]
BAD = [
    *((ALL, "seconds", value, f"a finite number above 0 or null, got {shown}") for value, shown in TIMES),
    *((ALL, "memo", value, f"true or false, got {shown}") for value, shown in FLAGS),
    *((ALL, "max_new_tokens", value, f"a whole number of at least 1, got {shown}") for value, shown in WHOLE),
    *((ALL, "workers", value, f"a whole number of at least 1, got {shown}") for value, shown in WHOLE),
    *((ROUNDS, "rounds", value, f"a whole number of at least 1, got {shown}") for value, shown in WHOLE),
    *((ALL, "prompt", value, f"one of .*, got {value!r}") for value in ("long", None, 3, True)),
    *((("mbpp",), "shown", value, f"one of all, first, got {value!r}") for value in ("none", None, 1)),
    *((ALL, option, 5, "a path or null, got 5") for option in ("train", "test", "cache")),
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return miniature.write(tmp_path_factory.mktemp("data"), 0, 2, 2)


@pytest.mark.parametrize(("names", "option", "value", "words"), BAD)
def test_a_wrong_option_is_named_with_its_task(paths, nowhere, names, option, value, words):
    for name in names:
        options = {**paths[name], option: value}
        with pytest.raises(InputError, match=f"^task 'some {name}': expected option {option} to be {words}$"):
            TASKS[name](sandbox=nowhere, name=f"some {name}", **options)


class Elsewhere:
    system = "host"

    def __init__(self, **limits):
        self.limits = Limits(**limits)


@pytest.mark.parametrize("name", miniature.TASKS)
def test_limits_are_those_of_the_sandbox(paths, name):
    kept = {"memory_mb": 300, "processes": 20, "disk_mb": 10, "output_bytes": 5000}
    task = TASKS[name](sandbox=Elsewhere(wall_s=7.0, cpu_s=90.0, **kept), **paths[name])
    assert {key: dataclasses.asdict(task.limits)[key] for key in kept} == kept
    assert (task.limits.wall_s if name == "mbpp" else task.seconds) == 7.0
    assert task.limits.cpu_s >= 90.0
    own = TASKS[name](sandbox=Elsewhere(wall_s=7.0, cpu_s=90.0, **kept), seconds=2, **paths[name])
    assert (own.limits.wall_s if name == "mbpp" else own.seconds) == 2.0
    assert own.limits.cpu_s < 90.0


@pytest.mark.parametrize("name", miniature.TASKS)
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
def test_limits_are_part_of_the_fingerprint(paths, name, field):
    first = TASKS[name](sandbox=Elsewhere(), **paths[name]).options()
    # Far above what a task has of its own.
    assert TASKS[name](sandbox=Elsewhere(**{field: 10_000}), **paths[name]).options() != first


def test_memory_really_is_the_sandboxs(write, sandbox):
    """A program that needs 300 MB, in a sandbox that allows 200."""

    class Small:
        limits = dataclasses.replace(sandbox.limits, memory_mb=200)
        run_python = staticmethod(sandbox.run_python)

    record = {"task_id": 1, "text": "?", "code": "def f(): return 1", "test_list": ["assert f() == 1"]}
    files = {"train": write(record), "test": write(record | {"text": "!"}, name="t.jsonl")}
    values = []
    for place in (sandbox, Small()):
        episode = TASKS["mbpp"](sandbox=place, memo=False, **files).episodes("train")[0]
        episode.start()
        values.append(episode.step("```python\nx = bytes(300_000_000)\ndef f(): return 1\n```").value)
        episode.close()
    assert values == [1.0, 0.0]
