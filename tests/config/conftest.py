"""A minimal config, and files of it."""

from __future__ import annotations

import pytest
import yaml

MINIMAL = {"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}, {"name": "os", "kind": "os_interaction"}]}


@pytest.fixture
def write(tmp_path):
    """``write(tree)`` writes a mapping, or a text, as a config file and returns its path."""

    def write(tree) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), "utf-8")
        return str(path)

    return write
