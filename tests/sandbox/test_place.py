"""Boxes whose namespaces are made ahead of time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cycleqd_jax.sandbox import Sandbox, launch

from .conftest import LIMITS


@pytest.fixture(params=["mount_proc", "run_in_child"])
def either_way(
    sealed: Sandbox, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sandbox]:
    """A sandbox whose boxes get their /proc in one of two ways: the other one fails."""
    if request.param == "run_in_child" and tuple(map(int, platform.release().split(".")[:2])) < (6, 17):
        pytest.skip("needs Linux 6.17, which mounts the /proc of another PID namespace")
    inside = shutil.copytree(launch._INSIDE, tmp_path / "inside")
    before = f"def {request.param}("
    text = (inside / "linux.py").read_text()
    failing = f"def {request.param}(*_: object) -> None:\n    raise OSError('not here')\n\n\ndef _replaced("
    assert text.count(before) == 1
    (inside / "linux.py").write_text(text.replace(before, failing))
    monkeypatch.setattr(launch, "_INSIDE", inside)
    with Sandbox(sealed.isolation.name, limits=LIMITS) as sandbox:
        yield sandbox


def _children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def _descendants(pid: int) -> list[int]:
    found = _children(pid)
    for child in found:
        found += _children(child)
    return found


def _namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def test_a_box_has_the_size_that_its_limits_give(sealed: Sandbox) -> None:
    for disk_mb in (64, 16, 48):
        with sealed.box(limits=dataclasses.replace(LIMITS, disk_mb=disk_mb)) as box:
            assert box.exec(["sh", "-c", "df -m / | tail -1 | awk '{print $2}'"]).output == f"{disk_mb}\n"
            assert box.exec(["sh", "-c", "head -c 60m /dev/zero > /root/a"]).ok == (disk_mb == 64)


def test_boxes_share_no_namespace(sealed: Sandbox) -> None:
    script = "for name in pid net mnt ipc uts user; do readlink /proc/self/ns/$name; done; ls /root; touch /root/$$; hostname"
    with sealed.box() as first, sealed.box() as second:
        found = [box.exec(["bash", "-c", script]).output.split() for box in (first, second)]
        assert len(found[0]) == len(found[1]) == 7
        assert not set(found[0][:6]) & set(found[1][:6])


def test_a_box_starts_after_the_prepared_one_was_killed(sealed: Sandbox) -> None:
    with sealed.box() as box:
        assert box.exec(["true"]).ok
        time.sleep(0.2)  # until the next one is prepared
        server = sealed._worker.process.pid
        outside = {_namespace(server), _namespace(os.getpid())}
        for pid in _descendants(server):  # the open box, too
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # one ended with another
                if _namespace(pid) not in outside:
                    os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        with sealed.box() as box:
            assert box.exec(["echo", "alive"]).output == "alive\n"


def test_a_box_works_after_its_background_processes_were_killed(sealed: Sandbox) -> None:
    fill = "python3 -c 'x = bytearray(60 << 20); import time; time.sleep(60)'"
    with sealed.box(limits=dataclasses.replace(LIMITS, memory_mb=100)) as box:
        assert box.exec(["bash", "-c", f"for i in 1 2 3 4; do {fill} > /dev/null 2>&1 & done"]).ok
        count = "for folder in /proc/[0-9]*; do cat $folder/comm; done | grep -c python3"
        end = time.monotonic() + 20
        while box.exec(["bash", "-c", count]).output != "0\n":
            assert time.monotonic() < end
            time.sleep(1.5)  # idle boxes are measured once a second
        assert box.exec(["bash", "-c", "echo x > /root/a; ls /proc/$$/comm"]).ok
        assert box.exec(["cat", "/root/a"], trusted=True).output == "x\n"
        assert box.shell().run("echo y").output == "y\n"


def test_a_box_sees_its_own_processes_only(either_way: Sandbox) -> None:
    numbers = "grep NSpid /proc/self/status | wc -w; test -d /proc/$$ && echo there"
    with either_way.box() as box:
        for _ in range(2):  # the numbers inside and outside differ after a trusted command
            assert box.exec(["bash", "-c", numbers]).output == "2\nthere\n"  # the name, and one number
            assert box.exec(["true"], trusted=True).ok
        assert box.exec(["bash", "-c", "kill -9 -1"]) is not None  # a new namespace
        assert box.exec(["bash", "-c", numbers]).output == "2\nthere\n"


def test_programs_do_not_see_trusted_commands(either_way: Sandbox) -> None:
    watch = (
        "import glob, time\n"
        "end = time.monotonic() + 20\n"
        "while time.monotonic() < end:\n"
        "    for name in glob.glob('/proc/[0-9]*/cmdline'):\n"
        "        try:\n"
        "            text = open(name).read()\n"
        "        except OSError:\n"
        "            continue\n"
        "        if 'secret' in text:\n"
        "            open('/tmp/seen', 'w').write(text)\n"
    )
    with either_way.box() as box:
        start = 'python3 -c "$0" > /dev/null 2>&1 & sleep 0.3; echo started'
        assert box.exec(["bash", "-c", start, watch.replace("'secret'", "'sec' + 'ret'")]).output == "started\n"
        assert box.exec(["bash", "-c", "sleep 0.5; echo secret"], trusted=True).output == "secret\n"
        assert box.exec(["bash", "-c", "sleep 0.2; cat /tmp/seen"]).output.startswith("cat: ")
