"""The table of a suite."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cycleqd_jax import report
from cycleqd_jax.report.tables.suite import suite_names
from cycleqd_jax.types import InputError


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    base = {"arc": (rng.random(200) < 0.5).astype(float), "gsm8k": (rng.random(100) < 0.2).astype(float)}
    better = {task: np.maximum(items, rng.random(items.size) < 0.2).astype(float) for task, items in base.items()}
    rows = {"base": base, "expert/mbpp": base, "cycleqd_selected": better}
    record = {
        "schema": 1,
        "title": "Table 3",
        "settings": "x",
        "tasks": {task: {"kind": task, "problems": items.size, "digest": "d"} for task, items in base.items()},
        "rows": {
            name: {
                "key": None,
                "scores": {task: items.mean() for task, items in found.items()},
                "items": {task: items.tolist() for task, items in found.items()},
            }
            for name, found in rows.items()
        },
    }
    record["rows"]["ties"] = {"key": None, "scores": None, "items": {}}
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "suite-three.json").write_text(json.dumps(record))
    return tmp_path, rows


def test_scores_and_shares(folder):
    path, rows = folder
    assert suite_names(path) == ["three"]
    table = report.suite_table(path, "three")
    assert table.rows == ("base", "expert/mbpp", "cycleqd_selected")  # a row without scores is left out
    assert table.problems == (200, 100)
    for row in table.rows:
        means = [rows[row][task].mean() for task in table.tasks]
        found = table.scores[row]
        assert [one.mean for one in found] == pytest.approx([*means, np.mean(means)])
        assert all(one.low <= one.mean <= one.high for one in found)
    same = table.relative["expert/mbpp"]  # equal items: the pairing leaves no interval
    assert [(one.low, one.mean, one.high) for one in same] == [(1.0, 1.0, 1.0)] * 3
    better, base = rows["cycleqd_selected"], rows["base"]
    ratios = [better[task].mean() / base[task].mean() for task in table.tasks]
    assert [one.mean for one in table.relative["cycleqd_selected"]] == pytest.approx([*ratios, np.mean(ratios)])
    assert all(one.low > 1 for one in table.relative["cycleqd_selected"])


def test_files_and_page(folder):
    path, _ = folder
    table = report.write_suite(path, "three")
    text = (path / "tables" / "suite-three.md").read_text()
    assert text == table.markdown()
    assert "| CycleQD, selected |" in text
    assert "1.00 [1.00, 1.00]" in text
    assert "Problems: arc 200, gsm8k 100." in text
    assert r"\toprule" in (path / "tables" / "suite-three.tex").read_text()
    results = {"methods": {"base": {"test": {"mbpp": 0.5, "average": 0.5}}}, "tasks": ["mbpp"], "seed": 0}
    (path / "tables" / "results.json").write_text(json.dumps(results))
    report.write_report(path)
    page = (path / "report.html").read_text()
    assert '<section id="suites">' in page
    assert "share of the base model's score" in page.replace("&#39;", "'")


def test_a_base_without_points_has_no_shares(folder):
    path, _ = folder
    file = path / "tables" / "suite-three.json"
    record = json.loads(file.read_text())
    record["rows"]["base"]["items"]["gsm8k"] = [0.0] * 100
    file.write_text(json.dumps(record))
    relative = report.suite_table(path, "three").relative["cycleqd_selected"]
    assert [one is None for one in relative] == [False, True, True]
    assert "–" in report.suite_table(path, "three").text()


def suite_of(problems="1", items="[0.5]"):
    row = f'{{"key": null, "scores": {{"a": 1}}, "items": {{"a": {items}}}}}'
    return f'{{"title": "x", "tasks": {{"a": {{"problems": {problems}}}}}, "rows": {{"base": {row}}}}}'


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        "{}",
        '{"title": "x", "tasks": {"a": {}}, "rows": {"base": 3}}',
        '{"title": "x", "tasks": {}, "rows": {"base": {"key": null, "scores": {}, "items": {}}}}',
        suite_of(problems="Infinity"),
        *(suite_of(items=items) for items in ("0.5", "[]", "[NaN]", "[[0.5]]", '["x"]', "[1" + "0" * 400 + "]")),
    ],
)
def test_damaged_results_are_refused(folder, content):
    path, _ = folder
    file = path / "tables" / "suite-three.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(InputError, match=r"expected the results of a suite in .*suite-three\.json"):
        report.suite_table(path, "three")
