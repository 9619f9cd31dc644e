"""A Ray cluster of this machine with several nodes and a folder of its own, which leaves no process."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

STORE = 80 << 20


class LocalCluster:
    """A cluster whose head holds no worker.

    Attributes:
        address: of its head.
    """

    def __init__(self, folder: str):
        from ray.cluster_utils import Cluster

        Path("/tmp/ray").mkdir(exist_ok=True)  # Ray writes the address of its newest cluster there
        self.folder = folder
        head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "temp_dir": folder}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address

    def add(self, cpus: int = 1):
        """A node that holds as many workers."""
        return self._cluster.add_node(num_cpus=cpus, object_store_memory=STORE)

    def close(self):
        self._cluster.shutdown()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """The processes that know the cluster's folder, workers included."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                told = path.read_bytes() + path.with_name("cmdline").read_bytes()
            except OSError:
                continue
            if self.folder.encode() in told and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        return found


@pytest.fixture
def local_cluster(monkeypatch):
    """``local_cluster(environment)`` starts a cluster, whose workers get the environment."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'cycleqd_jax[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder, started = tempfile.mkdtemp(prefix="ray", dir="/tmp"), []

    def start(**environment: str) -> LocalCluster:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        started.append(LocalCluster(folder))
        return started[-1]

    yield start
    left = []
    for cluster in started:
        cluster.close()
        for _ in range(100):
            left = cluster.processes()
            if not left:
                break
            time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)
    assert not left
