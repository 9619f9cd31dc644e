"""The new task in docs/how-to/tasks.md: the example is complete, short, and works wherever tasks do."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from cycleqd_jax.cli import main
from cycleqd_jax.evaluation import rollout
from cycleqd_jax.tasks import task_class
from cycleqd_jax.types import InputError

from .helpers import make

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "tasks.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The documented module and data, in a folder on the path."""
    text = DOCS.read_text(encoding="utf-8")
    code = python_blocks()[0]
    data = "".join(line + "\n" for line in text.splitlines() if line.startswith('{"id"'))
    (tmp_path / "my_tasks.py").write_text(code)
    (tmp_path / "words.jsonl").write_text(data)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_tasks", None)


def test_it_has_at_most_forty_lines(own):
    lines = (own / "my_tasks.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 40


@pytest.mark.exhaustive
def test_it_is_played_together_with_others(own, sandbox, speaker):
    task = make("my_tasks:Regex", sandbox=sandbox, name="regex", data=own / "words.jsonl")
    episodes = [*task.episodes("train"), *task.episodes("test")]

    replies = {"aab": " a+b\n", "1999": r"\d+"}
    generator = speaker(lambda messages: next(r for w, r in replies.items() if w in messages[-1]["content"]))
    outcomes = rollout(episodes, generator, [32, 32])
    assert sorted(outcome.score.value for outcome in outcomes) == [0.0, 1.0]
    slow = [
        task.environment((("a" * 40 + "b",), ("a" * 40,), "")).step(reply) for reply in ("(a|a)*", "(", "\0\ud800", "x" * 10**6)
    ]
    assert [score.value for score in slow] == [0.0] * 4
    assert len(task.demonstrations("train")) == 1


def test_it_is_verified_and_found_by_configs(own, capsys):
    assert main(["verify-task", "my_tasks:Regex", "--data", str(own / "words.jsonl"), "seconds=2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["passed"], result["total"]) == (2, 2)
    assert main(["verify-task", "my_tasks:Regex", "--data", str(own / "words.jsonl"), "--stub"]) == 0


def test_the_examples_run(own, monkeypatch, nowhere):
    monkeypatch.chdir(own)
    _, use, options = python_blocks()
    names: dict[str, Any] = {}
    exec(use, names)
    assert [message["content"] for message in names["conversations"][0]][1:] in (["a+b"], [r"\d{4}"])
    (own / "my_options.py").write_text(options)
    shared = {"sandbox": nowhere, "data": own / "words.jsonl"}
    try:
        assert make("my_options:AnyCase", **shared).flags == "(?i)"
        with pytest.raises(InputError, match=r"option flags to be one of , \(\?i\), got '\(\?s\)' in task"):
            make("my_options:AnyCase", **shared, flags="(?s)")
        with pytest.raises(InputError, match=r"an option of my_options:AnyCase \(flags, seconds, memo\), got 'flag'"):
            make("my_options:AnyCase", **shared, flag="")
    finally:
        sys.modules.pop("my_options", None)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("regex", "mbpp, evalplus"),
        ("my_tasks", "package.module:Class"),
        ("my_tasks:", "package.module:Class"),
        ("my_tasks:Other", "AttributeError"),
        ("no_such_module:Regex", "ModuleNotFoundError"),
        ("my_tasks:RegexEpisode", "expected a subclass"),
        ("my_tasks:MATCH", "expected a subclass"),
    ],
)
def test_an_unknown_kind_is_named(own, kind, words):
    with pytest.raises(InputError, match=words):
        task_class(kind)
