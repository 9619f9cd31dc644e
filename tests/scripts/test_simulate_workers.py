"""The simulation of workers, against cases that can be computed, and against threads that sleep."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cycleqd_jax.evaluation import WorkerPool

from ..script import load_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "simulate_workers.py"
simulation = load_script("simulate_workers")
simulate = simulation.simulate


@pytest.mark.parametrize("steady", [False, True])
def test_equal_evaluations_keep_all_workers_busy(steady):
    found = simulate([2.0], 4, 40, steady=steady)
    assert found == {"wall": 20.0, "busy": 1.0, "speedup": 4.0, "lost": 0.0}
    assert simulate([2.0], 4, 40, steady=steady, start=5.0)["wall"] == 25.0


def test_generations_wait_for_the_slowest():
    seconds, workers = [1.0, 5.0], 8
    waits = simulate(seconds, workers, 8000, steady=False)
    expected = 3 / (5 - 4 * 0.5**workers)  # the mean over that of the largest of 8
    assert waits["busy"] == pytest.approx(expected, rel=0.02)
    assert simulate(seconds, workers, 8000, steady=True)["busy"] > 0.99


def test_the_search_itself_limits_the_number_of_workers():
    found = simulate([10.0], 512, 20_000, steady=True, driver=0.05)
    assert found["speedup"] == pytest.approx(10 / 0.05, rel=0.05)  # 200 workers are as fast


def test_lost_workers_cost_their_evaluations():
    found = simulate([10.0], 16, 3000, steady=True, lifetime=100.0, start=1.0)
    assert found["lost"] == pytest.approx(3000 * (np.exp(0.1) - 1), rel=0.15)
    assert 0.85 < found["busy"] < 0.95


def test_a_worker_that_was_lost_while_it_was_idle_has_been_replaced():
    """The search takes 100 s for each child, so workers are idle for 400 s, and a new one is there within 50 s."""
    found = simulate([0.001], 4, 500, steady=False, driver=100.0, start=50.0, lifetime=1000.0)
    assert found["wall"] == pytest.approx(500 * 100.0, rel=0.01)


def test_a_worker_is_not_lost_before_it_has_loaded():
    found = simulate([1.0], 1, 1, steady=True, start=1000.0, lifetime=1e6)
    assert found["wall"] == 1001.0
    assert simulate([1e-6], 64, 64, steady=True, start=1000.0, lifetime=10.0)["wall"] == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "expected the folder of a run with history.jsonl, got No such file or directory in "),
        ([], "expected the seconds of at least 2 children, got 0 in "),
        ([{"generation": 0, "seconds": {"evaluate": 1.0}}], "expected the seconds of at least 2 children, got 1 in "),
    ],
)
def test_a_run_without_children_is_refused(tmp_path, capsys, lines, message):
    if lines is not None:
        (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"id": 9')
    with pytest.raises(SystemExit):
        simulation.main([str(tmp_path)])
    assert message in capsys.readouterr().err


def test_the_command_reads_a_journal(tmp_path):
    lines = [
        {"generation": n - 1, "seconds": {"express": 1.0, "evaluate": float(n), "retries": 99.0}} for n in [0, *range(1, 9)]
    ]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--workers", "2", "--children", "10"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert out[0].startswith("8 evaluations: median 5.50 s")
    assert [json.loads(line)["schedule"] for line in out if line.startswith("{")] == ["generations", "steady"]


@pytest.mark.e2e
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("steady", [False, True])
def test_it_predicts_threads_that_sleep(workers, steady):
    draw, lock = random.Random(0), threading.Lock()
    seconds, children = [0.2, 0.4, 1.0], 24 * workers

    class Sleeper:
        size = 1

        def __call__(self, genomes, stop, relatives=()):
            with lock:
                chosen = draw.choice(seconds)
            time.sleep(chosen)
            return []

    pool, numbers, start = WorkerPool([Sleeper() for _ in range(workers)]), iter(range(children)), time.monotonic()
    if steady:
        pool.stream(lambda: None if (n := next(numbers, None)) is None else (n, [np.asarray(n)], ()), lambda n, found: None)
    else:
        for _ in range(children // workers):
            pool([[np.asarray(0)] for _ in range(workers)], lambda i, found: None)
    wall = time.monotonic() - start
    predicted = [simulate(seconds, workers, children, steady=steady, seed=seed)["wall"] for seed in range(50)]
    print(f"{workers} workers, steady {steady}: {wall:.2f} s, simulated {np.mean(predicted):.2f} s")
    assert 0.8 * min(predicted) < wall < 1.2 * max(predicted)


def test_assumed_seconds_and_their_plot(tmp_path, capsys):
    seconds = simulation.assumed_seconds(60.0, 0.5)
    assert np.median(seconds) == pytest.approx(60.0)
    assert np.std(np.log(seconds)) == pytest.approx(0.5, rel=0.01)
    file = tmp_path / "scaling.svg"
    simulation.main(["--assume", "60", "0.5", "--workers", "1", "4", "--children", "20", "--plot", str(file)])
    first = file.read_bytes()
    assert first.startswith(b"<?xml")
    simulation.main(["--assume", "60", "0.5", "--workers", "1", "4", "--children", "20", "--plot", str(file)])
    assert file.read_bytes() == first
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert {(line["workers"], line["schedule"]) for line in lines} == {
        (count, name) for count in (1, 4) for name in ("generations", "steady")
    }


@pytest.mark.parametrize(
    "wrong", [[], ["--assume", "0", "1"], ["--assume", "1", "1", "--workers", "0"], ["--assume", "1", "1", "--lifetime", "0"]]
)
def test_numbers_that_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        simulation.main(wrong)
    assert "expected " in capsys.readouterr().err
