from __future__ import annotations

import pytest

from cycleqd_jax.config import load_config


@pytest.fixture
def config(tmp_path):
    return load_config(
        {"name": "demo", "output": str(tmp_path / "run"), "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]},
        ["search.generations=5"],
    )
