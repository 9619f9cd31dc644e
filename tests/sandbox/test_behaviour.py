"""Behaviour of every isolation, including ``none``."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cycleqd_jax.sandbox import Completed, Killed, Limits, Sandbox, detect
from cycleqd_jax.sandbox.inside.folders import remove_tree

ECHO = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message == "die":
        raise SystemExit("as asked")
    if message == "spin":
        while True: pass
    if message == "flood":
        print("x" * 10_000_000)
    if message == "chatter":
        sys.stderr.write("x" * 100_000)
    print(json.dumps({"echo": message}), flush=True)
"""


def test_program_output_and_exit_code(sandbox: Sandbox) -> None:
    done = sandbox.run_python("print('one')\nimport sys\nprint('two', file=sys.stderr)\nprint('drei ü')\nsys.exit(3)")
    assert (done.output, done.exit_code, done.timed_out, done.truncated) == ("one\ntwo\ndrei ü\n", 3, False, False)
    assert not done.ok
    assert 0 < done.seconds < 5
    assert sandbox.run_python("print(1)").ok
    silent = "import sys\nclass Reason:\n    def __str__(self): raise ValueError\nsys.exit(Reason())"
    assert sandbox.run_python(silent).exit_code == 1
    assert sandbox.run_python("import os\nos._exit = None\nprint(1)").output == "1\n"


def test_program_is_an_ordinary_main_module(sandbox: Sandbox) -> None:
    source = """
import __main__, sys, os, inspect
assert __name__ == "__main__" and __main__.__dict__ is globals()
assert not any("inside" in name.split(".") for name in sys.modules)
assert not any("site-packages" in path or path == "" for path in sys.path)
assert sorted(os.environ) == ["HOME", "LANG", "PATH"], os.environ
def f(): return 1
assert inspect.getsource(f) == "def f(): return 1\\n"
assert sys.getrecursionlimit() == 1000 and sys.argv[1:] == []
import atexit, threading
atexit.register(print, "at exit")
threading.Timer(0.05, print, ["thread"]).start()
"""
    assert sandbox.run_python(source).output == "thread\nat exit\n"


def test_standard_library_is_there(sandbox: Sandbox) -> None:
    source = "import wave, sqlite3, encodings.idna, zoneinfo, concurrent.futures, asyncio, xml.etree.ElementTree, ctypes\n"
    source += "print(asyncio.run(asyncio.sleep(0, 'ok')), sqlite3.connect(':memory:').execute('select 1').fetchone())"
    assert sandbox.run_python(source).output == "ok (1,)\n"


def test_program_traceback_names_its_own_lines_only(sandbox: Sandbox) -> None:
    done = sandbox.run_python("def f():\n    raise ValueError('no')\nf()\n")
    assert done.exit_code == 1
    assert done.output.count("File ") == 2
    assert "raise ValueError('no')" in done.output
    assert sandbox.run_python("def f(:").exit_code == 1
    assert "null bytes" in sandbox.run_python("a = 1\0").output
    assert sandbox.run_python("print('\ud800')").exit_code == 1


def test_stdin(sandbox: Sandbox) -> None:
    text = "é\n" * 200_000
    done = sandbox.run_python("import sys; print(len(sys.stdin.read()))", stdin=text)
    assert done.output == "400000\n"
    assert sandbox.run_python("print(repr(input()))", stdin="x").output == "'x'\n"
    assert "EOFError" in sandbox.run_python("input()").output
    named = "open('/dev/stdout', 'w').write(open('/dev/stdin').read()); open('/dev/stderr', 'w').write('err')"
    assert sandbox.run_python(named, stdin="in ").output == "in err"


def test_runs_share_nothing(sandbox: Sandbox) -> None:
    writer = "import builtins, os\nbuiltins.mine = 1\nopen('mark', 'w').write('x')\nprint(os.getcwd())"
    assert sandbox.run_python(writer).ok
    assert sandbox.run_python("import os\nprint(os.listdir('.'))\nmine").output.startswith("['main.py']\nTraceback")


def test_set_order_is_the_same_in_every_run(sandbox: Sandbox) -> None:
    source = "print(list({str(i) for i in range(50)}))"
    with Sandbox(sandbox.isolation.name) as other:
        assert other.run_python(source).output == sandbox.run_python(source).output


def test_wall_clock(sandbox: Sandbox) -> None:
    begin = time.monotonic()
    done = sandbox.run_python("print('begun')\nimport time; time.sleep(60)", limits=Limits(wall_s=0.3))
    assert time.monotonic() - begin < 3
    assert (done.output, done.exit_code, done.timed_out, done.ok) == ("begun\n", None, True, False)


def test_cpu_clock(sandbox: Sandbox) -> None:
    done = sandbox.run_python("while True: pass", limits=Limits(wall_s=20.0, cpu_s=1.0))
    assert done.timed_out
    assert done.exit_code is None
    assert done.seconds < 15


def test_memory_of_a_process(sandbox: Sandbox) -> None:
    done = sandbox.run_python("x = bytearray(1 << 30)", limits=Limits(memory_mb=200))
    assert done.exit_code == 1
    assert "MemoryError" in done.output


def test_output_is_cut_and_a_flood_is_ended(sandbox: Sandbox) -> None:
    some = sandbox.run_python("print('é' * 1000)", limits=Limits(output_bytes=101))
    assert (some.exit_code, some.truncated) == (0, True)
    assert some.output == "é" * 50 + "\ufffd"
    begin = time.monotonic()
    flood = sandbox.run_python("while True: print('x' * 100000)", limits=Limits(wall_s=20.0, output_bytes=1000))
    assert flood.truncated
    assert flood.exit_code == -9
    assert len(flood.output) == 1000
    assert time.monotonic() - begin < 10


def test_background_children_do_not_delay_or_outlive(sandbox: Sandbox) -> None:
    source = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)\nprint('parent')"
    done = sandbox.run_python(source)
    assert done.output == "parent\n"
    assert done.seconds < 5


def test_session(sandbox: Sandbox) -> None:
    with sandbox.session(ECHO) as session:
        assert session.request({"a": [1, None, "é"]}) == {"echo": {"a": [1, None, "é"]}}
        assert session.request("chatter") == {"echo": "chatter"}
        assert session.request("y" * 300_000) == {"echo": "y" * 300_000}


@pytest.mark.parametrize(("message", "reason"), [("die", "as asked"), ("spin", "longer than"), ("flood", "bytes")])
def test_session_killed(sandbox: Sandbox, message: str, reason: str) -> None:
    with sandbox.session(ECHO) as session:
        assert session.request(1) == {"echo": 1}
        with pytest.raises(Killed, match=reason):
            session.request(message, timeout=0.5)
        with pytest.raises(Killed):
            session.request(2)


def test_session_cpu_is_counted_per_request(sandbox: Sandbox) -> None:
    server = "import sys, time\nfor _ in sys.stdin:\n    end = time.process_time() + 0.4\n"
    server += "    while time.process_time() < end: pass\n    print(1, flush=True)"
    with sandbox.session(server, limits=Limits(wall_s=10.0, cpu_s=1.0)) as session:
        assert [session.request(0) for _ in range(3)] == [1] * 3


def test_box_exec(sandbox: Sandbox) -> None:
    with sandbox.box() as box:
        done = box.exec(["sh", "-c", "cat; echo err >&2; exit 4"], stdin="in\n")
        assert (done.output, done.exit_code) == ("in\nerr\n", 4)
        assert box.exec(["sh", "-c", "echo x > kept"]).ok
        assert box.exec(["cat", "kept"]).output == "x\n"
        assert box.exec(["no-such-program"]).exit_code == 127
        assert box.exec(["true"], cwd="/no/such/folder").exit_code == 126
        assert box.exec(["true"], cwd="/a\0b").exit_code == 126
        assert box.exec([]).exit_code == 1
        assert box.exec(["pwd"], cwd="/usr").output == "/usr\n"
        slow = box.exec(["sleep", "60"], timeout=0.2)
        assert (slow.timed_out, slow.exit_code) == (True, None)
        assert box.exec(["true"]).ok


def test_shell(sandbox: Sandbox) -> None:
    with sandbox.box() as box:
        shell = box.shell()
        assert shell.run("cd /usr; X='a b'; f() { echo f; }").output == ""
        assert shell.run('pwd; echo "$X"; f').output == "/usr\na b\nf\n"
        failed = shell.run("no-such-thing\nfalse")
        assert failed.output.startswith("bash: no-such-thing:")
        assert failed.exit_code == 1
        assert shell.run("echo 'unfinished").exit_code not in (0, None)
        assert shell.run("").exit_code == 0
        assert shell.run("for i in 1 2; do\n\techo $i\ndone # tabs stay").output == "1\n2\n"
        assert shell.run("echo out; echo err >&2; echo again > /dev/stdout").output == "out\nerr\nagain\n"
        assert shell.run("echo " + "z" * 20_000).output == "z" * 20_000 + "\n"
        assert shell.run("printf 'no newline'").output == "no newline"
        assert shell.run("sh -c 'echo $0' & wait").output.endswith("\nsh\n")


def test_shell_ends_and_begins_anew(sandbox: Sandbox) -> None:
    with sandbox.box() as box:
        shell = box.shell()
        assert shell.run("X=1; exit 7").exit_code == 7
        assert shell.run("echo [$X]").output == "[]\n"
        assert box.shell().run("echo hi").output == "hi\n"
        assert box.shell().run("cat", timeout=0.3).timed_out


def test_a_shell_goes_on_after_a_timeout(sandbox: Sandbox) -> None:
    with sandbox.box() as box:
        shell = box.shell()
        slow = shell.run("echo begun; sleep 1; echo late", timeout=0.4)
        assert (slow.output, slow.timed_out, slow.exit_code) == ("begun\n", True, None)
        assert shell.run("echo next").output == "late\nnext\n"
        assert shell.run("cat", timeout=0.4).output == ""
        asked = shell.run("to the program", timeout=0.4)
        assert (asked.output, asked.timed_out) == ("to the program\n", True)
        assert box.exec(["true"]).ok


def test_many_at_once(sandbox: Sandbox) -> None:
    def one(i: int) -> Completed:
        return sandbox.run_python(f"import os\nopen('f', 'w').write('{i}')\nprint(open('f').read(), sorted(os.listdir()))")

    before = set(threading.enumerate())
    with ThreadPoolExecutor(8) as pool:
        outputs = [done.output for done in pool.map(one, range(200))]
    assert outputs == [f"{i} ['f', 'main.py']\n" for i in range(200)]
    assert set(threading.enumerate()) <= before


def test_boxes_at_once(sandbox: Sandbox) -> None:
    boxes = [sandbox.box() for _ in range(8)]
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: boxes[i].exec(["sh", "-c", f"echo {i} > mine"]), range(8)))
            outputs = list(pool.map(lambda box: box.exec(["cat", "mine"]).output, boxes))
        assert outputs == [f"{i}\n" for i in range(8)]
    finally:
        for box in boxes:
            box.close()


def test_detect_is_ordered_and_describes_isolations() -> None:
    found = detect()
    names = [isolation.name for isolation in found]
    assert names == [name for name in ("bwrap", "userns", "none") if name in names]
    assert "none" in names
    assert all(isolation.description for isolation in found)


@pytest.mark.parametrize("field", ["wall_s", "cpu_s", "memory_mb", "processes", "disk_mb", "output_bytes"])
def test_limits_are_positive(field: str) -> None:
    zero = 0.0 if field in ("wall_s", "cpu_s") else 0
    with pytest.raises(ValueError, match=field):
        Limits(**{field: zero})


@pytest.mark.exhaustive
def test_deep_folders_are_removed(tmp_path) -> None:
    with Sandbox("none", workers=2) as sandbox:
        source = "import os\nos.chdir(os.environ['HOME'])\nfor n in range(3000): os.mkdir('d'); os.chdir('d')\n"
        source += "open('f', 'w')\nos.chmod('.', 0)"
        assert sandbox.run_python(source).ok
        with sandbox.box() as box:
            box.exec(["sh", "-c", "echo kept > mine"])
            assert sandbox.run_python(source).ok
            assert box.exec(["cat", "mine"]).output == "kept\n"
        folder = sandbox._worker._finalizer.peek()[2][3]
    assert not os.path.exists(folder)


def test_remove_tree_follows_no_links(tmp_path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    tree = tmp_path / "tree" / "a" / "b"
    tree.mkdir(parents=True)
    (tree / "link").symlink_to(kept)
    (tree / "locked").mkdir(mode=0)
    remove_tree(str(tmp_path / "tree"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "kept"]
