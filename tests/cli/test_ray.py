"""``cycleqd evolve`` on the workers of a real Ray cluster: the archives are those of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cycleqd_jax.cli import main, stages
from cycleqd_jax.types import InputError

from ..local_cluster import clusters
from .conftest import history, write_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def local_cluster(monkeypatch):
    yield from clusters(monkeypatch)


@pytest.mark.e2e
@pytest.mark.timeout(1500)
def test_the_archives_are_those_of_one_process(finished, trained, local_cluster, compiled, capsys):
    cluster = local_cluster(PYTHONPATH=str(ROOT), **compiled)
    cluster.add(2)
    config, run = write_config(trained), trained / "run"
    command = [sys.executable, "-m", "cycleqd_jax.cli", "evolve", str(config)]
    command += [f"ray.address={cluster.address}", "ray.workers=2", "ray.cpus=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | compiled)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has loaded the models in" in done.stdout + done.stderr
    assert history(run) == history(finished / "run")
    assert (run / "grid.json").read_bytes() == (finished / "run" / "grid.json").read_bytes()
    workers = json.loads((run / "workers.json").read_text())["workers"]
    assert sum(one["evaluated"] for one in workers) == len(history(run))
    assert {one["state"] for one in workers} == {"ended"}
    assert main(["verify", str(run)]) == 0


@pytest.mark.parametrize(("stage", "address"), [("finetune", None), ("basis", None), ("evolve", "127.0.0.1:1")])
def test_stages_without_workers_need_no_cluster(tmp_path, monkeypatch, stage, address):
    configs = []

    def opened(config, **options):
        configs.append(config)
        raise InputError("expected nothing more")

    monkeypatch.setattr(stages, "Run", opened)
    assert main([stage, str(write_config(tmp_path)), "ray.address=127.0.0.1:1"]) == 2
    assert [config.ray.address for config in configs] == [address]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ray.address=127.0.0.1:1"], "expected the head of a Ray cluster at ray.address 127.0.0.1:1, got: "),
        (["ray.address=auto", "genome.space=dense"], "expected genome.space: expert with ray.address"),
        (["ray.address=auto", "mesh.population=2"], "expected mesh.population 1 and the sizes of mesh.fsdp and mesh.tensor"),
        (["ray.address=auto", "mesh.fsdp=-1"], "expected mesh.population 1 and the sizes of mesh.fsdp and mesh.tensor"),
        (["ray.address=auto", "search.deadline=10", "ray.deadline=9"], "above search.deadline (10), got 9"),
        (["ray.address=auto", "ray.workers=0"], "expected ray.workers to be at least 1, got 0"),
    ],
)
def test_bad_input(tmp_path, capsys, overrides, message):
    assert main(["evolve", str(write_config(tmp_path)), *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
