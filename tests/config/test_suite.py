"""Files of suites."""

from __future__ import annotations

from pathlib import Path

import pytest

from cycleqd_jax.config import load_suite
from cycleqd_jax.tasks import task_class
from cycleqd_jax.types import InputError

SUITES = Path(__file__).parents[2] / "configs" / "suites"


@pytest.mark.parametrize("file", sorted(SUITES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_suites_of_the_repository(file, monkeypatch):
    monkeypatch.setenv("CYCLEQD_DATA", "/data")
    suite = load_suite(file)
    assert suite.name == file.stem
    for task in suite.tasks:
        assert task.data.startswith("/data/")
        task_class(task.kind)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\n", "expected the key tasks, got none"),
        ("name: a/b\ntasks: [{name: x, kind: arc, data: d}]\n", "expected letters, digits, - and _ in name, got 'a/b'"),
        ("name: a\ntasks: []\n", "expected tasks with different names other than average, got none"),
        ("name: a\ntasks: [{name: x, kind: arc, data: d}, {name: x, kind: arc, data: e}]\n", "got x, x"),
        ("name: a\ntasks: [{name: x, kind: arc, data: d, limit: 0}]\n", "tasks.0.limit"),
        ("name: a\ntasks: [{name: x, kind: arc, train: d, data: d}]\n", "unknown key tasks.0.train"),
        ("name: a\ntitel: b\ntasks: [{name: x, kind: arc, data: d}]\n", "did you mean title?"),
        ("name: a\ntasks: [{name: x, kind: arc, data: '${NOT_SET}/d'}]\n", "environment variable NOT_SET"),
    ],
)
def test_bad_suites(tmp_path, monkeypatch, text, words):
    monkeypatch.delenv("NOT_SET", raising=False)
    file = tmp_path / "suite.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load_suite(file)
    assert words in str(error.value)
