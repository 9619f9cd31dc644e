"""Speed of the sandbox and of the tasks that execute replies in it, against another checkout of this repository.

    python scripts/bench_sandbox.py [--against PATH] [--isolation bwrap userns] [--rounds 20] [--only NAME ...] [--json FILE]

PATH is another checkout, such as ``git worktree add ../before COMMIT``. Each checkout runs in a process of its own, and the two
alternate within every round, so that their ratio is meaningful on a machine with other load. Reported are medians over all
repetitions of the wall-clock time, and medians over all rounds of the CPU time of all processes (of this machine's user and
kernel, without the server of MariaDB), which needs a writable hierarchy of cgroup v2. "at once" is the time per episode with
eight episodes at a time.

DBBench on MariaDB is measured on the server that ``--dsn`` names, else on a private one if mariadbd and PyMySQL are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("before", "after")
AT_ONCE = 8
PROGRAM = {
    "id": "add",
    "text": "Add two numbers.",
    "code": "def add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4", "assert add(0, 1) == 1"],
}
SHELL = {
    "id": "count",
    "description": "Delete the first line of ~/list.txt.",
    "init_script": [["bash", "printf '%s\\n' one two three > ~/list.txt"]],
    "check": [["bash", "test $(wc -l < ~/list.txt) = 2"], ["bash", "! grep one ~/list.txt"]],
    "example_script": ["bash", "sed -i 1d ~/list.txt"],
}
MINIMAL = {"id": "minimal", "description": "Finish.", "check": [["bash", "true"]], "example_script": ["bash", "true"]}
TABLE = {
    "id": "insert",
    "description": "Add Kim, who is 30.",
    "type": ["INSERT"],
    "label": ["INSERT INTO staff VALUES ('Kim', '30')"],
    "answer_md5": "[('" + "0" * 32 + "',)]",  # of another table, so the score is 0
    "table": {
        "table_name": "staff",
        "table_info": {"columns": [{"name": "name"}, {"name": "age"}], "rows": [[f"n{i}", str(i)] for i in range(20)]},
    },
}
BASH = "Act: bash\n\n```bash\nsed -i 1d ~/list.txt\n```"
FINISH = "Act: finish"
SQL = ["Action: Operation\n```sql\nSELECT age FROM staff WHERE name = 'n3'\n```"]
SQL += ["Action: Operation\n```sql\nINSERT INTO staff VALUES ('Kim', '30')\n```", "Action: Answer\nFinal Answer: []"]


# ---------------------------------------------------------------------------------------------------------------------
# One checkout


class Bench:
    """The measurements of the checkout that is imported. Every method that returns seconds measures once.

    Args:
        isolation: name of the isolation.
        folder: folder for the records of the tasks.
        dsn: address of a server for DBBench, or empty.
    """

    def __init__(self, isolation: str, folder: str, dsn: str) -> None:
        from cycleqd_jax.sandbox import Limits, Sandbox

        self.sandbox = Sandbox(isolation, limits=Limits(wall_s=10, cpu_s=10))
        self.folder = Path(folder)
        self.judge = self._task("mbpp", PROGRAM)
        self.shell = self._task("os_interaction", SHELL)
        self.minimal = self._task("os_interaction", MINIMAL)
        self.sqlite = self._task("dbbench", TABLE)
        self.mysql = self._task("dbbench", TABLE, backend="mysql", dsn=dsn) if dsn else None
        self.pool = ThreadPoolExecutor(AT_ONCE)
        program = "Action: \n```python\n" + PROGRAM["code"] + "\n```"
        self.measures: dict[str, Callable[[], float]] = {
            "program": lambda: _seconds(lambda: self.sandbox.run_python("print(1)")),
            "MBPP episode": lambda: self._play(self.judge, [program], 1.0),
            "box start": self._box_start,
            "box start and command": self._box_with_command,
            "first trusted command": lambda: self._trusted(0),
            "second trusted command": lambda: self._trusted(1),
            "minimal OS episode": lambda: self._play(self.minimal, [FINISH], 1.0),
            "OS episode": lambda: self._play(self.shell, [BASH, FINISH], 1.0),
            "OS episodes at once": lambda: self._at_once(self.shell, [BASH, FINISH], 1.0),
            "MBPP episodes at once": lambda: self._at_once(self.judge, [program], 1.0),
            "DBBench episode, SQLite": lambda: self._play(self.sqlite, SQL, 0.0),
            "DBBench episodes at once, SQLite": lambda: self._at_once(self.sqlite, SQL, 0.0),
        }
        if self.mysql is not None:
            self.measures["DBBench episode, MariaDB"] = lambda: self._play(self.mysql, SQL, 0.0)
            self.measures["DBBench episodes at once, MariaDB"] = lambda: self._at_once(self.mysql, SQL, 0.0)

    def close(self) -> None:
        """Ends everything."""
        self.pool.shutdown()
        if self.mysql is not None:
            self.mysql.close()
        self.sandbox.close()

    def _task(self, kind: str, record: dict[str, Any], **own: Any) -> Any:
        from cycleqd_jax.tasks import TaskOptions, make_task

        path = self.folder / f"{record['id']}.jsonl"
        other = record | {"id": "other", "text": "Another.", "description": "Another."}  # a task needs two records
        path.write_text(f"{json.dumps(record)}\n{json.dumps(other)}\n")
        return make_task(kind, TaskOptions(self.sandbox, kind, data=path, memo=False), **own)

    def _box_start(self) -> float:
        begin = time.perf_counter()
        with self.sandbox.box():
            return time.perf_counter() - begin

    def _box_with_command(self) -> float:
        begin = time.perf_counter()
        with self.sandbox.box() as box:
            assert box.exec(["true"]).ok
            return time.perf_counter() - begin

    def _trusted(self, earlier: int) -> float:
        with self.sandbox.box() as box:
            box.exec(["bash", "-c", "echo x > /root/a; echo y > /tmp/b"])
            for _ in range(earlier):
                box.exec(["true"], trusted=True)
            begin = time.perf_counter()
            assert box.exec(["true"], trusted=True).ok
            return time.perf_counter() - begin

    @staticmethod
    def _play(task: Any, replies: list[str], score: float) -> float:
        begin = time.perf_counter()
        episode = task.episodes("train")[0]
        result = None
        try:
            episode.start()
            for reply in replies:
                result = episode.step(reply)
        finally:
            episode.close()
        assert getattr(result, "value", None) == score, result
        return time.perf_counter() - begin

    def _at_once(self, task: Any, replies: list[str], score: float) -> float:
        begin = time.perf_counter()
        list(self.pool.map(lambda _: self._play(task, replies, score), range(2 * AT_ONCE)))
        return (time.perf_counter() - begin) / (2 * AT_ONCE)


def _seconds(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def serve(isolation: str, folder: str, dsn: str) -> None:
    """Answers each line on stdin, ``name TAB repetitions``, with a line of seconds as JSON; first a line of all names."""
    bench = Bench(isolation, folder, dsn)
    print(json.dumps(list(bench.measures)), flush=True)
    for line in sys.stdin:
        name, count = line.rstrip("\n").split("\t")
        print(json.dumps([bench.measures[name]() for _ in range(int(count))]), flush=True)
    bench.close()


# ---------------------------------------------------------------------------------------------------------------------
# The comparison


class Side:
    """A process that measures one checkout.

    Args:
        checkout: folder of the checkout.
        isolation: name of the isolation.
        dsn: address of a server, or empty.
    """

    def __init__(self, checkout: Path, isolation: str, dsn: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        command = [sys.executable, __file__, "--serve", isolation, self._folder.name, dsn]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=self._folder.name
        )
        self._group = _new_group(self._process.pid)
        self.names: list[str] = self._answer()

    def measure(self, name: str, count: int) -> tuple[list[float], float | None]:
        """Seconds of each repetition, and the CPU seconds of one."""
        assert self._process.stdin is not None
        before = _cpu_seconds(self._group)
        self._process.stdin.write(f"{name}\t{count}\n")
        self._process.stdin.flush()
        seconds = self._answer()
        time.sleep(0.05)  # for what ends in the background
        after = _cpu_seconds(self._group)
        return seconds, None if before is None or after is None else (after - before) / count

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._folder.cleanup()
        if self._group is not None:
            with contextlib.suppress(OSError):
                self._group.rmdir()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"expected measurements, got the end of process {self._process.pid}; see its errors above")
        return json.loads(line)


def _new_group(pid: int) -> Path | None:
    """Moves a process into a cgroup of its own; None without a writable hierarchy of cgroup v2."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            group = Path(left.split()[4]) / f"bench-sandbox-{pid}"
            with contextlib.suppress(OSError):
                group.mkdir()
                (group / "cgroup.procs").write_text(str(pid))
                return group
    return None


def _cpu_seconds(group: Path | None) -> float | None:
    if group is None:
        return None
    fields = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    return int(fields["usage_usec"]) / 1e6


def compare(checkouts: dict[str, Path], isolation: str, dsn: str, rounds: int, only: list[str]) -> dict[str, Any]:
    """Measures all checkouts in turn.

    Returns:
        For each measurement and side ``ms`` and ``cpu_ms``; with two sides also ``ratio`` and ``cpu_ratio``, after / before.
    """
    sides = {name: Side(path, isolation, dsn) for name, path in checkouts.items()}
    names = [name for name in next(iter(sides.values())).names if not only or any(word in name for word in only)]
    walls = {name: {side: [] for side in sides} for name in names}
    cpus = {name: {side: [] for side in sides} for name in names}
    try:
        for number in range(-1, rounds):  # the first round is not counted
            for name in names:
                count = 1 if "at once" in name else 4
                for side in sorted(sides, reverse=number % 2 == 0):
                    wall, cpu = sides[side].measure(name, count)
                    if number >= 0:
                        walls[name][side] += wall
                        cpus[name][side] += [] if cpu is None else [cpu / (2 * AT_ONCE if "at once" in name else 1)]
    finally:
        for side in sides.values():
            side.close()
    return {name: _summary(walls[name], cpus[name]) for name in names}


def _summary(walls: dict[str, list[float]], cpus: dict[str, list[float]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, values in (("ms", walls), ("cpu_ms", cpus)):
        medians = {side: 1000 * statistics.median(seconds) for side, seconds in values.items() if seconds}
        if not medians:
            continue
        found[key] = {side: round(value, 3) for side, value in medians.items()}
        if len(medians) == len(SIDES):
            found[key.replace("ms", "ratio")] = round(medians["after"] / medians["before"], 3)
    return found


def _show(results: dict[str, Any]) -> Iterator[str]:
    yield f"{'':34}{'wall ms':>20}{'ratio':>8}{'CPU ms':>20}{'ratio':>8}"
    for name, found in results.items():
        line = f"{name:34}"
        for key in ("ms", "cpu_ms"):
            line += f"{' → '.join(f'{value:.2f}' for value in found.get(key, {}).values()):>20}"
            line += f"{found.get(key.replace('ms', 'ratio'), ''):>8}"
        yield line


@contextlib.contextmanager
def _server(dsn: str) -> Iterator[str]:
    """The address of a server; empty if there is none."""
    sys.path.insert(0, str(ROOT / "tests" / "tasks"))
    try:
        import mariadb  # pyright: ignore[reportMissingImports]
        import pymysql  # noqa: F401
    except ImportError:
        mariadb = None
    if dsn or mariadb is None or mariadb.missing():
        yield dsn
        return
    with mariadb.serve() as socket:
        yield f"mysql://root:{quote(mariadb.PASSWORD, safe='')}@/?unix_socket={socket}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Reads the command line, measures, prints a table, and writes JSON."""
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout, shown as before")
    parser.add_argument("--isolation", nargs="+", default=["bwrap", "userns"], help="isolations to measure")
    parser.add_argument("--rounds", type=int, default=20, help="rounds; each has four repetitions of most measurements")
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of measurements")
    parser.add_argument("--dsn", default="", help="address of a MySQL or MariaDB server")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    if options.against is not None and not (options.against / "cycleqd_jax").is_dir():
        parser.error(f"expected a checkout of this repository in --against, got {options.against}")
    checkouts = {"after": ROOT} if options.against is None else {"before": options.against.resolve(), "after": ROOT}
    report: dict[str, Any] = {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "kernel": os.uname().release,
        "commits": {side: _commit(path) for side, path in checkouts.items()},
        "rounds": options.rounds,
        "load": os.getloadavg(),
        "results": {},
    }
    with _server(options.dsn) as dsn:
        for isolation in options.isolation:
            results = compare(checkouts, isolation, dsn, options.rounds, options.only)
            report["results"][isolation] = results
            print(f"\n{isolation}: {report['processor']}, {' → '.join(report['commits'].values())}")
            print("\n".join(_show(results)), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
