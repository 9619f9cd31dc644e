"""A run with a prepared base and a merge by gradient descent, from training to the exported model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cycleqd_jax.cli import main

from .conftest import TASKS, write_config

pytestmark = pytest.mark.e2e


def test_a_whole_run(trained, capsys):
    models = trained / "cache" / "models"
    before = {path.name for path in models.iterdir()}
    shares = {"mbpp": 1, "dbbench": 2, "os_interaction": 1}
    train = {"steps": 24, "batch_size": 16, "learning_rate": 1e-3}
    config = write_config(
        trained,
        model={"prepare": {**train, "shares": shares}},
        finetune={"steps": 16},
        gradient={"steps": 6, "batch_size": 12, "groups": 2},
        search={"generations": 2},
        export={"elites": 1},
        merges=["ties"],
    )
    assert main(["finetune", str(config)]) == 0
    made = {path.name for path in models.iterdir()} - before
    assert sorted(name.rpartition("-")[0] for name in made) == [
        *sorted(f"expert-{task}" for task in TASKS),
        "finetune_all",
        "prepared",
    ]
    times = {path: path.stat().st_mtime_ns for path in models.iterdir()}
    assert main(["run", str(config)]) == 0
    assert {path: path.stat().st_mtime_ns for path in models.iterdir()} == times  # everything was cached

    run = trained / "run"
    results = json.loads((run / "tables" / "results.json").read_text())
    assert list(results["methods"])[:2] == ["base", "prepared_base"]
    assert {"finetune_all", "uniform_merge", "ties", "gradient", "cycleqd_selected"} <= results["methods"].keys()
    found = json.loads((run / "tables" / "gradient.json").read_text())
    assert np.shape(found["coefficients"]) == (2, 3)
    assert len(found["losses"]) == 6
    inputs = json.loads((run / "inputs.json").read_text())
    assert inputs["prepared_base"] != inputs["base"]
    table = capsys.readouterr().out
    rows = [line.split("  ")[0] for line in table[table.index("test") :].splitlines()]
    assert rows.index("Base model") < rows.index("Prepared base") < rows.index("Expert: mbpp")
    assert rows.index("Uniform merge") < rows.index("Gradient descent on coefficients") < rows.index("CycleQD, selected")
    card = (run / "model" / "README.md").read_text()
    assert "(trained by this run) after 24 steps of joint fine-tuning on mbpp, dbbench, os_interaction" in card
    assert "| prepared_base | " in card

    assert main(["evaluate", str(config), "model.prepare=null"]) == 2
    assert "expected model.prepare {" in capsys.readouterr().err


def test_more_groups_than_layers_are_refused_before_anything_is_trained(tmp_path, capsys):
    assert main(["run", str(write_config(tmp_path, gradient={"groups": 3}))]) == 2
    assert (
        "expected 1 to 2 groups of layers, as many as the model has layers, got 3 in gradient.groups" in capsys.readouterr().err
    )
    assert not list((tmp_path / "cache").glob("**/model.safetensors"))
