"""Files of methods, and the configs of their runs."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from cycleqd_jax.config import SearchConfig, load_config, to_dict
from cycleqd_jax.report.labels import SEARCH_METHODS, method_label
from cycleqd_jax.runs.comparison.methods import (
    common_tree,
    method_config,
    read_methods,
    shared_rows,
)
from cycleqd_jax.runs.results.rows import found_rows
from cycleqd_jax.types import InputError

CONFIGS = Path(__file__).parents[3] / "configs"


def test_every_search_has_a_name():
    assert set(SEARCH_METHODS) == set(typing.get_args(typing.get_type_hints(SearchConfig)["method"]))


def written(folder: Path, text: str) -> Path:
    path = folder / "methods.yaml"
    path.write_text(text)
    return path


def config_of(**changes):
    return load_config({"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}], **changes})


def test_names_of_search_methods_need_no_file():
    found = read_methods("cycleqd, cmaes,nsga2")
    assert found == read_methods(["cycleqd", "cmaes", "nsga2"])
    with pytest.raises(InputError, match="expected at least one method, got none"):
        read_methods([])
    assert [(one.name, one.search, one.label, one.overrides) for one in found.methods] == [
        (name, name, None, {}) for name in ("cycleqd", "cmaes", "nsga2")
    ]
    assert (found.rows, found.paper) == ({}, None)


def test_a_file_says_what_differs(tmp_path):
    text = """
title: Ours
merges: [ties]
baselines: []
reference: base
methods:
  cycleqd:
  no_mutation: {genome.mutation: none, label: "Without mutation"}
  cmaes: {search.batch_size: 8}
paper: {setting: demo, tasks: [mbpp, dbbench], rows: {cycleqd: {mbpp: 76.4, average: 52}}}
"""
    found = read_methods(written(tmp_path, text))
    assert [(one.name, one.search, one.label) for one in found.methods] == [
        ("cycleqd", "cycleqd", None),
        ("no_mutation", None, "Without mutation"),
        ("cmaes", "cmaes", None),
    ]
    assert (found.title, found.reference, found.rows) == ("Ours", "base", {"merges": ["ties"], "baselines": []})
    assert found.paper is not None
    assert found.paper.rows == {"cycleqd": {"mbpp": 76.4, "average": 52.0}}

    config = config_of(merges=["dare"], search={"sigma": 0.1, "batch_size": 2, "budget": 9}, seed=7)
    common = common_tree(config, found, 20, None)
    runs = {one.name: method_config(common, one, 3, tmp_path / one.name) for one in found.methods}
    assert [one.search.method for one in runs.values()] == ["cycleqd", "cycleqd", "cmaes"]
    assert [one.search.sigma for one in runs.values()] == [0.1, 0.1, 0.03]  # CMA-ES has no crossover
    assert [one.search.generations for one in runs.values()] == [9, 9, 3]
    assert {(one.seed, one.search.budget, one.merges, one.baselines) for one in runs.values()} == {(3, 20, ("ties",), ())}
    assert runs["no_mutation"].genome.mutation == "none"
    assert runs["cmaes"].folder == tmp_path / "cmaes"
    for one in runs.values():
        assert load_config(to_dict(one)) == one


def test_the_budget_of_the_config_holds_where_none_is_given(tmp_path):
    found = read_methods("random")
    common = common_tree(config_of(search={"budget_items": 640}), found, None, None)
    run = method_config(common, found.methods[0], 0, tmp_path)
    assert (run.search.budget, run.search.budget_items, run.search.generations) == (None, 640, 320)
    with pytest.raises(InputError, match="expected a budget that all methods share, got none; give --budget or"):
        common_tree(config_of(), found, None, None)


def test_baselines_are_left_out_where_experts_are_given(tmp_path):
    found = read_methods(written(tmp_path, "{methods: {cycleqd: }, baselines: [finetune_all]}"))
    given = config_of(model={"base": "x", "experts": {"mbpp": "y", "dbbench": "z"}})
    assert common_tree(config_of(), found, 20, None)["baselines"] == ["finetune_all"]
    assert common_tree(given, found, 20, None)["baselines"] == []


def test_rows_that_are_null_are_none(tmp_path):
    found = read_methods(written(tmp_path, "{methods: {cycleqd: }, baselines: null, merges: , gradient: null}"))
    assert found.rows == {"baselines": [], "merges": [], "gradient": None}


def test_the_rows_of_a_comparison(tmp_path):
    config = config_of(merges=["ties"], gradient={}, model={"prepare": {"steps": 3}})
    assert shared_rows(config) == [
        *("base", "prepared_base", "expert/mbpp", "expert/dbbench"),
        *config.baselines,
        *("uniform_merge", "ties", "gradient"),
    ]
    assert [*found_rows(config, "mine")] == ["mine_best_elite", "mine", "mine_soup", "mine_selected"]
    plain = config_of(search={"method": "random"}, export={"method": "best_elite"})
    rows = [*found_rows(plain, "mine")]
    assert rows[0] == "mine"
    assert ("mine_selected" in rows) == plain.selects


@pytest.mark.parametrize(
    ("search", "export", "row"),
    [
        ("cycleqd", "aggregate", "cycleqd"),
        ("cycleqd", "best_elite", "cycleqd_best_elite"),
        ("cycleqd", "selected", "cycleqd_selected"),
        ("cmaes", "best_elite", "cmaes"),
        ("cmaes", "soup", "cmaes_soup"),
    ],
)
def test_every_exported_model_has_a_row(search, export, row):
    """Pictures and the comparison name the rows as the results table does."""
    found = found_rows(config_of(search={"method": search}, export={"method": export}))
    assert [name for name, model in found.items() if model == export] == [row]
    assert all(method_label(name) != name for name in found)


def test_an_export_that_only_cycleqd_has_is_left_out(tmp_path):
    found = read_methods("cycleqd,random")
    common = common_tree(config_of(export={"method": "aggregate"}), found, 20, None)
    exports = [method_config(common, one, 0, tmp_path).export.method for one in found.methods]
    assert exports == ["aggregate", "best_elite"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{methods: {cycleqd: {}}, merge: [ties]}", r"expected one of the keys title, .*, got 'merge'; did you mean merges\?"),
        ("{title: x}", "expected methods to map names to overrides in .*, got None; add a method"),
        ("{methods: [cycleqd]}", "expected methods to map names to overrides"),
        ("{methods: {a/b: {}}}", "expected names of methods to be plain file names in .*, got 'a/b'"),
        ("{methods: {ties: {}}}", "expected names of methods that are no names of other rows in .*, got 'ties'"),
        ("{methods: {my_selected: {}}}", "expected names of methods that are no names of other rows"),
        ("{methods: {x: 3}}", "expected the method 'x' to map keys to values in .*, got 3"),
        ("{methods: {x: {label: 3}}}", "expected the label of the method 'x' to be a text"),
        (
            "{methods: {x: {engine.slots: 3}}}",
            r"expected overrides of search\.\*, genome\.\*, export\.\* .*, got engine\.slots",
        ),
        ("{methods: {x: {search: {sigma: 1}}}}", "got search of the method 'x'"),
        ("{methods: {x: {seed: 1}}}", "got seed of the method 'x'"),
        (
            "{methods: {x: {search.budget: 10}}}",
            r"expected an equal budget for all methods, got search\.budget of the method 'x'",
        ),
        ("{methods: {x: {search.method: cmeas}}}", r"method of the method 'x' .*, got 'cmeas'; did you mean cmaes\?"),
        ("{methods: {cmaes: {search.method: nsga2}}}", "expected the method 'cmaes' to have the search method of its name"),
        ("{methods: {qd: {}}, title: [3]}", r"expected title to be a text in .*, got \[3\]"),
        ("{methods: {qd: {}}, paper: {rows: {base: 3}}}", "expected paper to have a setting, tasks and rows"),
        (
            "{methods: {qd: {}}, paper: {setting: s, tasks: [a], rows: {cycleqd: {a: 3}}}}",
            "expected the rows of paper in .* to be rows of the table, got 'cycleqd'",
        ),
        (
            "{methods: {qd: {}}, paper: {setting: s, tasks: [mbpp], rows: {qd_selected: {mbpb: 3}}}}",
            r"expected the columns of paper in .* to be mbpp or average, got 'mbpb'; did you mean mbpp\?",
        ),
        ("{methods: {x: {label: Mine}}}", "expected overrides, or the name of a search method .* for the method 'x' in"),
        (
            "{methods: {cma_es: {search.batch_size: 8}}}",
            "expected search.method for the method 'cma_es' in .*method cmaes, got",
        ),
        ("{methods: {nsga-2: {}}}", "whose name is like that of the search method nsga2, got none; give it, or correct"),
        ("{methods: {cmaes: {}, random: {label: CMA-ES}}}", "got 'CMA-ES' for the method 'cmaes' and the method 'random' in"),
        ("{methods: {cmaes: {label: TIES}}}", "got 'TIES' for the row ties and the method 'cmaes' in"),
        (
            '{methods: {cycleqd: {}, random: {label: "CycleQD, selected"}}}',
            "expected every display name once, got 'CycleQD, selected' for the method 'cycleqd' and the method 'random' in",
        ),
        (
            '{methods: {a: {search.method: cycleqd, label: X}, b: {search.bins: 5, label: "X, soup of elites"}}}',
            "expected every display name once, got 'X, soup of elites' for the method 'a' and the method 'b' in",
        ),
        *(
            (
                f"{{methods: {{qd: {{}}}}, paper: {{setting: s, tasks: [a], rows: {{base: {{a: {figure}}}}}}}}}",
                "expected paper to have a setting, tasks and rows .* finite percent",
            )
            for figure in (".nan", ".inf", "1" + "0" * 400)
        ),
        ("{methods: {qd: {export.elites: 50}}}", "expected an equal budget .* got export.elites .*; remove it, and give it in"),
        ("{methods: {x: {}, x: {}}}", r"got text that is not YAML in .*methods\.yaml \(the key 'x' twice, line 1\)"),
        ("methods: {", "expected a file of methods, got text that is not YAML in"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_methods(written(tmp_path, text))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cycleqd,nsga", r"expected names of search methods \(random, .*\), got 'nsga'; did you mean nsga2\?"),
        ("cycleqd,cycleqd", "expected every method once, got 'cycleqd' 2 times"),
        ("", "got ''; correct it"),
        (Path("nowhere.yaml"), "expected a file of methods in nowhere.yaml, got No such file"),
    ],
)
def test_bad_names_are_refused_in_a_sentence(names, message):
    with pytest.raises(InputError, match=message):
        read_methods(names)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("{search.sigmo: 1}", r"^expected a key of the config, got the unknown key search.sigmo in method 'x'; did you mean"),
        ("{search.method: nsga2, search.population: 30}", r"^expected search.budget of at least 30, .* in method 'x'; "),
        (
            "{search.method: cmaes, search.sigma: 0.1}",
            r"^expected search.sigma with search.method cycleqd, qd or dns only, got 0.1 with cmaes in method 'x'; ",
        ),
    ],
)
def test_overrides_that_do_not_fit_name_the_method(tmp_path, overrides, message):
    found = read_methods(written(tmp_path, f"{{methods: {{x: {overrides}}}}}"))
    with pytest.raises(InputError, match=message):
        method_config(common_tree(config_of(), found, 20, None), found.methods[0], 0, tmp_path)


SETTINGS = {
    "table1": ("quickstart", "smollm2_cs", "llama3_8b_cs"),
    "table2": ("quickstart", "smollm2_cs", "llama3_8b_cs"),
    "table4": ("sam_pol_skl", "sam_pol_lea", "sam_skl_lea"),
}
"""The shipped configs for which each file of methods is."""


def test_every_shipped_file_of_methods_has_configs():
    assert sorted(SETTINGS) == sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))


@pytest.mark.parametrize(("table", "setting"), [(table, one) for table, settings in SETTINGS.items() for one in settings])
def test_shipped_methods_work_with_shipped_configs(monkeypatch, tmp_path, table, setting):
    for name in ("CYCLEQD_DATA", "CYCLEQD_VISION"):
        monkeypatch.setenv(name, "/data")
    found, config = read_methods(CONFIGS / "methods" / f"{table}.yaml"), load_config(CONFIGS / f"{setting}.yaml")
    common = common_tree(config, found, 99, None)
    runs = [method_config(common, one, seed, tmp_path / one.name) for one in found.methods for seed in (0, 1)]
    assert all(len(config.tasks) + run.search.generations * run.search.batch_size >= 99 for run in runs)
    names = {one.name for one in found.methods}
    assert "cycleqd" in names
    assert found.reference is None or found.reference in names
    if table == "table4":  # the paper gives it relative to the experts
        assert found.paper is None
        return
    assert found.paper is not None
    assert found.paper.setting == "llama3_8b_cs"
    columns = {column for figures in found.paper.rows.values() for column in figures}
    assert columns <= {*config.task_names, "average"}


def test_the_shipped_tables_have_the_papers_rows():
    one, two = (read_methods(CONFIGS / "methods" / f"table{i}.yaml") for i in (1, 2))
    assert {method.search for method in one.methods} == set(SEARCH_METHODS)
    assert one.paper is not None
    assert two.paper is not None
    for row, figures in one.paper.rows.items():
        tasks = [figure for column, figure in figures.items() if column != "average"]
        assert sum(tasks) / 3 == pytest.approx(figures["average"], abs=0.06), row
    assert [two.paper.rows[method.name]["average"] for method in two.methods] == [47.6, 49.4, 48.5, 51.7, 52.4]
