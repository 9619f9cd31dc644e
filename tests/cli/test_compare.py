"""``cycleqd compare`` with real runs: what is shared, and a comparison that is killed ends with the same table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cycleqd_jax.cli import main

from .conftest import TASKS, history, kill_at, write_config

pytestmark = pytest.mark.e2e

BUDGET = 3 + 2 * 4 + 2  # the last of three generations is cut
SEEDS = ("0", "1")
METHODS = "{title: Two methods, methods: {cycleqd: {}, cmaes: {search.batch_size: 5}}, baselines: [], merges: [ties]}"
SHARED = {"base", *(f"expert/{task}" for task in TASKS), "uniform_merge", "ties"}


def arguments(folder: Path, output: str, budget: int = BUDGET) -> list[str]:
    config = folder / "config.yaml"
    if not config.exists():
        write_config(folder, search={"batch_size": 4}, export={"elites": 1}, checkpoint={"every": 1})
        (folder / "methods.yaml").write_text(METHODS)
    more = ["--methods", str(folder / "methods.yaml"), "--budget", str(budget), "--output", str(folder / output)]
    return ["compare", str(config), *more, "--seeds", *SEEDS]


@pytest.fixture(scope="module")
def compared(finished, tmp_path_factory) -> Path:
    """A folder with a comparison that was never disturbed, ``whole/``; its cache has the models of both seeds."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(finished / "cache", folder / "cache")
    assert main(arguments(folder, "whole")) == 0
    return folder


def results_of(run: Path) -> dict:
    return json.loads((run / "tables" / "results.json").read_text())


@pytest.mark.timeout(1800)
def test_two_methods_with_two_seeds(compared, capsys):
    whole = compared / "whole"
    for seed in SEEDS:
        first, second = whole / f"seed-{seed}" / "cycleqd", whole / f"seed-{seed}" / "cmaes"
        lines = [history(run) for run in (first, second)]
        assert [len(one) for one in lines] == [BUDGET, BUDGET]
        # their genomes are of two spaces
        experts = [[{**line, "digest": None, "checksum": None} for line in one[:3]] for one in lines]
        assert experts[0] == experts[1]
        assert all((line["generation"], line["scores"] is None) == (-1, False) for line in lines[1][:3])
        results = [results_of(run) for run in (first, second)]
        assert results[1]["found"] == [row for row in results[1]["methods"] if row not in SHARED]
        assert all(results[0]["methods"][row] == results[1]["methods"][row] for row in SHARED)
        evaluated = {path.name.rpartition("-")[0] for path in (second / "transcripts").iterdir()}
        assert evaluated <= set(results[1]["found"])
        assert main(["report", str(second)]) == 0
    table = json.loads((whole / "tables" / "comparison.json").read_text())
    found = [row for run in ("cycleqd", "cmaes") for row in results_of(whole / "seed-0" / run)["found"]]
    assert list(dict.fromkeys(cell["row"] for cell in table["cells"])) == [*sorted(SHARED, key=_order), *found]
    for cell in table["cells"]:
        run = "cmaes" if cell["row"].startswith("cmaes") else "cycleqd"
        rows = [results_of(whole / f"seed-{seed}" / run)["methods"][cell["row"]] for seed in SEEDS]
        assert cell["runs"] == [row[cell["split"]][cell["task"]] for row in rows]
        assert cell["low"] <= cell["mean"] + 1e-9
        assert cell["mean"] <= cell["high"] + 1e-9
    before = {path: path.stat().st_mtime_ns for path in whole.glob("seed-*/*/history.jsonl")}
    capsys.readouterr()
    assert main(arguments(compared, "whole")) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "CycleQD, selected above" in capsys.readouterr().out


def _order(row: str) -> int:
    return ["base", *(f"expert/{task}" for task in TASKS), "uniform_merge", "ties"].index(row)


@pytest.mark.timeout(1800)
def test_a_killed_comparison_ends_with_the_same_table(compared, compiled):
    for run, lines in (("seed-0/cycleqd", 6), ("seed-1/cmaes", 9)):
        kill_at(arguments(compared, "killed"), compared / "killed" / run / "history.jsonl", lines, compiled, seconds=500)
    assert main(arguments(compared, "killed")) == 0
    tables = [compared / output / "tables" for output in ("whole", "killed")]
    for name in ("comparison.md", "comparison.tex", "comparison.csv", "comparison.json", "items.json.gz"):
        assert (tables[1] / name).read_bytes() == (tables[0] / name).read_bytes(), name
    for run in ("cycleqd", "cmaes"):
        for seed in SEEDS:
            assert history(compared / "killed" / f"seed-{seed}" / run) == history(compared / "whole" / f"seed-{seed}" / run)


def test_a_comparison_of_another_budget_is_refused(compared, capsys):
    assert main(arguments(compared, "whole", budget=BUDGET + 4)) == 2
    assert "expected search.budget to be 13, as in the comparison in" in capsys.readouterr().err
