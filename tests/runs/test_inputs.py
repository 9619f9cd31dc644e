"""The inputs of a run, resolved from its config and the headers of files."""

from __future__ import annotations

import dataclasses

import pytest

from cycleqd_jax.config import load_config
from cycleqd_jax.runs import resolve
from cycleqd_jax.runs.tasks import resolve_tasks
from cycleqd_jax.tasks.records import read_rows, split_evenly
from cycleqd_jax.types import InputError

DEMO = {"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]}


def test_a_config_that_was_not_loaded_is_checked():
    config = load_config(DEMO)
    changed = dataclasses.replace(config, search=dataclasses.replace(config.search, batch_size=0, bins=-3))
    with pytest.raises(InputError, match=r"expected search.batch_size to be at least 1, got 0; correct the config"):
        resolve(changed)


@pytest.mark.parametrize("rows", [7, 8])
@pytest.mark.parametrize("size", [None, 2, 32])
def test_the_number_of_train_problems_is_that_which_is_played(tmp_path, rows, size):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"id": {i}}}\n' for i in range(rows)))
    tasks = [{"name": "one", "kind": "mbpp", "train": str(path), "train_size": size}]
    tasks.append(tasks[0] | {"name": "two", "test": str(path)})
    one, two = resolve_tasks(load_config(DEMO | {"tasks": tasks}))
    assert one.train_size() == len(split_evenly(read_rows(path))[0][:size])
    assert two.train_size() == len(read_rows(path)[:size])


def test_the_size_of_a_file_that_is_elsewhere(tmp_path):
    tasks = [
        {"name": name, "train": str(tmp_path / "absent"), "train_size": size} for name, size in (("mbpp", 5), ("dbbench", None))
    ]
    given, unknown = resolve_tasks(load_config(DEMO | {"tasks": tasks}))
    assert given.train_size() == 5
    with pytest.raises(InputError, match="no file at"):
        unknown.train_size()
    (tmp_path / "absent").write_text('{"id": 1}\n')
    with pytest.raises(InputError, match=f"at least two records .*, got 1 in {tmp_path / 'absent'}; give more"):
        given.train_size()
