from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_search.py"


@pytest.mark.exhaustive
def test_it_measures_a_search_and_opens_it_again(tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    files = {name: tmp_path / f"found.{name}" for name in ("json", "svg")}
    sizes = ["--tasks", "2", "--generations", "20", "--size", "4", "--every", "5"]
    found = main([*sizes, "--json", str(files["json"]), "--figure", str(files["svg"])])
    assert json.loads(files["json"].read_text()) == found
    assert files["svg"].read_text().startswith("<?xml")
    assert len(found["milliseconds"]) == len(found["megabytes"]) == 10
    assert found["checkpoints"] == 2
    assert found["journal_bytes"] > 22 * 100
    assert "20 generations, K = 2" in capsys.readouterr().out
