import csv
import io
import json

import numpy as np
import pytest

from cycleqd_jax.report import results_table
from cycleqd_jax.types import InputError


def write(folder, methods, tasks=("a", "b")):
    (folder / "tables").mkdir(parents=True)
    (folder / "tables" / "results.json").write_text(json.dumps({"methods": methods}))
    grid = {"tasks": tasks, "bins": 3, "bounds": {task: [0, 1] for task in tasks}}
    (folder / "grid.json").write_text(json.dumps(grid))
    return folder


def scores(a, b, average=None):
    return {"a": a, "b": b} | ({} if average is None else {"average": average})


def test_order_marks_and_missing_entries(tmp_path):
    methods = {
        "cycleqd": {"test": scores(0.5, 0.7), "train": scores(0.6, 0.8, 0.7)},
        "uniform_merge": {"test": scores(0.5, 0.2)},
        "expert/b": {"test": {"b": 0.7004}},
        "base": {"train": scores(0.1, 0.1, 0.1)},
    }
    table = results_table(write(tmp_path / "run", methods))
    assert table.methods == ("base", "expert/b", "uniform_merge", "cycleqd")
    assert table.splits == ("test", "train")
    assert table.columns == ("a", "b", "average")
    assert table.best("test").tolist() == [[False] * 3, [False, True, False], [True, False, False], [True, True, True]]
    assert table.mean("test")[3, 2] == pytest.approx(0.6)  # not stated: taken over its tasks
    assert np.isnan(table.mean("test")[1, 2])
    markdown = table.markdown()
    assert "| Expert: b | – | **70.0** | – |" in markdown
    assert "| CycleQD | **50.0** | **70.0** | **60.0** |" in markdown
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert {
        "method": "cycleqd",
        "split": "train",
        "task": "average",
        "mean": "0.7",
        "std": "",
        "runs": "1",
        "best": "1",
    } in rows
    assert len(rows) == (1 + 3 + 3) + (3 + 3)  # missing scores have no row
    text = table.text()
    assert "\x1b" not in text
    assert len({len(line.rstrip("* ")) for line in text.splitlines() if line.startswith("─")}) == 1
    assert "70.0*" in text
    assert "\x1b[1m" in table.text(color=True)


def test_mean_and_deviation_over_seeds(tmp_path):
    base = {"base": {"test": scores(0.1, 0.1)}}  # of the first run only
    folders = [
        write(tmp_path / f"{seed}", {"cycleqd": {"test": scores(a, 0.5)}} | ({} if seed else base))
        for seed, a in enumerate((0.4, 0.5, 0.9))
    ]
    table = results_table(folders)
    assert table.runs == 3
    assert table.mean("test")[1, 0] == pytest.approx(0.6)
    assert table.std("test")[1, 0] == pytest.approx(np.std([0.4, 0.5, 0.9], ddof=1))
    assert np.isnan(table.std("test")[0, 0])
    assert table.count("test")[:, 0].tolist() == [1, 3]
    assert "60.0 ± 26.5" in table.markdown()
    assert "over 3 runs" in table.text()
    assert table.splits == ("test",)


def test_runs_of_other_tasks_or_without_results_are_errors(tmp_path):
    one = write(tmp_path / "one", {"base": {"test": scores(0.1, 0.2)}})
    other = write(tmp_path / "other", {"base": {"test": {"c": 0.1, "d": 0.1}}}, tasks=("c", "d"))
    with pytest.raises(InputError, match="expected the tasks a, b"):
        results_table([one, other])
    with pytest.raises(InputError, match="got no such file"):
        results_table(tmp_path)
    with pytest.raises(InputError, match="one run folder or more"):
        results_table([])


@pytest.mark.parametrize("text", ["{", "[]", '{"methods": {"base": 3}}', '{"methods": {"base": {"test": {"a": "x"}}}}'])
def test_damaged_results_are_an_error(tmp_path, text):
    folder = write(tmp_path / "run", {})
    (folder / "tables" / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"results\.json"):
        results_table(folder)
