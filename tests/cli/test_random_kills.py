"""Whole runs that SIGKILL ends at random instants of every stage, and that are started again, leave the same folders."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from cycleqd_jax.cli import main
from cycleqd_jax.report.status import read_status
from cycleqd_jax.types import InputError

from ..small_run import history, write_config

TRAINING = "checkpoint.training_minutes=0.1"  # a training goes on although no start lives for as long as it takes
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def stage_of(run: Path) -> str:
    """The stage in which a run was killed."""
    try:
        return read_status(run).stage
    except InputError:
        return "start"


def start_on(count: int, arguments: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a command of ``cycleqd`` in a process with ``count`` simulated devices, each of which has a model of its own."""
    shown = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    env = os.environ | env | {"XLA_FLAGS": f"{shown} --xla_force_host_platform_device_count={count}".strip()}
    command = [sys.executable, "-m", "cycleqd_jax.cli", *arguments, f"mesh.population={count}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)


def killed_runs(
    start: Callable[[int], tuple[Path, list[str]]],
    kills: int,
    mean: float,
    env: dict[str, str],
    check: Callable[[Path], None],
    devices: Sequence[int] = (1,),
) -> collections.Counter[str]:
    """Starts runs one after the other, and kills them ``kills`` times in all.

    The time from a start to its kill is exponentially distributed. A run that ends is compared, and the next one begins in
    another folder.

    Args:
        start: the folder of run number n, and the arguments of its command.
        kills: number of kills.
        mean: seconds from a start to its kill, on average.
        env: variables of the processes.
        check: compares a finished run.
        devices: numbers of simulated devices, which the starts have in turns.

    Returns:
        The kills by stage.
    """
    rng, stages, n, starts = random.Random(kills), collections.Counter[str](), 0, 0
    while True:
        count = devices[starts % len(devices)]
        starts += 1
        folder, arguments = start(n)
        process = start_on(count, arguments, env)
        try:
            output, _ = process.communicate(timeout=rng.expovariate(1 / mean) if stages.total() < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            stages[stage_of(folder)] += 1
            continue
        assert process.returncode == 0, output.decode()
        check(folder)
        if stages.total() == kills:
            return stages
        n += 1


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


def undisturbed(arguments: Sequence[str], env: Mapping[str, str]) -> None:
    """Runs a command to its end, on one device: trained weights depend on the number of devices, as the order of sums does."""
    process = start_on(1, arguments, env)
    output, _ = process.communicate()
    assert process.returncode == 0, output.decode()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("devices", [(1,), (1, 8)], ids=str)
def test_small_runs_killed_at_random_instants(tmp_path, compiled, capfd, devices):
    """The first run on one device trains its models; all others take those of the undisturbed run."""
    whole = tmp_path / "whole"
    undisturbed(["run", str(write_config(whole)), TRAINING], compiled)

    def start(n: int) -> tuple[Path, list[str]]:
        folder = tmp_path / f"{n}"
        if not folder.exists() and (n > 0 or len(devices) > 1):
            shutil.copytree(whole / "cache", folder / "cache")
        return folder / "run", ["run", str(write_config(folder)), TRAINING]

    stages = killed_runs(start, 12, 20, compiled, lambda run: assert_same(run, whole / "run", capfd), devices)
    with capfd.disabled():
        print(stages)
    assert len(stages) >= 3


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_the_quickstart_killed_at_50_random_instants(tmp_path, compiled, capfd):
    """The first two runs train their models; the others take those of the first, and die while they search and evaluate."""
    whole = tmp_path / "whole"

    def command(folder: Path, cache: Path) -> list[str]:
        # A command that waits for input ends after 3 s instead of 1: verdicts must not depend on the load of the machine.
        places = [f"output={folder}", f"cache={cache}"]
        return ["run", str(QUICKSTART), "tasks.os_interaction.options.seconds=3", TRAINING, *places]

    def start(n: int) -> tuple[Path, list[str]]:
        return tmp_path / f"{n}", command(tmp_path / f"{n}", tmp_path / f"cache-{n if n < 2 else 0}")

    undisturbed(command(whole, tmp_path / "cache"), compiled)
    stages = killed_runs(start, 50, 40, compiled, lambda run: assert_same(run, whole, capfd))
    with capfd.disabled():
        print(stages)
