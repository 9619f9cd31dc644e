"""A run whose archives have the cells of a CVT: the folder agrees, and the report replays and draws the same archives."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cycleqd_jax import report
from cycleqd_jax.config import load_config
from cycleqd_jax.runs.audit import verify_run
from cycleqd_jax.runs.replay import replay
from cycleqd_jax.search import Journal
from cycleqd_jax.types import InputError

from .searched import TASKS, write_run

CELLS = 20


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


def test_five_tasks_need_no_grid(tmp_path):
    names = ["a", "b", "c", "d", "e", "f"]
    tree = {"name": "x", "tasks": [{"name": name, "kind": "mbpp"} for name in names]}
    with pytest.raises(InputError, match=r"expected at most 1000000 cells per archive, got 11881376 .*, or set search.cells"):
        load_config({**tree, "search": {"bins": 15 + 11}})
    assert load_config({**tree, "search": {"bins": 26, "cells": 1000}}).search.cells == 1000
    with pytest.raises(InputError, match=r"expected search.cells with search.method cycleqd only"):
        load_config({**tree, "search": {"bins": 5, "cells": 1000, "method": "qd"}, "export": {"method": "soup"}})
