"""The final measurement: what is evaluated, what is taken over, and what a killed one keeps; models and scores are made up."""

from __future__ import annotations

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.config import load_config, to_dict
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.evolution import Evolution
from cycleqd_jax.runs.results import measurement as results
from cycleqd_jax.runs.workers.placement import Placement
from cycleqd_jax.types import REPORTED

from ...compared_runs import TASKS, write_finished


class Measurement:
    """A run with made-up rows; ``evaluated`` are the rows that were evaluated, in order, and ``fail_at`` kills one of them."""

    def __init__(self, monkeypatch, folder):
        tasks = [{"name": name, "kind": kind} for name, kind in zip(TASKS, ("mbpp", "dbbench"), strict=True)]
        self.config = load_config({"name": "demo", "tasks": tasks, "output": str(folder), "search": {"method": "random"}})
        self.folder = folder
        self.keys = {"base": None, "dare": None, "random": ("elite", (4,)), "random_selected": ("elite", (4,))}
        self.evaluated: list[str] = []
        self.fail_at: str | None = None
        monkeypatch.setattr(results, "table_rows", self._rows)
        monkeypatch.setattr(results, "_score", self._score)
        monkeypatch.setattr(results, "write_usage", self._write_usage)

    def _rows(self, context, evolution, gradient):
        return {name: results.TableRow(dict, donate=True, key=key) for name, key in self.keys.items()}

    def _score(self, context, evolution, method, row, split):
        if self.fail_at == method and split == REPORTED[-1]:
            raise KeyboardInterrupt
        if split == REPORTED[0]:
            self.evaluated.append(method)
        path = results._transcripts(self.folder, method, split)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("{}")
        return dict.fromkeys((*TASKS, "average"), 0.5), {task: [0.0, 1.0] for task in TASKS}, {"tokens": None, "seconds": 1.0}

    def _write_usage(self, context, space, evaluation, training):
        (self.folder / "tables").mkdir(exist_ok=True, parents=True)
        (self.folder / "tables" / "usage.json").write_text(json.dumps({"evaluation": evaluation}))

    def run(self, shared=None):
        context, evolution = mock.Mock(spec=Context), mock.Mock(spec=Evolution)
        context.config, context.folder, context.shared = self.config, self.folder, shared
        context.progress, context.log = (lambda *_: None), (lambda line: None)
        evolution.is_cycleqd, evolution.placement = False, mock.Mock(spec=Placement)
        evolution.selected.return_value.facts = {}
        evolution.best_elite.return_value.facts = {"id": 4}
        self.evaluated = []
        return results.measure(context, evolution, "none")


@pytest.fixture
def measurement(monkeypatch, tmp_path):
    return Measurement(monkeypatch, tmp_path / "run")


def transcripts(folder):
    return sorted(path.name for path in (folder / "transcripts").iterdir())


def test_equal_weights_are_evaluated_once(measurement):
    found = measurement.run()
    assert measurement.evaluated == ["base", "dare", "random"]
    assert found["methods"]["random"] == found["methods"]["random_selected"]
    assert found["found"] == ["random", "random_selected"]
    assert not (measurement.folder / "tables" / "measured.json").exists()


def test_a_killed_measurement_continues_with_the_next_row(measurement):
    whole = measurement.run()
    items = (measurement.folder / "tables" / "items.json").read_bytes()
    measurement.fail_at = "random"
    with pytest.raises(KeyboardInterrupt):
        measurement.run()
    measurement.fail_at = None
    assert measurement.run() == whole
    assert measurement.evaluated == ["random"]
    assert (measurement.folder / "tables" / "items.json").read_bytes() == items


@pytest.mark.parametrize("change", ["key", "config", "damage", "rows"])
def test_a_killed_measurement_of_other_models_is_not_continued(measurement, change):
    measurement.fail_at = "random_selected"
    measurement.keys["random_selected"] = ("soup", (4, 5))
    with pytest.raises(KeyboardInterrupt):
        measurement.run()
    measurement.fail_at = None
    if change == "key":
        measurement.keys["random"] = ("elite", (9,))
    elif change == "config":
        measurement.config = load_config(to_dict(measurement.config), ["search.generations=9"])
    elif change == "damage":
        (measurement.folder / "tables" / "measured.json").write_text('{"models": ')
    else:
        file = measurement.folder / "tables" / "measured.json"
        known = json.loads(file.read_text())
        file.write_text(json.dumps({**known, "rows": {row: {} for row in known["rows"]}}))
    measurement.run()
    assert measurement.evaluated == (["random", "random_selected"] if change == "key" else [*measurement.keys])


def test_transcripts_of_rows_that_have_none_of_their_own_are_removed(measurement):
    measurement.keys["random_selected"] = ("soup", (4, 5))
    measurement.run()
    assert "random_selected-test.jsonl" in transcripts(measurement.folder)
    measurement.keys["random_selected"] = measurement.keys["random"]
    measurement.run()
    assert transcripts(measurement.folder) == [
        f"{row}-{split}.jsonl" for row in ("base", "dare", "random") for split in ("test", "train")
    ]


@pytest.mark.parametrize(("seed", "evaluated"), [(0, ["random"]), (3, ["dare", "random"])])
def test_rows_that_depend_on_the_seed_are_not_those_of_another(measurement, tmp_path, seed, evaluated):
    shared = write_finished(tmp_path / "other", "cmaes", seed)
    for name in ("results", "items", "usage"):
        path = shared / "tables" / f"{name}.json"
        tree = json.loads(path.read_text()) if path.exists() else {"evaluation": {}}
        rows = tree["methods"] if name == "results" else tree["evaluation"] if name == "usage" else tree
        for row in ("base", "dare", "gradient", "cmaes", *rows):
            rows[row] = rows.get(row) or {split: {} for split in REPORTED}
        for row in ("expert/a", "expert/b", "uniform_merge"):
            rows[row] = {split: {} for split in REPORTED}
        path.write_text(json.dumps(tree))
    measurement.run(shared)
    assert measurement.evaluated == evaluated


def test_the_uniform_merge_does_not_depend_on_the_genome_space():
    base, *experts = [
        {"w": jax.random.normal(jax.random.key(i), (64, 32), jnp.bfloat16), "norm": jnp.full(32, 1 + i / 7, jnp.bfloat16)}
        for i in range(4)
    ]
    context, group, merged = mock.Mock(spec=Context, mirror=None), mock.Mock(), []
    context.models = mock.Mock(base=base, experts=experts)
    group.place_space, group.express, context.groups = (lambda space, config: space), jax.jit, [group]
    for space in ("expert", "dense"):
        tree = {"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}], "genome": {"space": space}}
        context.config = load_config(tree)
        merged.append(results.Merges(context).uniform())
    for name in base:
        mean = np.mean([np.asarray(one[name], np.float32) for one in experts], axis=0)
        np.testing.assert_allclose(np.asarray(merged[0][name], np.float32), mean, rtol=2**-7, atol=1e-6)
        np.testing.assert_array_equal(merged[0][name], merged[1][name])
