"""Costs: sums over journals, trainings and evaluations by hand, and what is unknown."""

import json

import pytest

from cycleqd_jax.report import open_run, write_report
from cycleqd_jax.report.costs import Cost, load_costs
from cycleqd_jax.report.history import load_history
from cycleqd_jax.report.tables.costs import cost_sheets, costs_markdown
from cycleqd_jax.types import InputError

TASKS = ("mbpp", "dbbench", "os_interaction")
FLOPS = {"layers": 1000, "head": 100, "pair": 10, "express": 7}
GPU = {"name": "h100-80gb", "peak": 1e6, "utilisation": {"train": 0.5, "evaluate": 0.25}}
PREPARED = {"steps": 1, "tokens": 50, "attended": 60, "seconds": 2.0}
SECONDS = 1.5


def tokens(n):
    return {"prompt": 9 * n, "generated": 2 * n, "computed": 10 * n, "attended": 3 * n}


def flops(n):
    return 1000 * 10 * n + 100 * 2 * n + 10 * 3 * n


def trained(n):
    return {"steps": 1, "tokens": n, "attended": 2 * n, "seconds": float(n)}


def training_flops(n):
    return 3 * (1000 * n + 100 * n + 10 * 2 * n)


@pytest.fixture
def folder(make_run):
    """A run whose individual i has computed 10 i tokens."""
    folder = make_run(tasks=TASKS, generations=12, bins=4)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for line in lines:
        line["tokens"] = tokens(line["id"])
        line["seconds"] = {"express": 0.5, "evaluate": 2.0}
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = {"base": trained(1000), "finetune_all": trained(40), "prepared_base": PREPARED}
    training |= {f"expert/{task}": trained(10 * k) for k, task in enumerate(TASKS)}
    results = json.loads((folder / "tables" / "results.json").read_text())
    results["methods"]["cycleqd_selected"] = results["methods"]["cycleqd"]
    (folder / "tables" / "results.json").write_text(json.dumps(results))
    row = {"train": {"tokens": tokens(3), "seconds": SECONDS}, "test": {"tokens": tokens(4), "seconds": SECONDS}}
    usage = {"flops": FLOPS, "gpu": GPU, "training": training, "selection": {"elite 5": 2.0, "elite 6": 4.0, "elite 9": 8.0}}
    write(folder, "usage", usage | {"evaluation": dict.fromkeys(results["methods"], row)})
    known = {"scores": dict.fromkeys(TASKS, 1.0), "average": 1.0, "items": {task: [1.0] for task in TASKS}}
    candidates = [{"kind": "elite", "ids": [i], **known, "tokens": tokens(i)} for i in (5, 6)]
    chosen = {"kind": "elite", "ids": [5]}
    write(folder, "selection", {"problems": dict.fromkeys(TASKS, ""), "candidates": candidates, "soup": [5], "chosen": chosen})
    return folder


def write(folder, name, tree):
    (folder / "tables" / f"{name}.json").write_text(json.dumps(tree))


def change(folder, name, **changes):
    path = folder / "tables" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_row_has_what_it_needs(folder):
    costs = load_costs(folder)
    measured = Cost(70, flops(7), 2 * SECONDS)
    prepared = Cost(50, 3 * (1100 * 50 + 10 * 60), 2.0)
    experts = Cost.total([prepared, Cost(30, training_flops(30), 30.0)])
    assert costs.methods["base"] == {"train": Cost(1000, training_flops(1000), 1000.0), "measure": measured}
    own = Cost(20, training_flops(20), 20.0)
    assert costs.methods["expert/os_interaction"] == {"train": Cost.total([prepared, own]), "measure": measured}
    assert costs.methods["finetune_all"]["train"] == Cost.total([prepared, Cost(40, training_flops(40), 40.0)])
    assert costs.methods["uniform_merge"] == {"train": experts, "measure": measured}
    n = sum(range(15))  # 3 experts and 12 children
    search = {"express": Cost(0, 7 * 15, 0.5 * 15), "evaluate": Cost(10 * n, flops(n), 2.0 * 15)}
    assert costs.methods["cycleqd"] == {"train": experts, **search, "measure": measured}
    select = Cost(110, flops(11), 6.0)
    assert costs.methods["cycleqd_selected"] == {"train": experts, **search, "select": select, "measure": measured}
    total = costs.total("cycleqd_selected")
    assert total.tokens == 80 + 10 * n + 110
    assert total.seconds == 32 + 2.5 * 15 + 6
    hours = (experts.flops + 7 * 15) / 0.5e6 / 3600 + (flops(n) + flops(11)) / 0.25e6 / 3600
    assert costs.gpu_hours("cycleqd_selected") == pytest.approx(hours)


def test_generations_add_up_to_the_search(folder):
    costs = load_costs(folder)
    assert [*costs.generations] == [*range(-1, 12)]
    assert costs.generations[-1] == (3, {"express": Cost(0, 21, 1.5), "evaluate": Cost(30, flops(3), 6.0)})
    for stage in ("express", "evaluate"):
        assert Cost.total(stages[stage] for _, stages in costs.generations.values()) == costs.methods["cycleqd"][stage]
    records = open_run(folder).generation_costs
    assert sum(record["flops"] for record in records if record["stage"] == "evaluate") == flops(sum(range(15)))
    assert sum(record["individuals"] for record in records if record["stage"] == "express") == 15


@pytest.mark.parametrize("unit", ["tokens", "images"])
def test_the_record_says_what_tokens_count(folder, unit):
    change(folder, "usage", unit=unit)
    assert load_costs(folder).record()["unit"] == unit


@pytest.mark.exhaustive
def test_files_and_tables(folder, undrawn):
    write_report(folder)
    tree = json.loads((folder / "tables" / "costs.json").read_text())
    costs = load_costs(folder)
    assert tree == json.loads(json.dumps(costs.record()))
    markdown = (folder / "tables" / "costs.md").read_text()
    assert markdown == costs_markdown(costs)
    assert "extrapolated, not measured" in markdown
    assert "The paper states 410 H100-hours for CycleQD and 200 for fine-tuning on all data" in markdown
    for name in ("Costs", "Tokens", "FLOPs", "Seconds", "Search by generation"):
        assert f"**{name}**" in markdown
    assert '<section id="costs">' in (folder / "report.html").read_text()
    spans = cost_sheets(costs)[-1]
    assert [name for name, _ in spans.rows] == ["experts", *map(str, range(12))]
    assert open_run(folder).costs[0] == {
        "method": "base", "stage": "train", "tokens": 1000, "flops": training_flops(1000), "seconds": 1000.0
    }  # fmt: skip


def test_given_models_are_not_trained_and_old_ones_are_unknown(folder):
    change(folder, "usage", training={"base": None})
    costs = load_costs(folder)
    assert costs.methods["uniform_merge"]["train"] == Cost(0, 0, 0.0)
    assert costs.methods["base"]["train"] == Cost(None, None, None)
    assert costs.gpu_hours("base") is None
    assert costs.gpu_hours("uniform_merge") == 0


@pytest.mark.parametrize("row", ["gradient", "finetune_all", "prepared_base"])
def test_a_training_without_a_record_is_unknown(folder, row):
    results = json.loads((folder / "tables" / "results.json").read_text())
    results["methods"][row] = results["methods"]["uniform_merge"]
    write(folder, "results", results)
    usage = json.loads((folder / "tables" / "usage.json").read_text())
    usage["training"].pop(row, None)
    write(folder, "usage", usage)
    costs = load_costs(folder)
    assert costs.methods[row]["train"] == Cost(None, None, None)
    assert (costs.methods["uniform_merge"]["train"].tokens is None) == (row == "prepared_base")


def test_the_coefficients_of_a_gradient_descent_count(folder):
    results = json.loads((folder / "tables" / "results.json").read_text())
    results["methods"]["gradient"] = results["methods"]["uniform_merge"]
    write(folder, "results", results)
    usage = json.loads((folder / "tables" / "usage.json").read_text())
    usage["training"]["gradient"] = {**trained(10), "flops": 5000}
    write(folder, "usage", usage)
    costs = load_costs(folder)
    own = Cost(10, training_flops(10) + 5000, 10.0)
    assert costs.methods["gradient"]["train"] == Cost.total([costs.methods["uniform_merge"]["train"], own])


def test_individuals_over_one_base_have_low_rank_products(folder):
    before = load_costs(folder).methods["cycleqd_selected"]
    change(folder, "usage", flops={**FLOPS, "express": 0, "mixed": 3})
    after = load_costs(folder).methods["cycleqd_selected"]
    assert after["express"].flops == 0
    for stage in ("evaluate", "select"):
        assert after[stage].flops == before[stage].flops + 3 * before[stage].tokens
    assert after["measure"] == before["measure"]  # rows are whole models


def test_a_candidate_without_seconds_is_unknown(folder):
    change(folder, "usage", selection={"elite 5": 2.0})
    assert load_costs(folder).methods["cycleqd_selected"]["select"].seconds is None


def test_a_journal_without_counts_is_unknown(folder):
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    del lines[4]["tokens"]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    costs = load_costs(folder)
    assert costs.methods["cycleqd"]["evaluate"] == Cost(None, None, 30.0)
    assert costs.generations[1][1]["evaluate"] == Cost(None, None, 2.0)
    assert costs.generations[2][1]["evaluate"] == Cost(50, flops(5), 2.0)
    assert costs.gpu_hours("cycleqd") is None


def test_a_run_of_an_old_version_has_seconds(make_run):
    folder = make_run(generations=5)
    costs = load_costs(folder)
    assert costs.gpu is None
    assert costs.methods["cycleqd"]["evaluate"].tokens is None
    assert costs.methods["cycleqd"]["evaluate"].seconds > 0
    assert costs.methods["base"]["measure"] == Cost(None, None, None)
    assert "| CycleQD | – | – | – | – |" in costs_markdown(costs)


def test_a_search_that_is_running(folder):
    for name in ("results", "selection"):
        (folder / "tables" / f"{name}.json").unlink()
    change(folder, "usage", evaluation={}, selection={})
    costs = load_costs(folder, load_history(folder))
    assert [*costs.methods] == ["cycleqd"]
    assert [*costs.methods["cycleqd"]] == ["train", "express", "evaluate"]


def test_nothing_is_known_of_results_alone(make_run):
    folder = make_run(generations=5)
    (folder / "history.jsonl").unlink()
    assert load_costs(folder) is None
    assert open_run(folder).costs == []


@pytest.mark.parametrize(
    "changes",
    [
        {"flops": {}},
        {"flops": None},
        {"gpu": {"peak": 1}},
        {"gpu": {name: value for name, value in GPU.items() if name != "name"}},
        {"gpu": {**GPU, "peak": 0}},
        {"gpu": {**GPU, "utilisation": {"train": 0.0, "evaluate": 0.5}}},
        {"training": {"base": 3}},
        {"training": {"base": {"tokens": "x"}}},
        {"evaluation": {"base": {"test": {"tokens": {}, "seconds": 1}}}},
        {"selection": {"elite 5": float("inf")}},
        {"flops": {**FLOPS, "mixed": None}},
        {"training": {"gradient": {**PREPARED, "flops": "x"}}},
    ],
)
def test_damaged_usage_is_an_error(folder, changes):
    change(folder, "usage", **changes)
    with pytest.raises(InputError, match=r"^expected flops, gpu and training in .*usage\.json, got .*; remove the file"):
        load_costs(folder)
