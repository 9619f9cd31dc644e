"""The folder of embeddings that the config of a run asks for."""

from __future__ import annotations

import types

import pytest

from cycleqd_jax.config import MaskConfig
from cycleqd_jax.config.fields import range_of
from cycleqd_jax.runs.families import segmentation


@pytest.mark.parametrize("gib", [0.0, 1e-10, 0.5])
def test_a_run_with_no_space_has_none(tmp_path, gib):
    """Else it would read embeddings of other runs although its config asks for none."""
    run = types.SimpleNamespace(cache=str(tmp_path), mask_options=MaskConfig(cache_gib=gib))
    assert (segmentation._embedding_folder(run) is None) == (gib < 0.5)


def test_a_space_beyond_any_disk_is_out_of_range():
    allowed = range_of(MaskConfig.__dataclass_fields__["cache_gib"])
    assert allowed.accepts(8)
    assert not allowed.accepts(1e300)  # times 2^30 it is no integer
