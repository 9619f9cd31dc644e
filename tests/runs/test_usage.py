"""What a run records of its use: training, evaluation and selection."""

from __future__ import annotations

import json

import numpy as np

from cycleqd_jax import open_run
from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.runs.usage import Metered, write_training
from cycleqd_jax.training import TrainMetrics

from .conftest import TASKS, history


def test_a_finished_run_knows_all_its_costs(finished):
    run = finished / "run"
    usage = json.loads((run / "tables" / "usage.json").read_text())
    results = json.loads((run / "tables" / "results.json").read_text())
    assert usage["training"].keys() == {"base", "finetune_all", *(f"expert/{task}" for task in TASKS)}
    assert all(one["tokens"] > 0 and one["seconds"] > 0 for one in usage["training"].values())
    assert usage["evaluation"].keys() == results["methods"].keys()
    lines = history(run)
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
    metrics = TrainMetrics(np.zeros(3, np.float32), 10, 30, 1.5)
    write_training(tmp_path, tmp_path / "models" / "expert-mbpp-0123", metrics)
    found = json.loads((tmp_path / "training" / "expert-mbpp-0123.json").read_text())
    assert found == {"steps": 3, "tokens": 10, "attended": 30, "seconds": 1.5}


def test_seconds_of_the_selection_add_up_over_starts(tmp_path):
    class Two:
        size = 2

        def __call__(self, groups, on_result):
            for i, group in enumerate(groups):
                on_result(i, [Evaluation({}, None, {"express": 0.5, "evaluate": 1.0})] * len(group))

    seen, genome = [], np.zeros(1)
    for _ in range(2):  # a selection that was killed goes on in another process
        Metered(Two(), tmp_path)([[genome, genome], [genome]], lambda i, evaluations: seen.append((i, len(evaluations))))
    assert seen == [(0, 2), (1, 1)] * 2
    assert json.loads((tmp_path / "tables" / "usage.json").read_text()) == {"selection": {"seconds": 9.0}}
