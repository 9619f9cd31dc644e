"""A sandbox that fails raises InfraError, is restarted once if possible, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

import cycleqd_jax.sandbox.launch as launch_module
from cycleqd_jax.sandbox import InfraError, Killed, Sandbox


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    pids = [pid]
    for parent in pids:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return pids


def _network(pid: int) -> str:
    """The network namespace of a process; empty if the process has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def _kill_from_outside(sandbox: Sandbox) -> None:
    for pid in reversed(_family(sandbox._worker.process.pid)):
        with contextlib.suppress(ProcessLookupError):  # it ended with another
            os.kill(pid, signal.SIGKILL)


def _mounts() -> int:
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder per test, because tests of other processes use the common one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def _folders() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if "cycleqd" in name or "leak" in name}


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="isolation"):
        Sandbox("docker")


def test_no_isolation_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cycleqd_jax.sandbox.probe.launches", lambda name, tree: [])
    with pytest.raises(InfraError, match=r"apt-get install bubblewrap.*isolation=none"):
        Sandbox()


def test_bubblewrap_that_does_not_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: no permissions' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(launch_module.shutil, "which", lambda name: str(fake))
    with pytest.raises(InfraError, match="bwrap: no permissions"):
        Sandbox("bwrap")
    monkeypatch.setattr(launch_module.shutil, "which", lambda name: str(tmp_path / "missing"))
    with pytest.raises(InfraError, match=r"expected .* to start, got"):
        Sandbox("bwrap")


def test_auto_never_means_none() -> None:
    try:
        with Sandbox() as sandbox:
            assert sandbox.isolation.name in ("bwrap", "userns")
    except InfraError as error:
        pytest.skip(f"no isolation works here: {error}")


def test_a_fork_server_that_is_killed_is_restarted_once(sandbox: Sandbox) -> None:
    before = _folders()
    with Sandbox(sandbox.isolation.name) as victim:
        box = victim.box()
        session = victim.session("import sys\nfor _ in sys.stdin: print(1, flush=True)")
        assert session.request(0) == 1
        _kill_from_outside(victim)
        assert victim.run_python("print(1)").output == "1\n"
        for call in (lambda: box.exec(["true"]), lambda: session.request(0)):
            with pytest.raises(InfraError, match="expected a working sandbox, got"):
                call()
        box.close()
        session.close()
        _kill_from_outside(victim)
        with victim.box() as fresh:
            assert fresh.exec(["true"]).ok
            assert fresh._worker is victim._worker  # so that faults of its programs are told from those of the sandbox
    assert _folders() <= before


def test_a_failed_restart_is_an_error(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(sandbox.isolation.name) as victim:
        _kill_from_outside(victim)
        broken = victim._launch.__class__(victim._launch.isolation, ("/no/such/program",), victim._launch.plan)
        monkeypatch.setattr(victim, "_launch", broken)
        for _ in range(2):
            with pytest.raises(InfraError, match=r"expected .* to start, got"):
                victim.run_python("print(1)")


def test_use_after_close(sandbox: Sandbox) -> None:
    closed = Sandbox(sandbox.isolation.name)
    box = closed.box()
    closed.close()
    closed.close()
    with pytest.raises(InfraError, match="expected an open sandbox, got one that was closed"):
        closed.run_python("print(1)")
    with pytest.raises(InfraError):
        box.exec(["true"])
    box.close()


def test_a_fork_server_that_hangs_is_ended_with_its_boxes(sandbox: Sandbox) -> None:
    if sandbox.isolation.name == "none":
        pytest.skip("without isolation nothing ends the programs of a fork server that hangs")
    victim = Sandbox(sandbox.isolation.name)
    box = victim.box()
    box.exec(["sh", "-c", "sleep 300 > /dev/null 2>&1 &"])
    family = _family(victim._worker.process.pid)
    os.kill(family[-1] if len(family) == 1 else family[1], signal.SIGSTOP)
    victim.close()
    deadline = time.monotonic() + 5
    while any(map(_network, family)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in family if _network(pid)] == []
    box.close()


def test_close_leaves_nothing(sandbox: Sandbox) -> None:
    folders, mounts, files = _folders(), _mounts(), len(os.listdir("/proc/self/fd"))
    with Sandbox(sandbox.isolation.name) as other:
        boxes = [other.box() for _ in range(3)]
        for box in boxes:
            box.exec(["sh", "-c", "sleep 300 & echo x > leak-of-a-box"])
        other.run_python("import os\nif os.fork(): os._exit(0)\nos.setsid()\nimport time; time.sleep(300)")
        family = _family(other._worker.process.pid)
        assert len(family) > 3
        boxes[0].close()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in family) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]
    for box in boxes:
        box.close()
    assert _mounts() == mounts
    assert len(os.listdir("/proc/self/fd")) <= files
    assert _folders() <= folders


def test_only_the_box_that_hangs_is_ended(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cycleqd_jax.sandbox.sandbox._GRACE_SECONDS", 0.2)
    with Sandbox(sandbox.isolation.name) as other, other.box() as neighbour:
        assert neighbour.exec(["true"]).ok
        before = set(_family(other._worker.process.pid))
        box = other.box()
        supervisors = set(_family(other._worker.process.pid)) - before
        if sandbox.isolation.name != "none":  # the supervisor was prepared earlier; it has the network of its box
            network = box.exec(["readlink", "/proc/self/ns/net"]).output.strip()
            supervisors = {pid for pid in _family(other._worker.process.pid) if _network(pid) == network}
        assert supervisors
        for pid in supervisors:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(Killed):
            box.exec(["true"], timeout=0.1)
        assert neighbour.exec(["true"]).ok
        for pid in supervisors:
            os.kill(pid, signal.SIGCONT)


def test_python_in_the_home_does_not_show_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = "python{}.{}".format(*sys.version_info)
    needed = [tmp_path / "bin" / version, tmp_path / "lib" / version / "os.py", tmp_path / "lib" / "libpython3.so.1.0"]
    for path in (*needed, tmp_path / "secret", tmp_path / "bin" / "secret", tmp_path / "lib" / "secret"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(launch_module, "_executable", lambda: str(needed[0]))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    for home, work in ((tmp_path, "/"), ("/", tmp_path / "bin")):
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.chdir(work)
        binds = [source for source, _ in launch_module._plan("userns", False, "/library")["binds"]]
        shown = [path for path in tmp_path.rglob("*") if path.is_file() and any(path.is_relative_to(bind) for bind in binds)]
        assert sorted(shown) == sorted(needed)
