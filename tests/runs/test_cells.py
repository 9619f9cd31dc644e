"""A run whose archives have the cells of a CVT: the folder agrees, and the report replays and draws the same archives."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from cycleqd_jax import report
from cycleqd_jax.config import load_config
from cycleqd_jax.runs import searchers
from cycleqd_jax.runs.audit import verify_run
from cycleqd_jax.runs.folder.replay import replay
from cycleqd_jax.runs.searchers import write_grid
from cycleqd_jax.search import Journal
from cycleqd_jax.types import InputError

from .searched import TASKS, write_run

CELLS = 20


@pytest.mark.exhaustive
def test_a_run_with_the_cells_of_a_cvt(tmp_path):
    folder = write_run(tmp_path / "run", generations=6, cells=CELLS)
    found = verify_run(folder)
    assert found.problems == []
    assert "the archives" in found.checked
    archives = replay(load_config(folder / "config.yaml"), Journal(folder / "history.jsonl", read_only=True)).state.archives
    assert archives.ids.shape == (len(TASKS), CELLS)
    shown = report.open_run(folder).archives
    for k, task in enumerate(TASKS):
        ids = {c: int(archives.ids[k, c]) for c in np.flatnonzero(archives.occupied()[k])}
        assert {elite["cell"][-1]: elite["id"] for elite in shown[task]} == ids
        assert all(len(elite["cell"]) == len(TASKS) for elite in shown[task])  # bins of the figures, and the cell
    grid = json.loads((folder / "grid.json").read_text())
    assert np.shape(grid["centroids"]) == (CELLS, len(TASKS) - 1)
    files = report.write_report(folder)
    assert any(file.suffix == ".html" for file in files)
    assert f"of {CELLS} cells" in (folder / "report.html").read_text("utf-8")


def test_other_centroids_are_refused_where_a_run_continues(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", generations=2, cells=CELLS)
    config = dataclasses.replace(load_config(folder / "config.yaml"), output=str(folder))
    journal = Journal(folder / "history.jsonl")
    write_grid(config, journal)
    before = (folder / "grid.json").read_bytes()
    other = searchers.cvt_centroids(CELLS, len(TASKS) - 1) + np.float32(1e-3)
    monkeypatch.setattr(searchers, "cvt_centroids", lambda cells, axes: other)
    with pytest.raises(InputError, match=r"expected the centroids of the cells in .*grid.json, with which the run began, got"):
        write_grid(config, journal)
    assert (folder / "grid.json").read_bytes() == before
    journal.take_back(range(len(TASKS), 100))  # without children nothing is in a cell yet
    write_grid(config, journal)
    assert (folder / "grid.json").read_bytes() != before


def test_five_tasks_need_no_grid(tmp_path):
    names = ["a", "b", "c", "d", "e", "f"]
    tree = {"name": "x", "tasks": [{"name": name, "kind": "mbpp"} for name in names]}
    with pytest.raises(InputError, match=r"expected at most 1000000 cells per archive, got 11881376 .*, or set search.cells"):
        load_config({**tree, "search": {"bins": 15 + 11}})
    assert load_config({**tree, "search": {"bins": 26, "cells": 1000}}).search.cells == 1000
    with pytest.raises(InputError, match=r"expected search.cells with search.method cycleqd only"):
        load_config({**tree, "search": {"bins": 5, "cells": 1000, "method": "qd"}, "export": {"method": "soup"}})
