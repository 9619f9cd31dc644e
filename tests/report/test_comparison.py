"""The table and the files of a comparison, over run folders of made-up methods."""

import csv
import gzip
import io
import json

import numpy as np
import pytest

from cycleqd_jax.report.comparison import comparison_table
from cycleqd_jax.report.comparison_files import draw_comparison, write_comparison
from cycleqd_jax.report.method_runs import MethodRuns, best_so_far, effort
from cycleqd_jax.statistics import difference, mean_interval
from cycleqd_jax.types import InputError

from ..compared_runs import TASKS, write_finished

SEEDS = (0, 3, 7)


def runs_of(folder, name, search, *, label=None, seeds=SEEDS, **more):
    folders = {seed: write_finished(folder / f"seed-{seed}" / name, search, seed, **more) for seed in seeds}
    return MethodRuns(name, search, label, folders)


@pytest.fixture
def methods(tmp_path):
    return [
        runs_of(tmp_path, "cycleqd", "cycleqd", skill=0.7, selects=True),
        runs_of(tmp_path, "no_mutation", "cycleqd", label="Without mutation", skill=0.55, selects=True),
        runs_of(tmp_path, "cmaes", "cmaes", skill=0.5),
    ]


def test_rows_of_methods_follow_the_shared_ones(methods):
    table = comparison_table(methods, title="T")
    shared = ("base", "expert/a", "expert/b", "uniform_merge")
    found = ("cycleqd", "cycleqd_selected", "no_mutation", "no_mutation_selected", "cmaes")
    assert table.methods == (*shared, *found)
    assert [table.label(m) for m in range(len(table.methods))] == [
        "Base model",
        "Expert: a",
        "Expert: b",
        "Uniform merge",
        "CycleQD",
        "CycleQD, selected",
        "Without mutation",
        "Without mutation, selected",
        "CMA-ES",
    ]
    assert table.chosen == "cycleqd_selected"
    assert table.splits == ("test", "train")
    assert table.values["test"].shape == (3, 9, 3)
    results = json.loads((methods[1].folders[3] / "tables" / "results.json").read_text())["methods"]
    assert table.values["test"][1, 6].tolist() == [results["cycleqd"]["test"][c] for c in table.columns]


def test_the_reference_can_be_chosen(methods):
    assert comparison_table(methods, title="T", reference="base").reference == 0
    assert comparison_table(methods[2:], title="T").chosen == "cmaes"
    with pytest.raises(InputError, match=r"expected the reference to be one of the rows base, .*, got 'cmaes_selected'"):
        comparison_table(methods, title="T", reference="cmaes_selected")


def test_one_seed_has_the_intervals_of_a_run(tmp_path):
    table = comparison_table([runs_of(tmp_path, "cmaes", "cmaes", seeds=(0,), problems=40)], title="T")
    items = [[np.array(table.problems[0][row]["test"][task]) for task in TASKS] for row in ("base", "cmaes")]
    for found, expected in (
        (table.interval("test", 0), mean_interval(items[0])),
        (table.difference("test", 4, 0), difference(items[1], items[0])),
    ):
        assert (found.mean, found.count) == (pytest.approx(expected.mean), expected.count)
        assert found.low == pytest.approx(expected.low, abs=0.011)  # a step of the scores
        assert found.high == pytest.approx(expected.high, abs=0.011)
    assert "over problems." in table.caption()
    assert "seeds" not in table.caption()


def test_equal_problems_in_all_seeds_are_seen(tmp_path):
    own = comparison_table([runs_of(tmp_path / "own", "cmaes", "cmaes")], title="T")
    same = comparison_table([runs_of(tmp_path / "same", "cmaes", "cmaes", test_digest="same")], title="T")
    assert own.crossed == {"train": False, "test": False}
    assert same.crossed == {"train": False, "test": True}
    assert "(problems of its own for every seed)" in own.caption()
    assert "(the same problems for every seed)" in same.caption()
    assert same.interval("train", 4) == own.interval("train", 4)
    assert same.interval("test", 4) != own.interval("test", 4)


@pytest.mark.parametrize("content", ["", "3", "{"])
def test_damaged_digests_of_problems_are_refused(tmp_path, content):
    runs = runs_of(tmp_path / "own", "cmaes", "cmaes")
    (runs.folders[0] / "inputs.json").write_text(content)
    with pytest.raises(InputError, match=r"expected the digests of a run's inputs in .*inputs.json, got .*; restore the file"):
        comparison_table([runs], title="T")


def test_a_row_that_a_seed_lacks_has_no_interval(methods):
    path = methods[2].folders[3] / "tables" / "results.json"
    results = json.loads(path.read_text())
    results["methods"]["cmaes"]["test"] = dict.fromkeys((*TASKS, "average"))
    path.write_text(json.dumps(results))
    table = comparison_table(methods, title="T")
    assert table.interval("test", 8) is None
    assert table.difference("test", 5, 8) is None
    assert table.interval("train", 8) is not None
    assert table.count("test")[8].tolist() == [2, 2, 2]
    assert not table.best("test").any()  # the other rows are not known to be above this one
    assert len(table.markdown().splitlines()) > 20
    rows = [row for row in csv.DictReader(io.StringIO(table.csv())) if (row["row"], row["split"]) == ("cmaes", "test")]
    assert [(row["runs"], row["low"]) for row in rows] == [("2", "")] * 3


def test_intervals_of_two_seeds_stay_among_the_possible_scores(tmp_path):
    table = comparison_table([runs_of(tmp_path, name, name, seeds=[0, 1], problems=4) for name in ("qd", "dns")], title="T")
    rows = range(len(table.methods))
    found = [table.interval("test", row, column) for row in rows for column in (0, 1, 2)]
    assert min(one.low for one in found) == 0
    assert max(one.high for one in found) == 1
    differences = [table.difference("test", row, other, column) for row in rows for other in rows for column in (0, 1, 2)]
    assert all(-1 <= one.low <= one.high <= 1 for one in differences)


def test_a_mark_needs_the_interval(tmp_path):
    skills = {"qd": 0.9, "dns": 0.7, "cmaes": 0.5}
    table = comparison_table(
        [runs_of(tmp_path, name, name, skill=skill, problems=200) for name, skill in skills.items()], title="T"
    )
    best = table.best("test")[:, -1]
    assert best.tolist() == [False] * 4 + [True] + [False] * 2
    assert all(table.difference("test", 4, other).above_zero for other in range(7) if other != 4)
    assert not table.difference("test", 4, 4).above_zero


def test_the_papers_figures_stand_beside_the_test_scores(methods):
    paper = {"cycleqd": {"a": 76.4, "average": 52.4}, "base": {"average": 32.6}}
    table = comparison_table(methods, title="T", paper=paper)
    assert table.details("test")["paper: a / average"][:5] == ["– / 32.6", "–", "–", "–", "76.4 / 52.4"]
    assert not any("paper" in name for name in table.details("train"))
    (record,) = [r for r in table.records() if (r["row"], r["split"], r["task"]) == ("cycleqd", "test", "average")]
    assert record["paper"] == 52.4


def test_runs_of_other_tasks_or_without_results_are_refused(methods):
    path = methods[1].folders[0] / "tables" / "results.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"tasks": ["a", "c"]}))
    with pytest.raises(
        InputError, match="expected the tasks a, b in every run, got a, c for the method 'no_mutation' and seed"
    ):
        comparison_table(methods, title="T")
    del whole["found"]
    path.write_text(json.dumps(whole))
    with pytest.raises(InputError, match=r"results\.json, got none; evaluate the run again"):
        comparison_table(methods, title="T")


def test_curves_are_the_best_so_far(methods):
    curve = best_so_far(methods[0])
    lines = [json.loads(line) for line in (methods[0].folders[7] / "history.jsonl").read_text().splitlines()]
    averages = [np.mean([*line["scores"].values()]) for line in lines]
    assert curve.shape == (3, 9)
    np.testing.assert_allclose(curve[2], [max(averages[: i + 1]) for i in range(9)])
    assert (np.diff(curve) >= 0).all()


@pytest.mark.exhaustive
def test_files(tmp_path, methods):
    table = comparison_table(methods, title="100 % & more")
    curves = {one.name: best_so_far(one) for one in methods}
    written = write_comparison(tmp_path / "out", table, curves, 3)
    assert {path.relative_to(tmp_path / "out").as_posix() for path in written} == {
        *(f"tables/comparison.{suffix}" for suffix in ("md", "tex", "csv", "json")),
        "tables/items.json.gz",
        *(f"figures/{name}.{kind}" for name in ("scores", "curves") for kind in ("svg", "png")),
    }
    before = {path: path.read_bytes() for path in written}
    again = write_comparison(tmp_path / "out", comparison_table(methods, title="100 % & more"), curves, 3)
    assert {path: path.read_bytes() for path in again} == before  # nothing depends on the time

    tables = tmp_path / "out" / "tables"
    tex = (tables / "comparison.tex").read_text()
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 2
    assert r"test. 100 \% \& more. Scores in percent" in tex
    assert r"CycleQD, selected & " in tex
    assert r"$\pm$" in tex
    assert r"expert/" not in tex
    markdown = (tables / "comparison.md").read_text()
    assert markdown.startswith("# 100 % & more\n")
    assert "| CycleQD, selected above |" in markdown
    facts = json.loads((tables / "comparison.json").read_text())
    assert facts["seeds"] == list(SEEDS)
    assert facts["reference"] == "cycleqd_selected"
    assert len(facts["cells"]) == 2 * 9 * 3
    assert facts["curves"]["cmaes"] == curves["cmaes"].tolist()
    assert [*facts["curves"]] == ["cycleqd", "no_mutation", "cmaes"]
    assert facts["searches"]["cmaes"]["individuals"] == [9, 9, 9]
    items = json.loads(gzip.decompress((tables / "items.json.gz").read_bytes()))
    assert items["3"]["cmaes"] == table.problems[1]["cmaes"]
    rows = list(csv.DictReader(io.StringIO((tables / "comparison.csv").read_text())))
    assert [row["row"] for row in rows if (row["split"], row["task"]) == ("test", "a")] == list(table.methods)
    assert rows[0]["label"] == "Base model"


def test_the_caption_says_what_bare_rows_are_and_the_budget(methods):
    both = comparison_table(methods, title="T", budgets={"budget": 9, "budget_items": 800}).caption()
    assert "Every run evaluated 9 individuals, experts included, on at most 800 problems in total." in both
    assert "alone is the merge of equation 5; that of another search is its best individual on train." in both
    assert "equation 5." in comparison_table(methods[:2], title="T").caption()
    assert "equation 5" not in comparison_table(methods[2:], title="T").caption()


def test_the_effort_of_a_selection(tmp_path, methods):
    items = {task: [1.0, 0.0, 1.0] for task in TASKS}
    candidates = [
        {"kind": kind, "ids": ids, "error": None, "scores": dict.fromkeys(TASKS, 2 / 3), "items": items, "average": 2 / 3}
        for kind, ids in (("elite", [2]), ("elite", [3]), ("soup", [2, 3]))
    ]
    selection = {"problems": dict.fromkeys(TASKS, "x"), "candidates": candidates, "soup": [2, 3]}
    selection["chosen"] = {"kind": "elite", "ids": [2]}
    (methods[0].folders[3] / "tables" / "selection.json").write_text(json.dumps(selection))
    found = effort(methods[0])
    assert (found["search"], found["candidates"], found["validation_items"]) == ("cycleqd", [0, 3, 0], [0, 18, 0])


def test_only_the_rows_of_the_comparison_are_shown(methods):
    table = comparison_table(methods, title="T", rows=["base", "uniform_merge"])
    assert table.methods[:3] == ("base", "uniform_merge", "cycleqd")


def test_a_folder_without_a_comparison_is_refused(tmp_path):
    method = "{name: a, search: cycleqd, label: null}"
    for text in (
        "{}",
        "{table: 3}",
        "table: {seeds: [0], methods: [{name: x}]}",
        f"table: {{seeds: [0], methods: [{method}]}}",
        f"table: {{title: x, more: 1, seeds: [0], methods: [{method}]}}",
        "table: {title: x, seeds: [0], methods: []}",
        f"table: {{title: x, seeds: [], methods: [{method}]}}",
        f"table: {{title: x, seeds: 3, methods: [{method}]}}",
        "table: {title: x, seeds: [0], methods: [{name: a, search: other, label: null}]}",
        f"table: {{title: x, seeds: [0], methods: [{method}], paper: {{base: {{a: .nan}}}}}}",
        f"table: {{title: x, seeds: [0], methods: [{method}], budgets: 3}}",
    ):
        (tmp_path / "comparison.yaml").write_text(text)
        with pytest.raises(InputError, match=r"expected a comparison in .*; run `cycleqd compare` again"):
            draw_comparison(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("history.jsonl", None, "expected grid.json and individuals in history.jsonl, got none in"),
        ("history.jsonl", "", "expected grid.json and individuals in history.jsonl, got none in"),
        *(
            (
                "tables/results.json",
                json.dumps({"methods": {"cmaes": {}}, "tasks": TASKS, **changes}),
                "expected results that name",
            )
            for changes in ({}, {"found": 3}, {"found": []}, {"found": [3]}, {"found": ["cmaes"], "tasks": 3})
        ),
    ],
)
def test_a_run_of_a_comparison_with_a_damaged_file_is_named(tmp_path, name, content, message):
    folder = write_finished(tmp_path / "seed-0" / "cmaes", "cmaes", 0)
    methods = "[{name: cmaes, search: cmaes, label: null}]"
    (tmp_path / "comparison.yaml").write_text(f"table: {{title: x, seeds: [0], methods: {methods}}}")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(InputError, match=message):
        draw_comparison(tmp_path)
