"""A sandbox and small record files for the tests of the tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cycleqd_jax.sandbox import Limits, Sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


class Nowhere:
    """Where nothing can run: for tests that must not get that far."""

    limits = Limits()


@pytest.fixture
def nowhere() -> Nowhere:
    return Nowhere()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_records(*records: Any, name: str = "records.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write_records
