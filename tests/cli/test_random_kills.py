"""A whole run that SIGKILL ends at random instants of every stage, and that is started again, leaves the same folder."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cycleqd_jax.cli import main

from ..small_run import finished, history, write_config

__all__ = ["finished"]

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def killed_run(command: list[str], kills: int, longest: float, env: dict[str, str]) -> int:
    """Runs a command, kills it up to ``kills`` times, each after up to ``longest`` seconds, and ends it; returns the kills."""
    rng, done = random.Random(kills), 0
    full = [sys.executable, "-m", "cycleqd_jax.cli", *command]
    while done < kills:
        process = subprocess.Popen(full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | env)
        try:
            assert process.wait(rng.uniform(0, longest)) == 0
            return done  # it ended before
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
    assert main(command) == 0
    return done


def weights(run: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((run / "model").glob("*.safetensors"))}


def assert_same(run: Path, whole: Path, capsys) -> None:
    digests = []
    for folder in (run, whole):
        capsys.readouterr()
        assert main(["verify", "--digest", str(folder)]) == 0
        digests.append(capsys.readouterr().out.split()[-1])
    assert digests[0] == digests[1]
    assert history(run) == history(whole)
    tables = [json.loads((folder / "tables" / "results.json").read_text())["methods"] for folder in (run, whole)]
    assert tables[0] == tables[1]
    assert weights(run) == weights(whole) != {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_small_run_killed_at_random_instants(finished, tmp_path, compiled, capsys):
    shutil.copytree(finished / "cache", tmp_path / "cache")
    config = write_config(tmp_path)
    assert killed_run(["run", str(config)], 8, 40, compiled) > 2
    assert_same(tmp_path / "run", finished / "run", capsys)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_the_quickstart_killed_at_50_random_instants(tmp_path, compiled, capsys):
    """Each start trains, evolves or evaluates for up to 100 seconds; training begins again where a model is not finished."""
    command = ["run", str(QUICKSTART), f"cache={tmp_path / 'cache'}"]
    kills = killed_run([*command, f"output={tmp_path / 'killed'}"], 50, 100, compiled)
    print(f"killed {kills} times")
    assert main([*command, f"output={tmp_path / 'whole'}"]) == 0
    assert_same(tmp_path / "killed", tmp_path / "whole", capsys)
