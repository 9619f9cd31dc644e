"""Commands that compute get huge pages; their processes keep their ids, arguments and environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cycleqd_jax.cli import huge_pages

PROGRAM = """
import json, os, sys
from cycleqd_jax.cli.huge_pages import restart_with_huge_pages
restart_with_huge_pages()
array = bytearray(b"1") * (1 << 26)
huge = [line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")]
names = ("GLIBC_TUNABLES", "CYCLEQD_RESTARTED")
print(json.dumps({
    "huge": int(huge[0].split()[1]), "argv": sys.argv, "pid": os.getpid(), "stdin": sys.stdin.read(),
    "environment": {name: os.environ[name] for name in names if name in os.environ},
}))
"""


def started(**environment) -> dict:
    """What the program prints, and the id of its process."""
    clean = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "CYCLEQD_RESTARTED")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "a b", "c"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clean | environment,
    )
    found = json.loads(process.communicate("given")[0])
    assert found["pid"] == process.pid
    assert found["argv"] == ["-c", "a b", "c"]
    assert found["stdin"] == "given"
    return found


@pytest.fixture
def kernel():
    if not (huge_pages._asks_for_pages() and huge_pages._has_setting()):
        pytest.skip("this kernel gives huge pages always or never, or the C library is none that asks for them")


def test_large_arrays_are_in_huge_pages(kernel):
    found = started()
    assert found["huge"] > 32 << 10
    assert found["environment"] == {}


def test_other_settings_stay(kernel):
    found = started(GLIBC_TUNABLES="glibc.malloc.arena_max=2")
    assert found["huge"] > 32 << 10
    assert found["environment"] == {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}


def test_the_choice_of_the_user_counts(kernel):
    found = started(GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert found["huge"] < 32 << 10
    assert found["environment"] == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}


def test_the_mark_of_another_process_is_none(kernel):
    assert started(CYCLEQD_RESTARTED="1")["huge"] > 32 << 10


@pytest.mark.parametrize("modes", ["[always] madvise never", "always madvise [never]", None])
def test_nothing_happens_without_the_kernel(tmp_path, monkeypatch, modes):
    file = tmp_path / "enabled"
    if modes is not None:
        file.write_text(modes)
    monkeypatch.setattr(huge_pages, "_MODES", file)
    monkeypatch.setattr(os, "execv", lambda *args: pytest.fail("restarted"))
    huge_pages.restart_with_huge_pages()


@pytest.mark.parametrize("version", ["glibc 2.34", "glibc", "musl 1.2.4", "", None])
def test_nothing_happens_with_another_library(tmp_path, monkeypatch, version):
    monkeypatch.setattr(huge_pages, "_asks_for_pages", lambda: True)
    monkeypatch.setattr(os, "confstr", lambda name: version)
    monkeypatch.setattr(os, "execv", lambda *args: pytest.fail("restarted"))
    huge_pages.restart_with_huge_pages()


def test_a_system_that_does_not_start_it_again(monkeypatch):
    def refuse(*args):
        raise PermissionError

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(huge_pages, "_asks_for_pages", lambda: True)
    monkeypatch.setattr(huge_pages, "_has_setting", lambda: True)
    monkeypatch.setattr(os, "execv", refuse)
    huge_pages.restart_with_huge_pages()
    assert "GLIBC_TUNABLES" not in os.environ
    assert "CYCLEQD_RESTARTED" not in os.environ
