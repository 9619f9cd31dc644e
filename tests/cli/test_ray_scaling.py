"""Real runs with 1, 2 and 4 workers on a Ray cluster take as long as scripts/simulate_workers.py says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from cycleqd_jax.cli import main

from ..local_cluster import clusters
from ..script import load_script
from ..small_run import small_config, write_config

ROOT = Path(__file__).parents[2]
ROUNDS, WARM = 12, 2
simulate = load_script("simulate_workers").simulate


@pytest.fixture
def local_cluster(monkeypatch):
    yield from clusters(monkeypatch)


def timed_lines(command: list[str], journal: Path, env: dict[str, str]) -> list[float]:
    """Runs a command; returns when each line of its journal came."""
    came: list[float] = []
    with journal.parent.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | env)
        while process.poll() is None:
            lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
            came += [time.monotonic()] * (lines - len(came))
            time.sleep(0.02)
    assert process.returncode == 0, journal.parent.with_suffix(".log").read_text()
    return came


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_simulation_predicts_real_runs(local_cluster, data_dir, tmp_path, compiled, capsys, workers):
    sizes = {"train_size": 8, "validation_size": 4, "test_size": 4, "finetune_size": 64, "max_new_tokens": 40}
    slow = {"name": "mbpp", "kind": "tests.slow_checks:SlowMbpp", "train": str(data_dir / "mbpp" / "mbpp_full.visible.jsonl")}
    names, engine = ("mbpp", "dbbench"), {"slots": 16, "max_len": 512}
    miniature = {"tasks": [{"name": name} | sizes for name in names], "pretrain": {"steps": 40}, "finetune": {"steps": 8}}
    assert main(["finetune", str(write_config(tmp_path, **miniature, baselines=[], engine=engine))]) == 0
    models = {path.name.rpartition("-")[0]: str(path) for path in (tmp_path / "cache" / "models").iterdir()}
    config = small_config(tmp_path) | {"tasks": [slow | sizes, {"name": "dbbench"} | sizes], "baselines": [], "merges": []}
    experts = {name: models[f"expert-{name}"] for name in names}
    config |= {"engine": engine, "model": {"base": models["base"], "experts": experts}}
    env = compiled | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}
    cluster = local_cluster(**env)
    cluster.add(workers)
    for schedule in ("generations", "steady"):
        size = workers if schedule == "generations" else 1
        search = {"generations": ROUNDS * workers // size, "batch_size": size, "steady": schedule == "steady"}
        path = tmp_path / f"{schedule}.yaml"
        path.write_text(yaml.safe_dump(config | {"search": search, "output": str(tmp_path / schedule)}))
        assert main(["basis", str(path)]) == 0
        command = [sys.executable, "-m", "cycleqd_jax.cli", "evolve", str(path), f"ray.address={cluster.address}"]
        came = timed_lines([*command, f"ray.workers={workers}", "ray.cpus=1"], tmp_path / schedule / "history.jsonl", env)
        records = [json.loads(line) for line in (tmp_path / schedule / "history.jsonl").read_text().splitlines()]
        warm = len(names) + WARM * workers  # experts, and the children with which each worker loads its programs
        seconds = [sum(v for stage, v in one["seconds"].items() if stage != "retries") for one in records[warm:]]
        wall = came[-1] - came[warm - 1]
        found = [
            simulate(seconds, workers, len(seconds), steady=schedule == "steady", seed=seed)["wall"] for seed in range(200)
        ]
        low, middle, high = np.quantile(found, [0.025, 0.5, 0.975])
        with capsys.disabled():
            print(
                f"| {workers} | {schedule} | {len(seconds)} | {np.mean(seconds):.2f} | {wall:.1f} | "
                f"{middle:.1f} [{low:.1f}, {high:.1f}] | {wall / middle:.2f} |",
                flush=True,
            )
        assert 0.8 * low < wall < 1.2 * high
