import csv
import io
import json

import numpy as np
import pytest

from cycleqd_jax.report import results_table
from cycleqd_jax.report.labels import method_label
from cycleqd_jax.types import InputError


def write(folder, methods, tasks=("a", "b")):
    (folder / "tables").mkdir(parents=True)
    (folder / "tables" / "results.json").write_text(json.dumps({"methods": methods}))
    grid = {"tasks": tasks, "bins": 3, "bounds": {task: [0, 1] for task in tasks}}
    (folder / "grid.json").write_text(json.dumps(grid))
    return folder


def scores(a, b, average=None):
    return {"a": a, "b": b} | ({} if average is None else {"average": average})


def test_a_prepared_base_follows_the_base(tmp_path):
    names = ("base", "prepared_base", "expert/b", "uniform_merge", "gradient")
    table = results_table(write(tmp_path / "run", {name: {"test": scores(0.5, 0.7)} for name in names}))
    assert table.methods == names
    assert "| Prepared base | 50.0 |" in table.markdown()  # no mark where nothing is beaten
    assert "| Gradient descent on coefficients | 50.0 |" in table.markdown()


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
    assert table.best("test").tolist() == [[False] * 3, [False, True, False], [False] * 3, [False, True, True]]
    assert table.mean("test")[3, 2] == pytest.approx(0.6)  # not stated: taken over its tasks
    assert np.isnan(table.mean("test")[1, 2])
    markdown = table.markdown()
    assert "| Expert: b | – | **70.0** | – |" in markdown
    assert "| CycleQD | 50.0 | **70.0** | **60.0** |" in markdown
    latex = table.latex()
    assert r"Expert: b & -- & \textbf{70.0} & -- \\" in latex
    assert r"CycleQD & 50.0 & \textbf{70.0} & \textbf{60.0} \\" in latex
    assert "is bold" in latex
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert {
        "method": "cycleqd",
        "split": "train",
        "task": "average",
        "mean": "0.7",
        "std": "",
        "runs": "1",
        "best": "1",
        "low": "",
        "high": "",
    } in rows
    assert len(rows) == (1 + 3 + 3) + (3 + 3)  # missing scores have no row
    text = table.text()
    assert "\x1b" not in text
    assert len({len(line.rstrip("* ")) for line in text.splitlines() if line.startswith("─")}) == 1
    assert "70.0*" in text
    assert "\x1b[1m" in table.text(color=True)


@pytest.mark.parametrize("value", [0.0005, 0.0015, 0.0045, 0.0105, 0.2345, 0.4325])
def test_the_highest_is_the_highest_as_printed(tmp_path, value):
    """Scores that are printed as equal are marked alike, and a lower one is not."""
    for other in (np.nextafter(value, 0), np.nextafter(value, 1), value - 5e-4, value + 5e-4):
        methods = {"base": {"test": scores(value, value)}, "cycleqd": {"test": scores(other, other)}}
        table = results_table(write(tmp_path / str(other), methods))
        printed = [float(table.cell("test", row, 0)) for row in (0, 1)]
        expected = [one == max(printed) > min(printed) for one in printed]
        assert table.best("test")[:, 0].tolist() == expected


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
    interval = table.interval("test", 1, 0)  # Student's t with two degrees of freedom: 4.303
    assert interval.high - interval.mean == pytest.approx(4.303 * np.std([0.4, 0.5, 0.9], ddof=1) / np.sqrt(3), rel=1e-3)
    assert table.interval("test", 0) is None
    assert "over runs" in table.caption()
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


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"methods": {"base": 3}}',
        *(f'{{"methods": {{"base": {{"test": {{"a": {score}}}}}}}}}' for score in ('"x"', '"0.5"', "Infinity", "[]")),
        *(
            f'{{"methods": {{}}, {more}}}'
            for more in (
                '"seed": Infinity',
                '"seed": "x"',
                '"selected": null',
                '"selected": {"id": []}',
                '"aggregate": {"elites": 3}',
                '"best_elite": "x"',
            )
        ),
    ],
)
def test_damaged_results_are_an_error(tmp_path, text):
    folder = write(tmp_path / "run", {})
    (folder / "tables" / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"results\.json"):
        results_table(folder)


def with_items(folder, items):
    means = {method: {"test": {task: float(np.mean(scores)) for task, scores in of.items()}} for method, of in items.items()}
    write(folder, means)
    tables = {method: {"test": of} for method, of in items.items()}
    (folder / "tables" / "items.json").write_text(json.dumps(tables))
    return results_table(folder)


def test_a_score_is_marked_where_the_paired_difference_says_so(tmp_path):
    right, wrong = [1.0] * 40, [0.0] * 40
    base = [1.0, 0.0] * 20
    table = with_items(
        tmp_path / "run",
        {
            "base": {"a": base, "b": wrong},
            "expert/a": {"a": right, "b": wrong},
            "cycleqd": {"a": right, "b": [1.0] * 2 + [0.0] * 38},
        },
    )
    # on task a two methods are equal, on b two problems of 40 are no evidence, and the average is carried by them
    assert table.best("test").tolist() == [[False] * 3, [False] * 3, [False, False, False]]
    assert table.difference("test", 2, 0).above_zero
    assert not table.difference("test", 2, 1).above_zero
    text = table.text()
    assert "95 % interval" in text
    assert "CycleQD above" in text
    assert "+27.5 [" in text
    assert text.count("*") == 0
    assert "| CycleQD above |" in table.markdown()
    clear = with_items(tmp_path / "clear", {"base": {"a": base, "b": wrong}, "cycleqd": {"a": right, "b": base}})
    assert clear.best("test").tolist() == [[False] * 3, [True] * 3]
    rows = list(csv.DictReader(io.StringIO(clear.csv())))
    assert float(rows[2]["low"]) < 0.25 < float(rows[2]["high"])


def test_a_difference_without_an_interval_gives_no_mark(tmp_path):
    right, wrong = [1.0] * 40, [0.0] * 40
    folder = tmp_path / "run"
    with_items(folder, {"base": {"a": wrong, "b": wrong}, "cycleqd": {"a": right, "b": right}})
    assert results_table(folder).best("test")[1].all()
    items = json.loads((folder / "tables" / "items.json").read_text())
    (folder / "tables" / "items.json").write_text(json.dumps({"cycleqd": items["cycleqd"]}))
    table = results_table(folder)
    assert table.interval("test", 1) is not None
    assert not table.best("test").any()


def test_nothing_is_marked_where_all_are_equal(tmp_path):
    wrong = [0.0] * 40
    table = with_items(tmp_path / "run", {name: {"a": wrong, "b": wrong} for name in ("base", "expert/a", "cycleqd")})
    assert not table.best("test").any()


def test_the_selected_model_is_the_reference_and_shares_its_mark(tmp_path):
    right, wrong = [1.0] * 40, [0.0] * 40
    half = [1.0, 0.0] * 20
    rows = {
        "cycleqd_selected": {"a": right, "b": half},
        "cycleqd": {"a": half, "b": half},
        "cycleqd_soup": {"a": right, "b": half},  # the same weights
        "cycleqd_best_elite": {"a": half, "b": wrong},
        "base": {"a": wrong, "b": wrong},
    }
    table = with_items(tmp_path / "run", rows)
    assert table.methods == ("base", "cycleqd_soup", "cycleqd_best_elite", "cycleqd", "cycleqd_selected")
    assert table.reference == 4
    assert table.best("test")[:, 0].tolist() == [False, True, False, False, True]
    assert not table.best("test")[:, 1].any()  # there, another model is as good
    assert "CycleQD, selected above" in table.text()
    assert table.details("test")["CycleQD, selected above"][1:2] == ["+0.0 [0.0, 0.0]"]
    assert "| CycleQD, soup of elites |" in table.markdown()
    assert "| CycleQD, selected |" in table.markdown()


def test_the_rows_of_other_searches(tmp_path):
    labels = {
        "base": "Base model",
        "qd_soup": "Plain QD, soup",
        "cmaes_soup": "CMA-ES, soup",
        "random": "Random search",
        "cmaes": "CMA-ES",
        "cmaes_selected": "CMA-ES, selected",
        "qd_selected": "Plain QD, selected",
        "cycleqd": "CycleQD",
    }
    shuffled = ("cmaes_selected", "cmaes", "qd_soup", "qd_selected", "random", "cycleqd", "cmaes_soup", "base")
    table = results_table(write(tmp_path / "run", {name: {"test": {"a": 0.5, "b": 0.5}} for name in shuffled}))
    assert table.methods == tuple(labels)
    assert [method_label(name) for name in table.methods] == list(labels.values())
    assert table.reference == len(table.methods) - 1


def test_methods_on_other_problems_are_not_compared(tmp_path):
    table = with_items(tmp_path / "run", {"base": {"a": [0.0] * 9, "b": [1.0]}, "cycleqd": {"a": [1.0] * 8, "b": [1.0]}})
    assert table.difference("test", 1, 0) is None
    assert table.interval("test", 1).mean == 1


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"base": 3}', '{"base": {"test": {"a": ["x"]}}}', '{"base": {"test": {"a": [NaN]}}}']
)
def test_damaged_scores_of_problems_are_an_error(tmp_path, text):
    folder = write(tmp_path / "run", {"base": {"test": scores(0.5, 0.5)}})
    (folder / "tables" / "items.json").write_text(text)
    with pytest.raises(InputError, match=r"items\.json"):
        results_table(folder)
