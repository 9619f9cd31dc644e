"""The options of tasks: their names and types, and the limits of the sandbox."""

from __future__ import annotations

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any, Literal

import pytest

from cycleqd_jax.sandbox import Limits
from cycleqd_jax.tasks import TASKS, Mbpp, TaskOptions, make_task, miniature, own_options
from cycleqd_jax.tasks.options import check_option
from cycleqd_jax.types import InputError

from .helpers import FakeSandbox, make

ALL = miniature.TASKS
ROUNDS = ("dbbench", "os_interaction")
SHARED = {field.name for field in dataclasses.fields(TaskOptions)}

WHOLE = [(0, "0"), (-1, "-1"), (2.5, "2.5"), (2.0, "2.0"), (True, "True"), ("3", "'3'"), (None, "None")]
TIMES = [*((n, str(n)) for n in (0, -1, math.nan, math.inf, -math.inf, True)), ("5", "'5'"), ([5], r"\[5\]")]
FLAGS = [(5, "5"), (None, "None"), ("yes", "'yes'"), (0, "0")]
BAD = [
    *((ALL, "seconds", value, f"a finite number above 0 or null, got {shown}") for value, shown in TIMES),
    *((ALL, "memo", value, f"true or false, got {shown}") for value, shown in FLAGS),
    *((ALL, "max_new_tokens", value, f"a whole number of at least 1, got {shown}") for value, shown in WHOLE),
    *((ALL, "workers", value, f"a whole number of at least 1, got {shown}") for value, shown in WHOLE),
    *((ROUNDS, "rounds", value, f"a whole number of at least 1 or null, got {shown}") for value, shown in WHOLE[:-1]),
    *((ROUNDS, "protocol", value, f"one of text, tools, got {value!r}") for value in ("json", None, 3, True)),
    *((ALL, "prompt", value, f"one of .*, got {value!r}") for value in ("long", None, 3, True)),
    *((("mbpp",), "shown", value, f"one of all, first, got {value!r}") for value in ("none", None, 1)),
    *((ALL, option, 5, "a path or null, got 5") for option in ("train", "test", "cache")),
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return miniature.write(tmp_path_factory.mktemp("data"), 0, 2, 2)


def unchecked(**options) -> TaskOptions:
    """Options of the given values, as without the checks of annotations that only run in tests."""
    made = object.__new__(TaskOptions)
    inspect.unwrap(TaskOptions.__init__)(made, **options)
    return made


@pytest.mark.parametrize(("names", "option", "value", "words"), BAD)
def test_a_wrong_option_is_named_with_its_task(paths, nowhere, names, option, value, words):
    for name in names:
        message = f"^expected option {option} to be {words} in task 'some {name}'; correct the config$"
        options = {"sandbox": nowhere, "name": f"some {name}", **paths[name]}
        if option in SHARED:
            with pytest.raises(InputError, match=message):
                unchecked(**options | {option: value})
        if option not in SHARED or option in ("seconds", "memo"):
            with pytest.raises(InputError, match=message):
                make_task(name, TaskOptions(**options), **{option: value})


@pytest.mark.parametrize("option", ["colour", "train", "sandbox", "name", "workers", "protocol"])
def test_an_unknown_option_is_named_with_the_known_ones(paths, nowhere, option):
    options = TaskOptions(nowhere, "coding", **paths["mbpp"])
    words = rf"expected an option of mbpp \(prompt, shown, seconds, memo\), got '{option}' in task 'coding'; correct the config"
    with pytest.raises(InputError, match=f"^{words}$"):
        make_task("mbpp", options, **{option: "red"})


def test_options_of_a_config_replace_the_shared_ones(paths, nowhere):
    options = TaskOptions(nowhere, "coding", **paths["mbpp"])
    task = make_task("mbpp", options, seconds=3, memo=False, prompt="brief")
    assert (task.seconds, task.memo) == (3.0, None)
    assert task.fingerprint("train") == Mbpp(dataclasses.replace(options, seconds=3.0), prompt="brief").fingerprint("train")


def test_a_subclass_has_the_options_of_its_base_class():
    class Stricter(Mbpp):
        def __init__(self, options, *, factor: float = 2.0, anything=None, **others):
            super().__init__(options, **others)

    class Last(Stricter):
        pass

    assert list(own_options(Last)) == ["factor", "anything", "prompt", "shown"]
    assert own_options(Last)["factor"] is float


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (float, True, "a finite number above 0"),
        (float, 10**400, "a finite number above 0"),
        (int | None, 0.5, "a whole number of at least 1 or null"),
        (Literal["a", "b"] | None, "c", "one of a, b or null"),
        (str, 3, "a text"),
    ],
)
def test_annotations_of_new_tasks_are_checked(annotation, value, words):
    with pytest.raises(InputError, match=f"expected option x to be {words}, got {value!r} in task 't'"):
        check_option("t", "x", annotation, value)


@pytest.mark.parametrize(
    "value", [10**5000, [10**4000] * 3, ["x" * 3000], {"a": "b" * 3000}], ids=lambda value: type(value).__name__
)
def test_long_values_are_cut_in_messages(value):
    with pytest.raises(InputError, match="expected option x to be true or false, got ") as error:
        check_option("t", "x", bool, value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(float, 2), (int | None, None), (Literal["a", "b"] | None, None), (list[str], ["a"]), (Any, 3), (str | Path, "a")],
)
def test_values_that_fit_are_returned(annotation, value):
    assert check_option("t", "x", annotation, value) == value


@pytest.mark.parametrize(
    ("kind", "own", "replies"),
    [
        ("mbpp", {"prompt": "brief"}, 1),
        ("dbbench", {}, 6),
        ("dbbench", {"rounds": None}, 6),
        ("dbbench", {"rounds": 2}, 3),
        ("dbbench", {"protocol": "tools"}, 15),
        ("dbbench", {"protocol": "tools", "rounds": 2}, 2),
        ("os_interaction", {}, 5),
        ("os_interaction", {"rounds": 8}, 8),
        ("os_interaction", {"protocol": "tools"}, 8),
    ],
)
def test_largest_number_of_replies(kind, own, replies):
    assert TASKS[kind].max_replies(**own) == replies


def test_records_are_counted_without_a_sandbox(paths):
    for name in ALL:
        assert TASKS[name].count(paths[name]["train"]) == 2


@pytest.mark.parametrize("name", miniature.TASKS)
def test_limits_are_those_of_the_sandbox(paths, name):
    kept = {"memory_mb": 300, "processes": 20, "disk_mb": 10, "output_bytes": 5000}
    task = make(name, sandbox=FakeSandbox(wall_s=7.0, cpu_s=90.0, **kept), **paths[name])
    assert {key: dataclasses.asdict(task.limits)[key] for key in kept} == kept
    assert task.seconds == 7.0
    assert task.limits.cpu_s >= 90.0
    own = make(name, sandbox=FakeSandbox(wall_s=7.0, cpu_s=90.0, **kept), seconds=2, **paths[name])
    assert own.seconds == 2.0
    assert own.limits.cpu_s < 90.0


@pytest.mark.parametrize("name", miniature.TASKS)
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
def test_limits_are_part_of_the_fingerprint(paths, name, field):
    first = make(name, sandbox=FakeSandbox(), **paths[name]).settings()
    # Far above the limits that a task sets itself.
    assert make(name, sandbox=FakeSandbox(**{field: type(getattr(Limits, field))(10_000)}), **paths[name]).settings() != first


def test_the_memory_limit_is_that_of_the_sandbox(write, sandbox):
    """A program that needs 300 MB, in a sandbox that allows 200."""

    class Small(FakeSandbox):
        run_python = staticmethod(sandbox.run_python)

    record = {"task_id": 1, "text": "?", "code": "def f(): return 1", "test_list": ["assert f() == 1"]}
    files = {"train": write(record), "test": write(record | {"text": "!"}, name="t.jsonl")}
    values = []
    for one in (sandbox, Small(memory_mb=200)):
        episode = make("mbpp", sandbox=one, memo=False, **files).episodes("train")[0]
        episode.start()
        values.append(episode.step("```python\ndef f():\n    x = bytes(300_000_000)\n    return 1\n```").value)
        episode.close()
    assert values == [1.0, 0.0]
