"""A Ray cluster of this machine with several nodes, in a process and a folder of its own; it leaves no process.

The cluster is not started by the test itself, because Ray forks, which JAX does not allow. Run as a script it is that process:
it prints the address, and adds a node of N workers for every line N of its input.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STORE = 80 << 20  # bytes of a node's object store, the least that Ray takes


class LocalCluster:
    """A cluster whose head holds no worker.

    Attributes:
        address: of its head.
    """

    def __init__(self, folder: str, environment: dict[str, str]):
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, __file__, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | environment,
        )
        self.address = self._answer()

    def add(self, workers: int = 1) -> None:
        """Adds a node that holds so many workers."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{workers}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # Ray prints too
            if line.startswith("answer "):
                return line.removeprefix("answer ").strip()
        raise AssertionError("the cluster did not start")

    def close(self) -> None:
        """Ends all processes of the cluster."""
        try:
            self._process.communicate(timeout=60)  # the end of its input ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        for _ in range(100):
            left = self.processes()
            if not left:
                return
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        raise AssertionError(f"processes {left} of the cluster are left")

    def processes(self) -> list[int]:
        """The processes that know the cluster's folder, workers included."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                command = path.read_bytes() + path.with_name("cmdline").read_bytes()
            except OSError:
                continue
            if self.folder.encode() in command:
                found.append(int(path.parent.name))
        return found


def clusters(monkeypatch):
    """``start(NAME=value)`` starts a cluster, whose workers get the environment; the body of a fixture."""
    import pytest

    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'cycleqd_jax[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder, started = tempfile.mkdtemp(prefix="ray", dir="/tmp"), []  # paths of its sockets must be short

    def start(**environment: str) -> LocalCluster:
        started.append(LocalCluster(folder, environment))
        return started[-1]

    yield start
    try:
        for cluster in started:
            cluster.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(folder: str) -> None:
    from ray.cluster_utils import Cluster

    Path("/tmp/ray").mkdir(exist_ok=True)  # Ray writes the address of its newest cluster there
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    print("answer", cluster.address, flush=True)
    for line in sys.stdin:
        cluster.add_node(num_cpus=int(line), object_store_memory=STORE)
        print("answer", "added", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
