"""The rows of the results table: what is measured, kept and taken over."""

from __future__ import annotations

import json
from typing import NamedTuple
from unittest import mock

import jax
import pytest

from cycleqd_jax.config import load_config
from cycleqd_jax.evaluation import Evaluation, Evaluator
from cycleqd_jax.files import write_json
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.models import llama
from cycleqd_jax.runs import run as runs
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.evolution import Evolution, Merged
from cycleqd_jax.runs.inputs.examples import Examples
from cycleqd_jax.runs.inputs.models import ModelFolders, Models
from cycleqd_jax.runs.results import measurement as module
from cycleqd_jax.runs.results.measurement import lacks_rows, measure
from cycleqd_jax.runs.training.gradient import GradientMerge
from cycleqd_jax.runs.training.trainer import Trainer
from cycleqd_jax.runs.workers.placement import Placement
from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.types import InputError, Outcome, Score, no_progress

TREE = {"name": "demo", "tasks": [{"name": "a", "kind": "mbpp"}, {"name": "b", "kind": "dbbench"}], "merges": ["ties"]}
RECORD = {"steps": 3, "tokens": 10, "attended": 30, "seconds": 1.5, "flops": 7}
FOUND = ["cycleqd_best_elite", "cycleqd", "cycleqd_soup", "cycleqd_selected"]


class Opened(NamedTuple):
    context: Context
    evolution: Evolution
    evaluated: list[str]
    calls: list[str]
    lines: list[str]

    def measure(self, **more):
        return measure(self.context, self.evolution, "none", **more)


@pytest.fixture
def open_of(tmp_path, monkeypatch):
    """``open_of(**changes)``: a run whose models and search are faked, with what was called and evaluated, and its log."""
    config = llama.LlamaConfig(64, 16, 32, 1, 2, 1, 8)
    base = llama.init_params(config, jax.random.key(0))
    space = ExpertSpace.from_experts(base, [base, base])
    monkeypatch.setattr(GradientMerge, "digest", lambda self: f"steps-{self._options.steps}")
    monkeypatch.setattr(GradientMerge, "ensure_fitted", lambda self: calls.append("fit"))
    monkeypatch.setattr(GradientMerge, "usage", lambda self: RECORD)
    monkeypatch.setattr(GradientMerge, "express", lambda self: base)
    monkeypatch.setattr(module.Merges, "static", lambda self, method: base)
    monkeypatch.setattr(module.Merges, "uniform", lambda self: base)
    calls: list[str] = []

    def make(shared=None, **changes):
        calls.clear()
        loaded, evaluated, lines = load_config({"output": str(tmp_path / "run"), **TREE, **changes}), [], []
        folders = ModelFolders({name: tmp_path / name for name in ("base", "expert/a", "expert/b")}, {})
        models = mock.create_autospec(Models, instance=True)
        models.folders, models.config, models.base = folders, config, base
        models.expert_params.return_value = models.base_params.return_value = base
        examples = mock.create_autospec(Examples, instance=True)
        context = Context(loaded, models, (), examples, (), no_progress, lines.append, shared)

        def evaluate(params, split, *, donate):
            evaluated.append(split)
            outcomes = {task: [Outcome(Score(float(len(evaluated) % 2)), (), 1, 1)] for task in ("a", "b")}
            return Evaluation(outcomes, None, {"evaluate": 1.0})

        evaluator = mock.create_autospec(Evaluator, instance=True, side_effect=evaluate)
        evaluator.shrink = lambda: False
        evaluator.unload = lambda: None
        evolution = mock.create_autospec(Evolution, instance=True)
        evolution.is_cycleqd = True
        evolution.model.side_effect = lambda name: getattr(evolution, name)()
        evolution.ensure_evolved.side_effect = lambda: calls.append("evolve")
        evolution.placement = placement = mock.create_autospec(Placement, instance=True)
        placement.ensure_evaluator.return_value, placement.ensure_space.return_value = evaluator, space
        placement.expert_genomes.return_value = [space.expert(0), space.expert(1)]
        placement.express.return_value = base
        for name, key in (
            ("best_elite", ("elite", (3,))),
            ("aggregate", ("aggregate", (3, 4))),
            ("soup", ("soup", (3, 5))),
            ("selected", ("elite", (3,))),
        ):
            getattr(evolution, name).return_value = Merged(space.expert(0), {"id": 3, "mixing": None}, key)
        return Opened(context, evolution, evaluated, calls, lines)

    return make


def tables(folder, name):
    return json.loads((folder / "tables" / f"{name}.json").read_text())


def test_only_missing_rows_are_measured_and_the_others_stay(open_of):
    opened = open_of()
    first = opened.measure()
    shared = ["base", "expert/a", "expert/b", "uniform_merge", "ties"]
    assert [*first["methods"]] == shared + FOUND
    assert len(opened.evaluated) == 2 * (5 + 3)  # the best elite was selected: equal weights
    assert not lacks_rows(opened.context, first)
    again = open_of(merges=["dare"], gradient={"steps": 3})
    assert lacks_rows(again.context, first)
    second = again.measure(keep=True)
    assert len(again.evaluated) == 2 * 2
    assert [*second["methods"]] == [*shared[:4], "dare", "gradient", "ties", *FOUND]
    assert {name: second["methods"][name] for name in first["methods"]} == first["methods"]
    assert second["found"] == first["found"] == FOUND
    items, usage = (tables(again.context.folder, name) for name in ("items", "usage"))
    assert items.keys() == usage["evaluation"].keys() == second["methods"].keys()
    assert usage["training"]["gradient"] == RECORD
    assert not lacks_rows(again.context, second)
    whole = open_of()
    assert [*whole.measure()["methods"]] == shared + FOUND  # `cycleqd evaluate` has the rows of the config
    assert len(whole.evaluated) == len(opened.evaluated)


def test_other_coefficients_are_another_row(open_of):
    first = open_of(gradient={"steps": 3}).measure()
    opened = open_of(gradient={"steps": 4})
    assert lacks_rows(opened.context, first)
    second = opened.measure(keep=True)
    assert (opened.calls, len(opened.evaluated)) == (["evolve", "fit"], 2)
    assert (first["gradient"], second["gradient"]) == ("steps-3", "steps-4")


def test_another_search_result_is_measured(open_of):
    open_of().measure()
    opened = open_of()
    opened.evolution.soup.return_value = Merged(
        opened.evolution.placement.expert_genomes()[0], {"ids": [3, 6], "mixing": None}, ("soup", (3, 6))
    )
    opened.measure(keep=True)
    assert len(opened.evaluated) == 2


def test_a_row_that_is_taken_over_brings_its_training(open_of, tmp_path):
    first = open_of(gradient={"steps": 3}, output=str(tmp_path / "other"))
    first.measure()
    opened = open_of(tmp_path / "other", gradient={"steps": 3})
    results = opened.measure()
    assert opened.calls == ["evolve"]
    assert len(opened.evaluated) == 2 * 3  # what its own search found
    assert results["gradient"] == "steps-3"
    assert tables(opened.context.folder, "usage")["training"]["gradient"] == RECORD


def test_a_damaged_record_of_another_run_is_unknown(open_of, tmp_path):
    open_of(output=str(tmp_path / "other")).measure()
    (tmp_path / "other" / "tables" / "usage.json").write_text("{")
    opened = open_of(tmp_path / "other")
    opened.measure()
    assert tables(opened.context.folder, "usage")["evaluation"]["base"] == {}
    assert "usage.json is damaged" in opened.lines[0]


def test_the_folder_is_claimed_before_the_coefficients_are_written(open_of):
    opened = open_of(gradient={})
    opened.measure()
    assert opened.calls == ["evolve", "fit"]


def test_coefficients_that_do_not_fit_the_memory_leave_the_other_rows(open_of, monkeypatch):
    def full(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 16 bytes")

    monkeypatch.setattr(GradientMerge, "ensure_fitted", full)
    opened = open_of(gradient={})
    results = opened.measure()
    assert results["methods"]["gradient"]["test"] == {"a": None, "b": None, "average": None}
    assert results["methods"]["ties"]["test"]["average"] is not None
    assert any(line.startswith("warning: gradient can't be evaluated: the device's memory") for line in opened.lines)
    assert tables(opened.context.folder, "usage")["training"]["gradient"] is None
    assert not lacks_rows(opened.context, results)


def test_a_run_measures_what_its_table_lacks(open_of, tmp_path, monkeypatch):
    opened = open_of()
    run = runs.Run(opened.context.config)
    sandbox = mock.create_autospec(Sandbox, instance=True)
    sandbox.isolation = mock.Mock()
    sandbox.isolation.name = "none"
    trainer = mock.create_autospec(Trainer, instance=True)
    monkeypatch.setattr(run, "_opened", runs._Opened(sandbox, opened.context, trainer, opened.evolution))
    first = run.results()
    evaluated = len(opened.evaluated)
    assert run.results() == first
    assert len(opened.evaluated) == evaluated
    write_json(
        run.folder / "tables" / "results.json", first | {"methods": {k: v for k, v in first["methods"].items() if k != "ties"}}
    )
    assert run.results()["methods"].keys() == first["methods"].keys()
    assert len(opened.evaluated) == evaluated + 2
    (run.folder / "tables" / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"in .*results\.json, got .*; run the evaluation again"):
        run.results()


def test_what_a_row_lacks_is_found_before_the_search(open_of, monkeypatch):
    def refuse(self):
        raise InputError("expected gold solutions, got none")

    monkeypatch.setattr(GradientMerge, "check", refuse)
    opened = open_of(gradient={})
    evolution = Evolution(opened.context)
    monkeypatch.setattr(evolution, "placement", opened.evolution.placement)
    monkeypatch.setattr(evolution, "_check_population", lambda genomes: None)
    with pytest.raises(InputError, match="expected gold solutions, got none"):
        evolution.ensure_evolved()
    assert not opened.context.folder.exists()
