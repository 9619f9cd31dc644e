"""A Ray cluster of this machine."""

import pytest

from ...local_cluster import clusters


@pytest.fixture
def local_cluster(monkeypatch):
    yield from clusters(monkeypatch)
