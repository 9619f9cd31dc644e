"""What a run records of its use: training, evaluation and selection."""

from __future__ import annotations

import dataclasses
import json
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from cycleqd_jax import open_run
from cycleqd_jax.config import load_config
from cycleqd_jax.files import write_json
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.models import llama
from cycleqd_jax.plan import express_flops, mixed_flops
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.inputs.examples import Examples
from cycleqd_jax.runs.inputs.models import ModelFolders, Models
from cycleqd_jax.runs.usage import write_selection, write_training, write_usage
from cycleqd_jax.types import Adapter, LowRank, no_progress

from .conftest import TASKS


@pytest.mark.e2e
def test_a_finished_run_knows_all_its_costs(finished):
    run = finished / "run"
    usage = json.loads((run / "tables" / "usage.json").read_text())
    results = json.loads((run / "tables" / "results.json").read_text())
    assert usage["training"].keys() == {"base", "finetune_all", *(f"expert/{task}" for task in TASKS)}
    assert all(one["tokens"] > 0 and one["seconds"] > 0 for one in usage["training"].values())
    assert usage["evaluation"].keys() == results["methods"].keys()
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    for line in lines:
        tokens = line["tokens"]
        assert 0 < tokens["generated"] < tokens["prompt"]
        assert tokens["computed"] < tokens["prompt"] + tokens["generated"]  # prefixes are shared
    records = {(record["method"], record["stage"]): record for record in open_run(run).costs}
    assert all(value is not None for record in records.values() for value in record.values())
    assert records["cycleqd", "evaluate"]["tokens"] == sum(line["tokens"]["computed"] for line in lines)
    assert records["cycleqd_selected", "select"]["tokens"] > 0
    for name in ("costs.json", "costs.md"):
        assert (run / "tables" / name).exists()
    for name in ("results.json", "items.json", "selection.json"):
        assert "seconds" not in (run / "tables" / name).read_text()


def test_the_record_of_a_training_lies_in_the_cache(tmp_path):
    used = {"steps": 3, "tokens": 10, "attended": 30, "seconds": 1.5}
    write_training(tmp_path, tmp_path / "models" / "expert-mbpp-0123", used)
    assert json.loads((tmp_path / "training" / "expert-mbpp-0123.json").read_text()) == used


def test_seconds_of_a_candidate_replace_those_of_an_earlier_evaluation(tmp_path):
    for seconds in ({"elite 3": 4.0, "aggregate": 2.0}, {"elite 3": 1.0}):
        write_selection(tmp_path, seconds, print)
    usage = json.loads((tmp_path / "tables" / "usage.json").read_text())
    assert usage == {"selection": {"elite 3": 1.0, "aggregate": 2.0}}


RECORD = {"steps": 3, "tokens": 10, "attended": 30, "seconds": 1.5}
TREE = {"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}], "baselines": ["finetune_all"]}


@pytest.fixture
def run_of(tmp_path):
    """``run_of(**changes)``: a context whose models lie in the cache with records, the space of its experts, and its log."""
    config = llama.LlamaConfig(64, 16, 32, 2, 2, 1, 8)
    base = llama.init_params(config, jax.random.key(0))

    def make(**changes):
        tree = {**TREE, "output": str(tmp_path / "run"), "cache": str(tmp_path / "cache"), **changes}
        loaded, lines = load_config(tree), []
        folders = {
            name: tmp_path / "cache" / "models" / name.replace("/", "-") for name in ("base", "expert/mbpp", "expert/dbbench")
        }
        baselines = {name: tmp_path / "cache" / "models" / name for name in loaded.baselines}
        for folder in (*folders.values(), *baselines.values()):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(tmp_path / "cache" / "training" / f"{folder.name}.json", RECORD)
        models = mock.create_autospec(Models, instance=True)
        models.folders, models.config = ModelFolders(folders, baselines), config
        examples = mock.create_autospec(Examples, instance=True)
        context = Context(loaded, models, (), examples, (), no_progress, lines.append)
        return context, ExpertSpace.from_experts(base, [base, base]), lines

    return make


def written(context):
    return json.loads((context.folder / "tables" / "usage.json").read_text())


def test_the_training_of_a_row_stays_as_long_as_the_row_does(run_of):
    context, space, _ = run_of()
    rows = {name: {} for name in ("base", "expert/mbpp", "expert/dbbench", "finetune_all", "gradient")}
    fitted = {**RECORD, "flops": 7}
    write_usage(context, space, rows, {"gradient": fitted})
    other, _, _ = run_of(baselines=[])
    write_usage(other, space)  # the next command has another config; the table is the same
    assert written(context)["training"] == {**dict.fromkeys(rows, RECORD), "gradient": fitted}
    del rows["gradient"], rows["finetune_all"]
    write_usage(other, space, rows)
    assert written(context)["training"].keys() == rows.keys()


def test_models_of_the_config_are_not_trained_wherever_they_lie(run_of):
    model = {"base": "a", "experts": {"mbpp": "b", "dbbench": "c"}}
    context, space, _ = run_of(model=model, baselines=[])
    write_usage(context, space)
    assert written(context)["training"] == {}


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"steps": 1}', json.dumps({**RECORD, "tokens": "x"}), '{"tokens": NaN}'])
def test_a_damaged_record_is_unknown(run_of, content):
    context, space, lines = run_of()
    (context.models.folders.search["base"].parents[1] / "training" / "base.json").write_text(content)
    write_usage(context, space)
    assert written(context)["training"]["base"] is None
    assert written(context)["training"]["finetune_all"] == RECORD
    assert [line for line in lines if "base.json is damaged; its costs are unknown" in line] == lines != []


@pytest.mark.parametrize("content", ["{", "[]", '{"training": 3}'])
def test_a_damaged_file_is_written_anew(run_of, content):
    context, space, lines = run_of()
    write_usage(context, space)
    whole = written(context)
    (context.folder / "tables" / "usage.json").write_text(content)
    write_usage(context, space)
    assert written(context) == whole
    assert "usage.json is damaged; " in lines.pop()


def test_individuals_over_one_base_are_not_expressed(run_of):
    context, space, _ = run_of()
    low = Adapter({"layers/attn/q": LowRank(jnp.ones((2, 16, 3)), jnp.ones((2, 3, 16)))})
    adapters = ExpertSpace.from_experts(space.base, [low, low])
    for config, express, mixed in ((context.config, express_flops(adapters), 0), ("population", 0, mixed_flops(adapters))):
        if config == "population":
            engine = dataclasses.replace(context.config.engine, population=2)
            context = dataclasses.replace(context, config=dataclasses.replace(context.config, engine=engine))
        write_usage(context, adapters)
        flops = written(context)["flops"]
        assert (flops["express"], flops["mixed"]) == (express, mixed)
    assert mixed_flops(adapters) == 2 * 2 * 2 * 3 * (16 + 16)  # layers, experts, rank
