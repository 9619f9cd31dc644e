"""The task of one's own in docs/TASKS.md: it is complete, short, and works wherever tasks do."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from cycleqd_jax.cli import main
from cycleqd_jax.evaluation import rollout
from cycleqd_jax.tasks import task_class
from cycleqd_jax.types import InputError

DOCS = Path(__file__).parents[2] / "docs" / "TASKS.md"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The documented module and data, in a folder on the path."""
    text = DOCS.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    data = "".join(line + "\n" for line in text.splitlines() if line.startswith('{"id"'))
    (tmp_path / "my_tasks.py").write_text(code)
    (tmp_path / "words.jsonl").write_text(data)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_tasks", None)


def test_it_has_forty_lines(own):
    lines = (own / "my_tasks.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 40


def test_it_is_played_together_with_others(own, sandbox, speaker):
    task = task_class("my_tasks:Regex")(sandbox=sandbox, name="regex", data=own / "words.jsonl")
    episodes = [*task.episodes("train"), *task.episodes("test")]

    said = {"aab": " a+b\n", "1999": r"\d+"}
    generator = speaker(lambda messages: next(r for w, r in said.items() if w in messages[-1]["content"]))
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
def test_a_kind_that_is_none_is_named(own, kind, words):
    with pytest.raises(InputError, match=words):
        task_class(kind)
