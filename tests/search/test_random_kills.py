"""A search that SIGKILL ends at random instants, and that is resumed each time, ends bit-identical."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "killed_search.py"


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.e2e), pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.timeout(1800)
def test_killed_at_random_instants_it_ends_the_same(tmp_path, compiled, kills):
    """The instants are spread over imports, compilation, evaluations, journal and checkpoints alike."""
    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", random.Random(kills)
    generations, journal = 30 if kills < 9 else 100, killed / "history.jsonl"
    env = os.environ | compiled  # one environment for all: the bits depend on the flags of XLA

    def command(folder: Path, seconds: float) -> list[str]:
        folder.mkdir(exist_ok=True)
        return [sys.executable, str(SCRIPT), str(folder), str(generations), str(seconds)]

    def digest(folder: Path) -> str:
        return subprocess.run(command(folder, 0.0), check=True, capture_output=True, text=True, env=env).stdout.split()[-1]

    def recorded() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    expected, lengths = digest(whole), [0]
    for _ in range(kills):
        process = subprocess.Popen(command(killed, 0.05), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
        assert process.stdout is not None
        process.stdout.readline()  # Python and JAX are imported
        goal, deadline = lengths[-1] + rng.randint(0, 4), time.monotonic() + 100
        while recorded() < goal and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2 if goal > lengths[-1] else 4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert recorded() >= lengths[-1]  # nothing that was recorded is lost
        lengths.append(recorded())
    print(f"individuals at the kills: {lengths[1:]}")
    assert digest(killed) == expected
    assert journal.read_bytes() == (whole / "history.jsonl").read_bytes()
