"""Simulates how a search scales with the number of workers: ``python scripts/simulate_workers.py RUN [--workers 8 64 512]``.

The seconds of evaluations are drawn from those in the journal of a run (``history.jsonl``). A discrete-event simulation replays
two schedules with them:

- ``generations``: as many children as there are workers are asked for together, and the next ones after the slowest is told;
- ``steady``: the next child is asked for whenever a worker is idle (``search.steady``).

Assumptions: the seconds of an evaluation depend neither on the worker nor on the child. The process of the search asks for and
tells one child at a time, which takes ``--driver`` seconds each. A worker takes ``--start`` seconds to load. A worker is lost
after a time that is exponentially distributed with mean ``--lifetime``, is replaced at once, and its child is evaluated again.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path


def simulate(
    seconds: Sequence[float],
    workers: int,
    children: int,
    *,
    steady: bool,
    driver: float = 0.0,
    start: float = 0.0,
    lifetime: float | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """One search.

    Args:
        seconds: of evaluations; every child draws one of them.
        workers: number of workers.
        children: number of children.
        steady: the schedule.
        driver: seconds of the search's process for every child.
        start: seconds until a worker can evaluate.
        lifetime: mean seconds until a worker is lost; None never loses one.
        seed: of the draws.

    Returns:
        ``wall`` seconds, the share of the workers' time that went into evaluations that count (``busy``), ``speedup`` over one
        worker without any overhead, and the number of ``lost`` evaluations.
    """
    draw = random.Random(seed)
    dies = [draw.expovariate(1 / lifetime) if lifetime else float("inf") for _ in range(workers)]
    free = [(start, worker) for worker in range(workers)]  # when each worker is idle
    heapq.heapify(free)
    events: list[tuple[float, int]] = []  # when children are done, and by which worker
    spent, lost, asked, told, now, ready = 0.0, 0, 0, 0, 0.0, 0.0

    def evaluate() -> None:
        """Asks for a child and gives it to the worker that is idle first."""
        nonlocal spent, lost, asked, ready
        idle, worker = heapq.heappop(free)
        ready = max(ready, now) + driver
        begin, need = max(idle, ready), draw.choice(seconds)
        while begin + need > dies[worker]:
            lost += begin < dies[worker]
            begin = max(begin, dies[worker]) + start
            dies[worker] = begin + draw.expovariate(1 / lifetime) if lifetime else float("inf")
        spent += need
        asked += 1
        heapq.heappush(events, (begin + need, worker))

    while told < children:
        if steady or told == asked:
            batch = workers if not steady else len(free)
            for _ in range(min(batch, children - asked)):
                evaluate()
        now, worker = heapq.heappop(events)
        heapq.heappush(free, (now, worker))
        told += 1
    return {"wall": now, "busy": spent / (workers * now), "speedup": spent / now, "lost": float(lost)}


def journal_seconds(folder: Path) -> list[float]:
    """The seconds of all children of a run, without those of repeated attempts; experts are left out, because they compile."""
    lines = map(json.loads, (folder / "history.jsonl").read_text("utf-8").splitlines())
    children = [line["seconds"] for line in lines if line["generation"] >= 0]
    return [sum(value for stage, value in seconds.items() if stage != "retries") for seconds in children]


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulates how a search scales with the number of workers.")
    parser.add_argument("run", type=Path, help="run folder whose journal has the seconds of evaluations")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--children", type=int, help="children of the search (100 per worker)")
    parser.add_argument("--driver", type=float, default=0.05, help="seconds of the search's process per child (0.05)")
    parser.add_argument("--start", type=float, default=60.0, help="seconds until a worker has loaded the models (60)")
    parser.add_argument("--lifetime", type=float, help="mean seconds until a worker is lost (never)")
    args = parser.parse_args()
    seconds = [value for value in journal_seconds(args.run) if value > 0]
    deciles = statistics.quantiles(seconds, n=10)
    median = statistics.median(seconds)
    print(f"{len(seconds)} evaluations: median {median:.2f} s, deciles {deciles[0]:.2f} to {deciles[-1]:.2f} s")
    print(f"{'workers':>8}{'schedule':>14}{'busy':>8}{'speed-up':>10}{'lost':>8}")
    for workers in args.workers:
        for steady in (False, True):
            options = {"driver": args.driver, "start": args.start, "lifetime": args.lifetime}
            found = simulate(seconds, workers, args.children or 100 * workers, steady=steady, **options)
            name = "steady" if steady else "generations"
            print(f"{workers:8}{name:>14}{found['busy']:8.3f}{found['speedup']:10.1f}{found['lost']:8.0f}")
            print(json.dumps({"workers": workers, "schedule": name, **found}))


if __name__ == "__main__":
    main()
