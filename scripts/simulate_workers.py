"""Simulates how a search scales with the number of workers: ``python scripts/simulate_workers.py RUN [--workers 8 64 512]``.

The seconds of evaluations are drawn from those in the journal of a run (``history.jsonl``). Without a run they are those of a
log-normal distribution, which ``--assume`` gives. ``--plot`` draws children per hour against workers. A discrete-event
simulation replays two schedules with them:

- ``generations``: as many children as there are workers are asked for together, and the next ones after the slowest has ended;
- ``steady``: the next child is asked for whenever a worker is idle (``search.steady``).

Assumptions: the seconds of an evaluation depend neither on the worker nor on the child. The process of the search asks for and
inserts one child at a time, which takes ``--driver`` seconds each. A worker takes ``--start`` seconds to load. A worker is lost
after a time that is exponentially distributed with mean ``--lifetime`` from when it has loaded. It is replaced at once, also
while it is idle, and its child is evaluated again.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
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
    dies = [start + draw.expovariate(1 / lifetime) if lifetime else float("inf") for _ in range(workers)]
    free = [(start, worker) for worker in range(workers)]  # when each worker is idle
    heapq.heapify(free)
    events: list[tuple[float, int]] = []  # when children are done, and by which worker
    spent, lost, asked, inserted, now, ready = 0.0, 0, 0, 0, 0.0, 0.0

    def evaluate() -> None:
        """Asks for a child and gives it to the worker that is idle first."""
        nonlocal spent, lost, asked, ready
        idle, worker = heapq.heappop(free)
        ready = max(ready, now) + driver
        begin, need = max(idle, ready), draw.choice(seconds)
        while begin + need > dies[worker]:
            lost += begin < dies[worker]
            there = dies[worker] + start  # one that ended while it was idle may have been replaced by now
            begin = max(begin, there)
            dies[worker] = there + draw.expovariate(1 / lifetime) if lifetime else float("inf")
        spent += need
        asked += 1
        heapq.heappush(events, (begin + need, worker))

    while inserted < children:
        if steady or inserted == asked:
            batch = workers if not steady else len(free)
            for _ in range(min(batch, children - asked)):
                evaluate()
        now, worker = heapq.heappop(events)
        heapq.heappush(free, (now, worker))
        inserted += 1
    return {"wall": now, "busy": spent / (workers * now), "speedup": spent / now, "lost": float(lost)}


def journal_seconds(folder: Path) -> list[float]:
    """The seconds of all children of a run, without those of repeated attempts; experts are left out, because they compile."""
    lines = map(json.loads, (folder / "history.jsonl").read_text("utf-8").split("\n")[:-1])  # the last line may be torn
    children = [line["seconds"] for line in lines if line["generation"] >= 0]
    return [sum(value for stage, value in seconds.items() if stage != "retries") for seconds in children]


def assumed_seconds(median: float, sigma: float, count: int = 999) -> list[float]:
    """Quantiles of a log-normal distribution.

    Args:
        median: seconds.
        sigma: standard deviation of the logarithm.
        count: of the quantiles.
    """
    normal = statistics.NormalDist()
    return [median * math.exp(sigma * normal.inv_cdf((i + 0.5) / count)) for i in range(count)]


def draw(found: Mapping[str, Sequence[tuple[int, float]]], ideal: float, file: Path) -> None:
    """Draws children per hour against workers.

    Args:
        found: workers and children per hour, by schedule.
        ideal: children per hour of one worker without any overhead.
        file: an SVG.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "cycleqd"}):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        for (name, points), style in zip(found.items(), ("s--", "o-"), strict=True):
            axes.plot(*zip(*points, strict=True), style, label=name)
        workers = [count for count, _ in next(iter(found.values()))]
        axes.plot(workers, [ideal * count for count in workers], ":", color="grey", label="no overhead")
        axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="children per hour")
        axes.set_xticks(workers, [str(count) for count in workers])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(file, metadata={"Date": None})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Simulates how a search scales with the number of workers.")
    parser.add_argument("run", type=Path, nargs="?", help="run folder whose journal has the seconds of evaluations")
    parser.add_argument(
        "--assume", type=float, nargs=2, metavar=("MEDIAN", "SIGMA"), help="log-normal seconds instead of those of a run"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw children per hour against workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--children", type=int, help="children of the search (100 per worker)")
    parser.add_argument("--driver", type=float, default=0.05, help="seconds of the search's process per child (0.05)")
    parser.add_argument("--start", type=float, default=60.0, help="seconds until a worker has loaded the models (60)")
    parser.add_argument("--lifetime", type=float, help="mean seconds until a worker is lost (never)")
    args = parser.parse_args(argv)
    if (args.run is None) == (args.assume is None):
        parser.error("expected RUN or --assume, got both or none; give one of them")
    if args.assume is not None and not (0 < args.assume[0] < math.inf and 0 <= args.assume[1] < math.inf):
        parser.error(f"expected a positive median and a sigma of at least 0, got {args.assume}; correct --assume")
    if (
        min(*args.workers, 1 if args.children is None else args.children) < 1
        or min(args.driver, args.start) < 0
        or (args.lifetime is not None and args.lifetime <= 0)
    ):
        parser.error("expected positive numbers of workers, children and seconds, got others; correct them")
    try:
        given = assumed_seconds(*args.assume) if args.assume is not None else journal_seconds(args.run)
    except OSError as error:
        parser.error(f"expected the folder of a run with history.jsonl, got {error.strerror} in {args.run}; correct RUN")
    seconds = [value for value in given if value > 0]
    if len(seconds) < 2:
        parser.error(f"expected the seconds of at least 2 children, got {len(seconds)} in {args.run}; wait until it has more")
    deciles = statistics.quantiles(seconds, n=10)
    median = statistics.median(seconds)
    print(f"{len(seconds)} evaluations: median {median:.2f} s, deciles {deciles[0]:.2f} to {deciles[-1]:.2f} s")
    print(f"{'workers':>8}{'schedule':>14}{'busy':>8}{'speed-up':>10}{'lost':>8}")
    hourly: dict[str, list[tuple[int, float]]] = {"generations": [], "steady": []}
    for workers in args.workers:
        for steady in (False, True):
            options = {"driver": args.driver, "start": args.start, "lifetime": args.lifetime}
            children = args.children or 100 * workers
            found = simulate(seconds, workers, children, steady=steady, **options)
            name = "steady" if steady else "generations"
            hourly[name].append((workers, 3600 * children / found["wall"]))
            print(f"{workers:8}{name:>14}{found['busy']:8.3f}{found['speedup']:10.1f}{found['lost']:8.0f}")
            print(json.dumps({"workers": workers, "schedule": name, **found}))
    if args.plot is not None:
        draw(hourly, 3600 / statistics.mean(seconds), args.plot)


if __name__ == "__main__":
    main()
