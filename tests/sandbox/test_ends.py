"""Boxes, fork servers and host processes end, and nothing that they started outlives them."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cycleqd_jax.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("still_works")


def test_daemons_die_with_their_box(sealed: Sandbox) -> None:
    name = f"x{secrets.token_hex(6)}"
    with sealed.box() as box:
        box.exec(["sh", "-c", f"cp /bin/sleep /tmp/{name}; setsid nohup /tmp/{name} 300 >/dev/null 2>&1 & sleep 0.1"])
        assert _host_sees(name)
    deadline = time.monotonic() + 5
    while _host_sees(name) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _host_sees(name)


def _host_sees(name: str) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if name in (entry / "cmdline").read_text():
                    return True
            except OSError:
                continue
    return False


def test_survives_the_thread_that_made_it(sealed: Sandbox) -> None:
    made: list[Sandbox] = []
    thread = threading.Thread(target=lambda: made.append(Sandbox(sealed.isolation.name)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    with made[0] as sandbox:
        assert sandbox.run_python("print(1)").ok


def test_nothing_outlives_a_killed_host(sealed: Sandbox) -> None:
    name = f"x{secrets.token_hex(6)}"
    source = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from cycleqd_jax.sandbox import Sandbox
box = Sandbox({sealed.isolation.name!r}).box()
box.exec(["sh", "-c", "cp /bin/sleep /tmp/{name}; /tmp/{name} 300 >/dev/null 2>&1 &"])
print("up", flush=True)
time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"up\n"
        assert _host_sees(name)
        host.kill()
    deadline = time.monotonic() + 5
    while _host_sees(name) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _host_sees(name)
