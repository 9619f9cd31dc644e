"""The job for Slurm that starts a Ray cluster: one worker for every GPU but the search's own, and a requeue after SIGTERM."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm_ray.sh"
PROGRAM = """#!/bin/bash
echo "$(basename "$0") $* [${{CUDA_VISIBLE_DEVICES:-all}}]" >> {folder}/calls
echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> {folder}/tokens
echo "${{SRUN_CPUS_PER_TASK:-none}}" >> {folder}/cpus-of-"$(basename "$0")"
{then}
"""


def job(folder: Path, code: int, nodes: int = 4, *, ray: str = "", **variables: str) -> list[str]:
    """The calls of a job whose run ends with a code, in order of time but for those in the background."""
    programs = {
        "cycleqd": f"sleep 0.3; exit {code}",
        "ray": ray,
        "srun": "",
        "scontrol": '[ "$1" = show ] && printf "node1\\nnode2\\nnode3\\nnode4\\n"',
    }
    for name, then in programs.items():
        (folder / name).write_text(PROGRAM.format(folder=folder, then=then))
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[1-4]", "SLURM_NNODES": str(nodes), "SLURM_GPUS_ON_NODE": "8"}
    slurm["SLURM_CPUS_PER_TASK"] = "64"
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    assert subprocess.run([SCRIPT, "my.yaml", "seed=1"], env=environment | path | slurm | variables).returncode == code
    return (folder / "calls").read_text().splitlines()


def test_every_other_gpu_has_a_worker(tmp_path):
    calls = job(tmp_path, 0)
    assert "ray start --head --port=20042 --num-gpus=7 --include-dashboard=false [1,2,3,4,5,6,7]" in calls
    assert "srun --nodes=3 --ntasks=3 --exclude=node1 ray start --address=node1:20042 --num-gpus=8 --block [all]" in calls
    assert "cycleqd run my.yaml seed=1 ray.address=node1:20042 ray.workers=31 [0]" in calls
    assert (tmp_path / "cpus-of-srun").read_text() == "64\n"


def test_the_clusters_of_other_jobs_on_a_machine_go_on(tmp_path):
    assert not any(call.startswith("ray stop") for call in job(tmp_path, 0))


def test_the_gpus_of_the_job_are_used(tmp_path):
    """Without cgroups, Slurm names those of the whole machine that the job has."""
    calls = job(tmp_path, 0, 1, SLURM_GPUS_ON_NODE="3", CUDA_VISIBLE_DEVICES="4,5,7")
    assert "ray start --head --port=20042 --num-gpus=2 --include-dashboard=false [5,7]" in calls
    assert "cycleqd run my.yaml seed=1 ray.address=node1:20042 ray.workers=2 [4]" in calls


@pytest.mark.parametrize("nodes", [1, 4])
def test_a_run_that_can_be_continued_is_requeued(tmp_path, nodes):
    calls = job(tmp_path, 75, nodes)
    assert calls[-1] == "scontrol requeue 42 [all]"
    assert any(call.startswith("srun") for call in calls) == (nodes > 1)


def test_programs_need_the_token_of_the_job(tmp_path):
    found = []
    for _ in range(2):
        (tmp_path / "tokens").unlink(missing_ok=True)
        job(tmp_path, 0)
        found.append({line for line in (tmp_path / "tokens").read_text().splitlines() if "token" in line})
    assert all(len(lines) == 1 and re.fullmatch(r"token [0-9a-f]{64}", min(lines)) for lines in found)
    assert found[0] != found[1]


def test_a_head_that_does_not_start_ends_the_job(tmp_path):
    assert not any(call.startswith("cycleqd") for call in job(tmp_path, 1, ray="exit 3"))


def test_models_that_are_divided_have_groups_of_gpus(tmp_path):
    calls = job(tmp_path, 0, GPUS_PER_GROUP="4")
    assert "ray start --head --port=20042 --num-gpus=4 --include-dashboard=false [4,5,6,7]" in calls
    assert "cycleqd run my.yaml seed=1 ray.address=node1:20042 ray.workers=7 [0,1,2,3]" in calls


@pytest.mark.parametrize("group", ["3", "0", "all"])
def test_groups_that_do_not_divide_the_gpus_are_refused(tmp_path, group):
    (tmp_path / "calls").touch()
    assert job(tmp_path, 2, GPUS_PER_GROUP=group) == []
