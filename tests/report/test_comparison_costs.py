"""The costs of a comparison: means over seeds of what the runs have used."""

from __future__ import annotations

import json

import pytest

from cycleqd_jax.report.comparison import comparison_table
from cycleqd_jax.report.comparison_costs import write_comparison_costs
from cycleqd_jax.report.method_runs import MethodRuns

from ..compared_runs import write_finished

SEEDS = (0, 3)
GPU = {"name": "h100-80gb", "peak": 1e6, "utilisation": {"train": 0.5, "evaluate": 0.25}}
FLOPS = {"layers": 10, "head": 0, "pair": 0, "express": 1, "mixed": 0}


def runs_of(folder, search, tokens):
    """Runs whose individuals have computed so many tokens each, and whose experts have seen 100 in training."""
    folders = {seed: write_finished(folder / f"seed-{seed}" / search, search, seed, individuals=4) for seed in SEEDS}
    for seed, run in folders.items():
        lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        counts = {"prompt": 0, "generated": 0, "computed": tokens + seed, "attended": 0}
        more = {"tokens": counts, "seconds": {"express": 0.5, "evaluate": 1.0}}
        (run / "history.jsonl").write_text("".join(json.dumps(line | more) + "\n" for line in lines))
        record = {"steps": 1, "tokens": 100, "attended": 0, "seconds": 2.0}
        usage = {"flops": FLOPS, "gpu": GPU, "training": {"expert/a": record, "expert/b": record}}
        (run / "tables" / "usage.json").write_text(json.dumps(usage))
    return MethodRuns(search, search, None, folders)


def test_means_over_seeds(tmp_path):
    methods = [runs_of(tmp_path, "cycleqd", 10), runs_of(tmp_path, "cmaes", 20)]
    table = comparison_table(methods, title="T")
    written = write_comparison_costs(tmp_path, table, methods)
    assert [path.name for path in written] == ["costs.md", "costs.json"]
    tree = json.loads(written[1].read_text())
    assert (tree["seeds"], tree["unit"], tree["gpu"]) == ([0, 3], "tokens", GPU)
    assert [*tree["rows"]] == [*table.methods]
    hours = {"train": 2 * 3 * 1000 / 0.5e6 / 3600}
    assert tree["rows"]["expert/a"] == {
        "label": "Expert: a", "tokens": 100, "flops": 3000, "seconds": 2.0, "gpu_hours": pytest.approx(hours["train"] / 2)
    }  # fmt: skip
    for row, tokens in (("cycleqd", 4 * 11.5), ("cmaes", 4 * 21.5)):
        found = tree["rows"][row]
        assert (found["tokens"], found["flops"]) == (200 + tokens, 6000 + 4 * 1 + 10 * tokens)
        assert found["seconds"] == 4.0 + 4 * 1.5
        assert found["gpu_hours"] == pytest.approx(hours["train"] + 4 / 0.5e6 / 3600 + 10 * tokens / 0.25e6 / 3600)
    markdown = written[0].read_text()
    assert "| CMA-ES | 286 |" in markdown
    assert "Means over the seeds 0, 3. GPU-hours are extrapolated, not measured" in markdown


def test_what_a_seed_does_not_know_is_unknown(tmp_path):
    method = runs_of(tmp_path, "cycleqd", 10)
    (method.folders[3] / "tables" / "usage.json").unlink()
    write_comparison_costs(tmp_path, comparison_table([method], title="T"), [method])
    row = json.loads((tmp_path / "tables" / "costs.json").read_text())["rows"]["cycleqd"]
    assert row == {"label": "CycleQD", "tokens": None, "flops": None, "seconds": None, "gpu_hours": None}
    assert "| CycleQD | – | – | – | – |" in (tmp_path / "tables" / "costs.md").read_text()
