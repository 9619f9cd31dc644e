"""``cycleqd report`` of a comparison; the runs are made up."""

from __future__ import annotations

import yaml

from cycleqd_jax.cli import main

from ..compared_runs import write_finished


def test_a_comparison_is_drawn_again(tmp_path, capsys):
    for method in ("cmaes", "random"):
        write_finished(tmp_path / "seed-3" / method, method, 3)
    methods = [{"name": method, "search": method, "label": label} for method, label in (("cmaes", None), ("random", "Luck"))]
    table = {"title": "Two", "seeds": [3], "methods": methods, "reference": "cmaes", "rows": ["base", "uniform_merge"]}
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump({"table": table}))
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Luck" in shown
    assert "CMA-ES above" in shown
    assert f"tables and figures: {tmp_path}/tables, {tmp_path}/figures" in shown
    assert (tmp_path / "tables" / "comparison.md").exists()
    assert (tmp_path / "figures" / "curves.svg").exists()
