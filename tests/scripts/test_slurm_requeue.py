"""The jobs for Slurm: they forward SIGTERM, and requeue themselves after the exit code that means that the run can continue."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
RUN = """#!/bin/bash
echo "$@" > {folder}/arguments
echo "${{JAX_LOCAL_DEVICE_IDS:-}}" > {folder}/devices
trap 'trap "" TERM; [ -e {folder}/twice ] && kill -TERM "$(cat {folder}/job)"; sleep 0.3; exit {code}' TERM
touch {folder}/started
{then}
"""
SRUN = """#!/bin/bash
echo "${{SRUN_CPUS_PER_TASK:-}} $1" > {folder}/options
[[ $1 == --* ]] && shift
"$@" &
task=$!
echo "$task" > {folder}/task
trap 'kill -KILL "$task"' TERM
wait "$task"
"""
"""As Slurm's own, it kills its processes after SIGTERM."""

SCANCEL = """#!/bin/bash
[ "$*" = "--signal=TERM 42" ] && kill -TERM "$(cat {folder}/task)"
"""


@pytest.fixture(params=["slurm_requeue.sh", "slurm_multihost.sh"])
def job(request, tmp_path):
    started: list[subprocess.Popen] = []

    def start(then: str, code: int = 75) -> subprocess.Popen:
        for name, text in {
            "cycleqd": RUN.format(folder=tmp_path, code=code, then=then),
            "srun": SRUN.format(folder=tmp_path),
            "scancel": SCANCEL.format(folder=tmp_path),
            "scontrol": f'#!/bin/bash\necho "$@" > {tmp_path}/requeued\n',
        }.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        slurm = {"SLURM_JOB_ID": "42", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "64"}
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | slurm
        process = subprocess.Popen([SCRIPTS / request.param, "my.yaml", "seed=1"], env=environment, start_new_session=True)
        started.append(process)
        (tmp_path / "job").write_text(str(process.pid))
        needed = ["started"] + ["task"] * ("multihost" in request.param)
        until = time.monotonic() + 30
        while not (all((tmp_path / name).exists() for name in needed) and (then != WAITS or handles_sigterm(process))):
            assert time.monotonic() < until
            time.sleep(0.01)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def handles_sigterm(process: subprocess.Popen) -> bool:
    """Whether a job has come to its trap, which follows the start of its run."""
    caught = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> signal.SIGTERM - 1 & 1)


WAITS = "while true; do sleep 0.05; done"


def test_sigterm_requeues_the_job(job, tmp_path, request):
    process = job(WAITS)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "requeued").read_text() == "requeue 42\n"
    several = "multihost" in request.node.name
    assert (tmp_path / "arguments").read_text() == f"run my.yaml seed=1{' --distributed' if several else ''}\n"
    assert (tmp_path / "devices").read_text() == ("0,1,2,3\n" if several else "\n")
    if several:
        assert (tmp_path / "options").read_text() == "64 --kill-on-bad-exit=0\n"


def test_a_second_sigterm_interrupts_nothing(job, tmp_path):
    (tmp_path / "twice").touch()
    process = job(WAITS)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "requeued").read_text() == "requeue 42\n"


@pytest.mark.parametrize("code", [0, 2, 3, 130])
def test_other_codes_end_it(job, tmp_path, code):
    assert job(f"exit {code}").wait(timeout=60) == code
    assert not (tmp_path / "requeued").exists()


def test_a_run_that_ends_well_after_sigterm(job, tmp_path):
    process = job(WAITS, code=0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert not (tmp_path / "requeued").exists()
