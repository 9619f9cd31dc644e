"""Atomic writes, locks and digests."""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from cycleqd_jax.files import (
    digest,
    load_json,
    locked,
    make_folder,
    replacing,
    replacing_folder,
    write_bytes,
    write_json,
    write_text,
)
from cycleqd_jax.types import InputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_written_files_have_their_content(tmp_path):
    write_bytes(tmp_path / "new" / "bytes", b"\x00\n\xff")
    write_text(tmp_path / "text", "ω\n")
    write_json(tmp_path / "json", {"b": [1, 0.1], "ä": None})
    assert (tmp_path / "new" / "bytes").read_bytes() == b"\x00\n\xff"
    assert (tmp_path / "text").read_bytes() == "ω\n".encode()
    assert (tmp_path / "json").read_text("utf-8") == '{\n  "b": [\n    1,\n    0.1\n  ],\n  "ä": null\n}\n'
    assert names(tmp_path) == ["json", "new", "text"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_sets_the_mode(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_exception_the_old_file_remains(tmp_path, error):
    path = tmp_path / "file"
    write_text(path, "old")

    def fail():
        with replacing(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}])
def test_numbers_that_json_does_not_have_are_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000])
def test_what_is_no_json_is_one_kind_of_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        load_json(tmp_path / "a.json")


def test_readers_see_the_old_or_the_new_file(tmp_path):
    path = tmp_path / "file"
    contents = ["a" * 100_000, "b" * 200_000]
    write_text(path, contents[0])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for content in contents:
                write_text(path, content)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all(path.read_text() in contents for _ in range(200))
    finally:
        stop.set()
        thread.join()


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    code = (
        "import sys, time\nfrom cycleqd_jax.files import replacing\n"
        f"with replacing({str(path)!r}) as file:\n    file.write(b'new')\n    file.flush()\n    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"


def test_a_folder_replaces_another(tmp_path):
    path = tmp_path / "new" / "folder"
    for text in ("one", "two"):
        with replacing_folder(path) as folder:
            assert folder.name == "folder"
            (folder / text).write_text(text)
        assert names(path) == [text]
        assert names(path.parent) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_exception_the_old_folder_remains(tmp_path, error):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()

    def fail():
        with replacing_folder(path) as folder:
            (folder / "new").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_folder_stays_a_link(tmp_path, exists):
    there = tmp_path / "disk" / "folder"
    if exists:
        there.mkdir(parents=True)
        (there / "old").touch()
    (tmp_path / "link").symlink_to(there)
    with replacing_folder(tmp_path / "link") as folder:
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert (names(there), names(there.parent)) == (["new"], ["folder"])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"expected to create a folder, got .*; choose another folder"),
        replacing_folder(tmp_path / "file" / "a"),
    ):
        pass


def test_make_folder(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    write_text(tmp_path / "file", "")
    with pytest.raises(InputError, match=r"^expected to create a folder, got .* in .*file/c; choose another folder$"):
        make_folder(tmp_path / "file" / "c")


def test_a_held_lock_is_an_error_or_waited_for(tmp_path):
    path, order = tmp_path / "lock", []

    def wait():
        with locked(path, wait=True):
            order.append("second")

    thread = threading.Thread(target=wait)
    with locked(path, wait=False):
        with pytest.raises(InputError, match=r"^expected no other process .*, got another process in .*; wait for it"):
            locked(path, wait=False).__enter__()
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    with locked(path, wait=False):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import time\nfrom cycleqd_jax.files import locked\n"
        f"with locked({str(tmp_path / 'lock')!r}, wait=False):\n    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match="another process"):
            locked(tmp_path / "lock", wait=False).__enter__()
        process.send_signal(signal.SIGKILL)
    with locked(tmp_path / "lock", wait=False):
        pass


def test_digests_depend_on_the_value_only():
    value = {"a": [1, 2.5, None], "b": {"c": "ω"}}
    assert digest(value) == digest(json.loads(json.dumps(dict(reversed(value.items())))))
    assert digest(value) != digest(value | {"a": [1, 2.5]})
    assert len(digest(value)) == 64
    assert digest(value, digits=16) == digest(value)[:16]
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
