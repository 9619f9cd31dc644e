"""OS interaction in many sandboxes: gold solutions of the published records, load, and leftovers."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cycleqd_jax.sandbox import Limits, Sandbox, build_rootfs
from cycleqd_jax.tasks import OsInteraction, play_solution
from cycleqd_jax.types import Score

from .helpers import final_score, make

FILES = {"standard": "os_cycleqd.visible.jsonl", "training": "os_agentbench_train.visible.jsonl"}
# 52, 53, 55: sudo from the network; 153: a checker that can't read "4.0K"; 56, 131: as many processes as run; 64, 85: a search
# of /proc. 252: an answer of two lines; 540, 683: an example that changes what it counts.
UNREACHABLE = {"os/52", "os/53", "os/55", "os/153", "ostrain/252", "ostrain/540", "ostrain/683"}
UNSTEADY = {"os/56", "os/131", "os/64", "os/85"}
# Records that are judged by a match have no example.
WITHOUT_EXAMPLE = {
    "os/23": "find /working -type f -name workspace | grep -q . && echo yes || echo no",
    "os/24": "find /working -type f -name workspace | grep -q . && echo yes || echo no",
    "os/25": "find /working -type f -name workspace | grep -q . && echo yes || echo no",
    "os/144": "sleep 1; n() { stat -c %s ~/log; }; a=$(n); sleep 6.5; b=$(n); echo $(( (b - a) / 7 > 4 ? 1 : 3 ))",
    "os/145": "touch /tmp/mark; sleep 1.3; find /root -newer /tmp/mark -type f -printf '%f\\n'",
    "os/146": "touch /tmp/mark; sleep 1.3; find /root -newer /tmp/mark -type f -printf '%f\\n'",
    "os/147": "sleep 1; n() { stat -c %s ~/log; }; a=$(n); sleep 6.5; b=$(n); echo $(( (b - a) / 7 > 4 ? 1 : 3 ))",
    "os/148": "bash /home/jack/test",
}


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory):
    """A sandbox with a Debian root file system: the one that CYCLEQD_ROOTFS names, or a new one."""
    folder = os.environ.get("CYCLEQD_ROOTFS") or tmp_path_factory.mktemp("rootfs")
    rootfs = build_rootfs(folder)
    with Sandbox(rootfs=rootfs.folder, limits=Limits(wall_s=15, cpu_s=15)) as sandbox:
        yield sandbox


def solve(task: OsInteraction, row, record) -> list[Score | None]:
    scores = []
    solutions = list(task.solutions(record))
    if row.id in WITHOUT_EXAMPLE:
        solutions = [_typed(WITHOUT_EXAMPLE[row.id])]
    for solution in solutions:
        episode = task.environment(record)
        try:
            scores.append(play_solution(episode, solution)[1])
        finally:
            episode.close()
        if scores[-1] is not None and scores[-1].value == 1.0:
            break
    return scores


def _typed(command: str):
    output = yield f"Act: bash\n\n```bash\n{command}\n```"
    yield f"Act: answer({output.rsplit(chr(10), 1)[-1]})"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.getuid() != 0, reason="several users in a box need root on the host")
@pytest.mark.parametrize("name", FILES)
def test_gold_solutions_in_a_debian(data_dir, debian, name):
    task = make("os_interaction", data=data_dir / "os_interaction" / FILES[name], sandbox=debian, memo=False)
    both = [pair for split in ("train", "test") for pair in zip(task.rows[split], task.records[split], strict=True)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda pair: solve(task, *pair), both))
        nothing = list(pool.map(lambda pair: final_score(task, pair[1], "Act: finish").value, both))
    failed = {row.id for (row, _), scores in zip(both, results, strict=True) if not any(s and s.value == 1.0 for s in scores)}
    assert failed - UNSTEADY == UNREACHABLE & {row.id for row, _ in both}
    assert sum(nothing) == 0


LOAD = {
    "id": "load",
    "description": "How many files?",
    "init_script": [["bash", "mkdir /root/d; for i in 1 2 3; do echo $RANDOM > /root/d/$i; done; (sleep 300 &) > /dev/null"]],
    "check": [None, {"builtin": "integer-match"}, ["python", "import os; assert len(os.listdir('/root/d')) == 3"]],
    "example_script": ["bash", "ls /root/d | wc -l"],
}
HANGS = LOAD | {"id": "hangs", "check": [["bash", "test -e /nowhere"]], "example_script": ["bash", "sleep 100"]}


def load(write, sandbox: Sandbox, episodes: int) -> float:
    """Plays the given number of episodes, sixteen at a time, one of which hangs; returns the episodes per second."""
    task = make(
        "os_interaction", train=write(LOAD), test=write(HANGS, name="t.jsonl"), sandbox=sandbox, memo=False, seconds=2.0
    )
    (good,), (bad,) = task.records["train"], task.records["test"]

    def one(number: int) -> float:
        hangs = number == episodes // 2
        record = bad if hangs else good
        episode = task.environment(record)
        begin = time.monotonic()
        try:
            score = play_solution(episode, next(iter(task.solutions(record))))[1]
        finally:
            episode.close()
        assert score is not None
        assert score.value == (0.0 if hangs else 1.0), score
        return time.monotonic() - begin

    sandbox.box().close()
    time.sleep(0.5)  # until one box is prepared; each box is the one that was prepared, and another takes its place
    mounts, folders = Path("/proc/self/mountinfo").read_text(), set(os.listdir(tempfile.gettempdir()))
    descriptors, server = len(os.listdir("/proc/self/fd")), _descendants(sandbox._worker.process.pid)
    begin = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        seconds = list(pool.map(one, range(episodes)))
    rate = episodes / (time.monotonic() - begin)
    assert max(seconds) < 60
    deadline = time.monotonic() + 5
    while len(_descendants(sandbox._worker.process.pid)) > len(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(_descendants(sandbox._worker.process.pid)) <= len(server)
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    made = set(os.listdir(tempfile.gettempdir())) - folders
    assert not {name for name in made if "cycleqd" in name and "fetch" not in name}  # other workers fetch models meanwhile
    return rate


def _descendants(pid: int) -> set[int]:
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                continue
    return set(found)


@pytest.mark.exhaustive
def test_many_episodes_leave_nothing(write, sandbox):
    assert load(write, sandbox, 40) > 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_episodes_in_a_debian_leave_nothing(write, debian):
    debian.box().close()
    starts = []
    for _ in range(40):
        begin = time.perf_counter()
        box = debian.box()
        starts.append(time.perf_counter() - begin)
        box.close()
    assert statistics.median(starts) < 0.05
    rate = load(write, debian, 200)
    print(f"box start-up, median: {1000 * statistics.median(starts):.1f} ms; episodes per second: {rate:.1f}")
    assert rate > 2
