"""Every search method through the command line: a budget, a kill and a resume, the final model, the report."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from cycleqd_jax.cli import main

from .conftest import TASKS, history, kill_at, write_config

pytestmark = pytest.mark.e2e

BUDGET = 3 + 2 * 4 + 2  # the last of three generations is cut
OPTIONS = {
    "cycleqd": {},
    "qd": {"bins": 5},
    "dns": {"population": 4},
    "random": {},
    "cmaes": {"groups": 2},
    "nsga2": {"population": 4},
}


def config_of(folder, method, **more):
    search = {"generations": 9, "batch_size": 4, "method": method, "budget": BUDGET, **OPTIONS[method], **more}
    return write_config(folder, search=search, baselines=[], checkpoint={"every": 1})


def check_selection(run, method, lines, results):
    """The final model is the best of the candidates on the validation problems, by the same rule for every method."""
    found = json.loads((run / "tables" / "selection.json").read_text())
    elites = [one["ids"][0] for one in found["candidates"] if one["kind"] == "elite"]
    assert elites[0] == results["best_elite"]
    assert len(elites) == 3  # export.elites
    averages = [np.mean(list(lines[identity]["scores"].values())) for identity in elites]
    assert averages == sorted(averages, reverse=True)
    if method in ("random", "cmaes", "nsga2"):  # no other individual is better
        assert averages[-1] >= sorted((np.mean(list(line["scores"].values())) for line in lines), reverse=True)[2]
    assert [one["kind"] for one in found["candidates"]].count("aggregate") == (method == "cycleqd")
    best = max(one["average"] for one in found["candidates"])
    (chosen,) = [one for one in found["candidates"] if {key: one[key] for key in ("kind", "ids")} == found["chosen"]]
    assert chosen["average"] == pytest.approx(best)
    if chosen["kind"] == "elite" and chosen["ids"] == [results["best_elite"]] and method != "cycleqd":
        assert results["methods"][f"{method}_selected"] == results["methods"][method]
    card = (run / "model" / "README.md").read_text()
    assert "by the average on 24 validation problems" in card
    assert ("the merge of the archives' best elites" in card) == (method == "cycleqd")


@pytest.mark.parametrize(
    "method", ["cycleqd", "cmaes", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qd", "dns", "random", "nsga2"))]
)
def test_a_whole_run(trained, compiled, capsys, method):
    config, run = config_of(trained, method), trained / "run"
    kill_at(["evolve", str(config)], run / "history.jsonl", 5, compiled)
    assert main(["run", str(config)]) == 0
    shown = capsys.readouterr().out
    lines = history(run)
    assert [line["id"] for line in lines] == list(range(BUDGET))
    assert all(("coefficients" in line) == (method in ("random", "cmaes", "nsga2")) for line in lines[3:])

    results = json.loads((run / "tables" / "results.json").read_text())
    rows = {method, f"{method}_soup", f"{method}_selected"} | ({"cycleqd_best_elite"} if method == "cycleqd" else set())
    assert {name for name in results["methods"] if name.startswith(method)} == rows
    best = max(range(BUDGET), key=lambda i: (np.float32(np.mean(list(lines[i]["scores"].values()))), -i))
    assert np.mean(list(lines[results["best_elite"]]["scores"].values())) == pytest.approx(
        np.mean(list(lines[best]["scores"].values())), abs=1e-6
    )
    if method != "cycleqd":
        row = results["methods"][method]["train"]
        assert {task: row[task] for task in TASKS} == lines[results["best_elite"]]["scores"]
    check_selection(run, method, lines, results)
    page = (run / "report.html").read_text()
    assert ("does not use these archives" in page) == (method != "cycleqd")
    assert "Uniform merge" in shown

    shutil.move(run, trained / "first")
    assert main(["evolve", str(config)]) == 0  # never killed
    assert history(run) == history(trained / "first")
    assert main(["aggregate", str(config)]) == (0 if method == "cycleqd" else 2)


def test_a_small_budget_is_refused_before_anything_is_trained(tmp_path, capsys):
    for more, message in (
        ({"budget": 6}, "expected search.budget of at least 7"),
        ({"budget": None, "budget_items": 7 * 24 - 1}, "expected search.budget_items of at least 168, 7 individuals with 24"),
    ):
        assert main(["run", str(config_of(tmp_path, "cmaes", **more))]) == 2
        assert message in capsys.readouterr().err
    assert main(["run", str(config_of(tmp_path, "cmaes", groups=3))]) == 2
    assert "expected 1 to 2 groups of layers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache").glob("**/model.safetensors"))
