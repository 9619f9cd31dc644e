"""The README's Python is run as it stands."""

from __future__ import annotations

import pytest

from cycleqd_jax.models.files import hf

from .docs.conftest import finished, tiny_model, trained
from .docs.pages import ROOT, Page

__all__ = ["finished", "tiny_model", "trained"]

README = ROOT / "README.md"


@pytest.mark.exhaustive
def test_examples(tiny_model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Page(README, monkeypatch, preparations={"model": tiny_model}).run(("python",), e2e=False)
    experts = found["evaluate"](found["genomes"]).mean(1)
    merged = found["scores"](found["merged"]).mean()
    assert float(merged) > 2 * float(experts.max())
    assert hf.load("runs/copy")[0] == found["model"].config
    assert "CycleQD" in capsys.readouterr().out


@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_a_run_from_python(trained, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Page(README, monkeypatch, preparations={"model": tiny_model}, cache=trained / "cache").run(("python",))
    for name in ("model/model.safetensors", "tables/results.json", "report.html"):
        assert (tmp_path / "runs" / "quickstart" / name).exists(), name
    assert found["best"]["average"] >= 0
