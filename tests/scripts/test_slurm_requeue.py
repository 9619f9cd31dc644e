"""The jobs for Slurm: they forward SIGTERM, and requeue themselves after the exit code that means that the run can continue."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
RUN = """#!/bin/bash
echo "$@" > {folder}/arguments
echo "${{JAX_LOCAL_DEVICE_IDS:-}}" > {folder}/devices
trap 'sleep 0.3; exit {code}' TERM
touch {folder}/started
{then}
"""


@pytest.fixture(params=["slurm_requeue.sh", "slurm_multihost.sh"])
def job(request, tmp_path):
    def start(then: str, code: int = 75) -> subprocess.Popen:
        for name, text in {
            "cycleqd": RUN.format(folder=tmp_path, code=code, then=then),
            "srun": '#!/bin/bash\nexec "$@"\n',
            "scontrol": f'#!/bin/bash\necho "$@" > {tmp_path}/requeued\n',
        }.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", "SLURM_GPUS_ON_NODE": "4"}
        process = subprocess.Popen([SCRIPTS / request.param, "my.yaml", "seed=1"], env=environment)
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        return process

    return start


WAITS = "while true; do sleep 0.05; done"


def test_sigterm_requeues_the_job(job, tmp_path, request):
    process = job(WAITS)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "requeued").read_text() == "requeue 42\n"
    several = "multihost" in request.node.name
    assert (tmp_path / "arguments").read_text() == f"run my.yaml seed=1{' --distributed' if several else ''}\n"
    assert (tmp_path / "devices").read_text() == ("0,1,2,3\n" if several else "\n")


@pytest.mark.parametrize("code", [0, 2, 3, 130])
def test_other_codes_end_it(job, tmp_path, code):
    assert job(f"exit {code}").wait(timeout=60) == code
    assert not (tmp_path / "requeued").exists()


def test_a_run_that_ends_well_after_sigterm(job, tmp_path):
    process = job(WAITS, code=0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert not (tmp_path / "requeued").exists()
