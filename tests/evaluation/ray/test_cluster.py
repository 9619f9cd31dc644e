"""Workers on a real cluster of this machine: killed, stopped, added late, refused; and the driver killed and restarted."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from cycleqd_jax.evaluation.ray import RayCluster, WorkerLost, cluster
from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import InputError

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def driver(folder: Path, address: str, *arguments: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, str(HERE / "searching.py"), str(folder), address, *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )


def until(condition, process: subprocess.Popen, folder: Path, seconds: float = 200):
    """What a condition returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.01)
    pytest.fail(f"it was not so within {seconds} s:\n{(folder / 'log').read_text()}")


def journal(folder: Path) -> list[dict]:
    path = folder / "history.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_search_survives_its_workers_and_its_driver(local_cluster, tmp_path, compiled):
    folder, alone = tmp_path / "ray", tmp_path / "alone"
    # Ray's own niceness of 15 would leave its workers next to nothing beside another test.
    niceness = {"RAY_worker_niceness": "0"}
    environment = {"PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}", "JAX_PLATFORMS": "cpu", **compiled, **niceness}
    started = local_cluster(**environment)
    for _ in range(3):
        started.add()
    process = driver(folder, started.address)

    def busy() -> list[int]:
        return [int(path.name) for path in (folder / "busy").glob("[0-9]*")]

    def records() -> list[dict]:
        return json.loads((folder / "workers.json").read_text()) if (folder / "workers.json").exists() else []

    first = until(busy, process, folder)[0]
    os.kill(first, signal.SIGKILL)  # in the middle of an evaluation
    (folder / "busy" / str(first)).unlink(missing_ok=True)
    stopped = until(busy, process, folder)[0]
    os.kill(stopped, signal.SIGSTOP)
    started.add()
    until(lambda: any("no answer" in (one["error"] or "") for one in records()), process, folder)
    until(lambda: not Path(f"/proc/{stopped}").exists(), process, folder)  # Ray alone would leave it stopped
    until(lambda: sum(one["evaluated"] > 0 for one in records()) >= 4, process, folder)  # the late one too
    died = {one["pid"]: one for one in records() if one["error"]}
    assert died.keys() == {first, stopped}
    assert [died[pid]["lost"] for pid in (first, stopped)] == [1, 1]
    assert "worker process has died" in died[first]["error"]
    done = len(journal(folder))
    until(lambda: len(busy()) >= 2, process, folder)
    process.send_signal(signal.SIGINT)
    process.wait(120)
    assert "running evaluations have 60 s to end" in (folder / "log").read_text()
    cut = [one for one in records() if one["error"] == "the run was stopped"]
    assert not cut, (cut, (folder / "log").read_text())  # all running evaluations have ended
    assert len(journal(folder)) >= done + 2
    (folder / "workers.json").unlink()
    process = driver(folder, started.address)
    until(lambda: sum(one["evaluated"] for one in records()) >= 4, process, folder)
    process.kill()
    process.wait()
    before = journal(folder)
    assert not (folder / "done.json").exists(), "the search was over before its driver could be killed"
    process = driver(folder, started.address)
    assert process.wait(400) == 0, (folder / "log").read_text()
    assert driver(alone, "here").wait(200) == 0
    found = journal(folder)
    assert [line["id"] for line in found] == list(range(3 + 40 * 6))  # each exactly once
    assert found == journal(alone)
    assert found[: len(before)] == before
    assert (folder / "done.json").read_text() == (alone / "done.json").read_text()
    assert len({tuple(line["scores"].values()) for line in found}) > 10


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_bad_workers_and_bad_children_are_named(local_cluster, tmp_path):
    started = local_cluster(PYTHONPATH=f"{HERE}{os.pathsep}{ROOT}", JAX_PLATFORMS="cpu")
    started.add(2)
    process = driver(tmp_path, started.address, "numbers")
    assert process.wait(500) == 0, (tmp_path / "log").read_text()
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert found["handler kept"]
    refused = found["MemoryError in start"]
    assert refused.startswith("FailuresError: expected a worker that can evaluate, got 2 that failed (worker 1 on ")
    assert "MemoryError: expected 80 GB) in the cluster; correct the cause and run the same command" in refused
    assert [found[number]["score"] for number in "34"] == [6.0, 8.0]
    assert found["1"]["error"].startswith(
        "the evaluation ended 2 workers: The actor is dead because its worker process has died"
    )
    assert found["2"]["error"] == "the evaluation ended 2 workers: MemoryError: the memory of the worker"
    assert 'raise MemoryError("the memory of the worker")' in (tmp_path / "log").read_text()  # the worker's traceback


def lost(error: Exception, monkeypatch) -> WorkerLost:
    """What a cluster makes of an exception of Ray."""
    ray = pytest.importorskip("ray")

    def get(call):
        raise error

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(WorkerLost) as found:
        RayCluster.__new__(RayCluster).result("a call")
    return found.value


@pytest.mark.parametrize(
    ("message", "process"),
    [
        ("The actor died because its node has died. Node Id: 0123, the actor's node was terminated: SIGTERM", False),
        ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR", True),
    ],
)
def test_the_loss_of_a_machine_is_told_from_the_death_of_a_process(monkeypatch, message, process):
    pytest.importorskip("ray")
    from ray.core.generated import common_pb2
    from ray.exceptions import ActorDiedError

    context = common_pb2.ActorDiedErrorContext(error_message=message, actor_id=bytes(16), class_name="ActorHost", pid=7)
    error = lost(ActorDiedError(context), monkeypatch)
    assert str(error) == message
    assert error.process is process


def test_a_result_that_is_lost_with_its_machine_does_not_count_against_the_child(monkeypatch):
    pytest.importorskip("ray")
    from ray.exceptions import ObjectLostError

    assert not lost(ObjectLostError("00" * 28, b"an address", "a stack"), monkeypatch).process


def test_a_worker_that_ray_ends_for_its_memory_is_named(monkeypatch):
    pytest.importorskip("ray")
    from ray.exceptions import OutOfMemoryError

    error = lost(OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory: 15/16 GB"), monkeypatch)
    assert str(error) == "out of memory: Task was killed due to the node running low on memory"
    assert error.process


@pytest.mark.parametrize("name", ["ObjectStoreFullError", "OutOfDiskError"])
def test_no_room_for_a_genome(name):
    """Ray spills objects to the disk first, and has another error where that is full too."""
    exceptions = pytest.importorskip("ray.exceptions")

    def remote(*arguments):
        raise getattr(exceptions, name)("Failed to put object 01.\nIt has 7 bytes.")

    worker = types.SimpleNamespace(evaluate=types.SimpleNamespace(remote=remote))
    with pytest.raises(
        InfraError,
        match=rf"^expected room for a genome in the object store of Ray, got {name}: Failed to put object 01; start Ray with a "
        r"larger --object-store-memory, or free space on its disk$",
    ):
        RayCluster.__new__(RayCluster).call(worker, "evaluate", 1)


def test_an_exception_of_a_worker_has_its_traceback(monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.exceptions import RayTaskError

    error = RayTaskError("evaluate", "Traceback:\n  line 7 of the worker", MemoryError("80 GB"), pid=7, ip="a")

    def get(call):
        raise error.as_instanceof_cause()

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(MemoryError, match="80 GB") as found:
        RayCluster.__new__(RayCluster).result("a call")
    assert "line 7 of the worker" in found.value.__notes__[0]


SEND = """
import sys
from ray import cloudpickle
from cycleqd_jax.evaluation.ray import host
cloudpickle.register_pickle_by_value(host)
sys.stdout.buffer.write(cloudpickle.dumps((host.ActorHost, host.kill_process)))
"""

RECEIVE = """
import pickle, sys
sys.modules["cycleqd_jax"] = None  # importing it fails
actor, kill = pickle.load(sys.stdin.buffer)
kill(1, None)
print(super(actor, actor()).identify()["started"])
"""


@pytest.mark.exhaustive
def test_a_machine_without_the_package_says_which_one_it_is():
    pytest.importorskip("ray")

    def run(code: str, data: bytes) -> bytes:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    assert int(run(RECEIVE, run(SEND, b""))) > 0


@pytest.mark.parametrize(
    ("address", "same"),
    [("auto", True), ("127.0.0.1:6379", True), ("10.0.0.7:6379", True), ("10.0.0.8:6379", False), ("10.0.0.7:6380", False)],
)
def test_another_cluster_than_the_connected_one_is_refused(address, same):
    if same:
        cluster._check_connected(address, "10.0.0.7:6379")
        return
    with pytest.raises(InputError, match=r"^expected ray.address 10.0.0.7:6379, to which .* got 10.*; call ray.shutdown"):
        cluster._check_connected(address, "10.0.0.7:6379")


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^expected Ray with ray.address, got no package ray; pip install 'c.*\[ray\]'$"):
        RayCluster("auto", cpus=1, gpus=0)


@pytest.mark.parametrize("address", ["head", "local", "ray://head:10001x", ":6379"])
def test_an_address_that_is_none(monkeypatch, address):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(InputError, match=r"^expected ray.address to be auto or host:port, got "):
        RayCluster(address, cpus=1, gpus=0)


def test_a_head_that_can_not_be_reached(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"  # nothing listens there
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"^expected the head of a Ray cluster at ray.address {address}, got: .*refused"):
        RayCluster(address, cpus=1, gpus=0)
    assert time.monotonic() - start < 8


@pytest.fixture(
    params=[b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"], ids=["silent", "http"]
)
def no_head(request):
    """The address of a program that accepts connections, and answers nothing or as a web server does."""
    kept = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            kept.append(connection)
            if request.param:
                with connection:
                    connection.recv(1000)
                    connection.sendall(request.param)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    for connection in kept:
        connection.close()


@pytest.mark.exhaustive
@pytest.mark.timeout(120)
def test_a_program_that_is_no_head(no_head):
    pytest.importorskip("ray")
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"^expected the head of a Ray cluster at ray.address {no_head}, got: .*no answer of"):
        RayCluster(no_head, cpus=1, gpus=0)
    assert time.monotonic() - start < 30  # 10 s, and the imports of Ray on a busy machine


def test_what_the_head_says_is_said(monkeypatch):
    monkeypatch.setattr(cluster, "_ASK", "raise ValueError('another version of Ray.')")
    with pytest.raises(
        InputError, match=r"^expected the head .* at ray.address a:1, got: ValueError: another version of Ray; s"
    ):
        cluster._check_answers("a:1")


def test_a_head_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(cluster, "_ASK", "import signal, time; signal.alarm(1); time.sleep(60)")
    monkeypatch.setattr(cluster, "ANSWER_S", 1)
    with pytest.raises(InputError, match=r"^expected the head .* at ray.address a:1, got: no answer of Ray within 1 s; start"):
        cluster._check_answers("a:1")
