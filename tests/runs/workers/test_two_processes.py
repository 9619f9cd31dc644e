"""Two processes on one run folder: the second is refused before it reads or writes anything of the run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cycleqd_jax import cli
from cycleqd_jax.config import load_config, to_yaml
from cycleqd_jax.runs import Run
from cycleqd_jax.runs.folder.run_folder import claim_folder
from cycleqd_jax.types import InputError

HOLDS = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def config(tmp_path):
    output, cache = str(tmp_path / "run"), str(tmp_path / "cache")
    found = load_config({"name": "x", "output": output, "cache": cache, "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]})
    claim_folder(found)
    return found


def test_the_second_process_is_refused(config, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in config.folder.iterdir()}
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-c", HOLDS, str(config.folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=r"^expected no other process to use the folder, got another process in .*/run; "):
            Run(config).open()
        assert cli.main(["evolve", str(tmp_path / "config.yaml")]) == 2
        assert "got another process in" in capsys.readouterr().err
        other.kill()
    assert {path.name: path.read_bytes() for path in config.folder.iterdir() if path.name != ".lock"} == before
