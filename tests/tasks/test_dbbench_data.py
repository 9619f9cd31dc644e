"""All problems of the visible benchmark, played in the episodes on both backends."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from cycleqd_jax.tasks.dbbench.records import CHANGES

from .helpers import make, solution_scores


@pytest.fixture(params=["sqlite", "mysql"])
def task(request, data_dir, sandbox):
    options = {"dsn": request.getfixturevalue("mysql_dsn"), "backend": "mysql"} if request.param == "mysql" else {}
    path = data_dir / "dbbench/dbbench_cycleqd.visible.jsonl"
    task = make("dbbench", data=path, sandbox=sandbox, memo=False, seconds=30.0, **options)
    yield task
    task.close()


def everything(task):
    return [pair for split in ("train", "test") for pair in zip(task.rows[split], task.records[split], strict=True)]


def values(task, pairs, solutions) -> dict[str, list[float | None]]:
    """The scores of the solutions that ``solutions(record)`` yields, by record."""

    def one(pair):
        row, record = pair
        return row.id, solution_scores(task, record, solutions(record))

    with ThreadPoolExecutor(8) as pool:
        return dict(pool.map(one, pairs))


@pytest.mark.exhaustive
def test_gold(task):
    pairs = everything(task)
    assert len(pairs) == 257
    results = values(task, pairs, task.solutions)
    assert {id for id, scores in results.items() if 1.0 not in scores} == set()
    questions = [id for (row, record) in pairs if record.kind not in CHANGES for id in [row.id]]
    assert len(questions) == 85
    assert all(results[id][-1] == 1.0 for id in questions)  # the label, sent as the answer
    assert sum(results[id][0] == 1.0 for id in questions) >= 20  # the machine-written query leads to it


@pytest.mark.exhaustive
def test_stubs_do_not_score(task):
    pairs = everything(task)
    assert sum(record.kind in CHANGES for _, record in pairs) == 172
    turn = itertools.count()

    def one_stub(record):
        stubs = list(task.stubs(record))
        assert len(stubs) == 3
        return [stubs[next(turn) % 3]]

    results = values(task, pairs, one_stub)
    assert set(map(tuple, results.values())) == {(0.0,)}
