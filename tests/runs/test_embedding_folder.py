"""The folder of embeddings that the config of a run asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cycleqd_jax.config import RunConfig, load_config
from cycleqd_jax.runs.families.segmentation import _embedding_folder
from cycleqd_jax.types import InputError

SHIPPED = Path(__file__).parents[2] / "configs" / "sam_pol_skl.yaml"


def with_space(gib: float, monkeypatch) -> RunConfig:
    monkeypatch.setenv("CYCLEQD_VISION", "vision")
    return load_config(SHIPPED, [f"masks.cache_gib={gib}", "cache=cache"])


@pytest.mark.parametrize("gib", [0.0, 1.0e-10, 0.5])
def test_a_run_with_no_space_has_none(tmp_path, monkeypatch, gib):
    """Else it would read embeddings of other runs although its config asks for none."""
    monkeypatch.chdir(tmp_path)
    assert (_embedding_folder(with_space(gib, monkeypatch)) is None) == (gib < 0.5)


def test_a_space_beyond_any_disk_is_out_of_range(monkeypatch):
    """Times 2^30 it would be no integer."""
    with pytest.raises(InputError, match=r"masks\.cache_gib to be at least 0 and at most 1000000, got 1e\+300"):
        with_space(1.0e300, monkeypatch)
