"""The Docker backend with a stand-in for the ``docker`` command: its arguments, and the handling of its answers.

The stand-in isolates nothing. Only the last test needs a real engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cycleqd_jax.sandbox import Completed, DockerBox, InfraError, Killed, Limits, Sandbox
from cycleqd_jax.sandbox.docker import Docker

# Runs commands as this user, in a folder per container. Unknown options are errors, as in the real command.
FAKE = r"""#!{python}
import json, os, select, shutil, signal, subprocess, sys
state = {state!r}
args = sys.argv[1:]
with open(state + "/calls", "a") as file:
    file.write(json.dumps(args) + "\n")

def fail(code, words):
    print(words, file=sys.stderr)
    sys.exit(code)

def options(valued, flags):
    found = []
    while args and args[0].startswith("-"):
        name, _, value = args.pop(0).partition("=")
        if name in flags:
            found.append((name, None))
        elif name in valued:
            found.append((name, value or args.pop(0)))
        else:
            fail(125, f"unknown flag: {{name}}")
    return found

def remember(name):
    with open(f"{{state}}/{{name}}.pids", "a") as file:
        file.write(f"{{os.getpid()}}\n")

def remove(name):
    pids = [int(pid) for pid in open(f"{{state}}/{{name}}.pids").read().split()]
    for suffix in (".json", ".pids"):
        os.unlink(f"{{state}}/{{name}}{{suffix}}")
    shutil.rmtree(f"{{state}}/{{name}}", ignore_errors=True)
    for pid in pids:
        try: os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError: pass
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if f"CYCLEQD_FAKE={{name}}".encode() in open(f"/proc/{{pid}}/environ", "rb").read():
                os.kill(int(pid), signal.SIGKILL)
        except OSError: pass

if os.path.exists(state + "/down"):
    fail(1, "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?")
verb = args.pop(0)
if verb in ("image", "container"):
    verb += " " + args.pop(0)
if verb == "version":
    options(("--format",), ())
    print("28.2.2")
elif verb == "image inspect":
    options(("--format",), ())
    if args != ["local-os/default"]:
        fail(1, f"Error response from daemon: No such image: {{args[0]}}:latest")
    print("sha256:" + "ab" * 32)
elif verb == "container inspect":
    options(("--format",), ())
    if not os.path.exists(f"{{state}}/{{args[0]}}.json"):
        fail(1, "Error response from daemon: No such container: " + args[0])
    print("true")
elif verb == "run":
    given = options(
        ("--name", "--hostname", "--user", "--network", "--cap-drop", "--cap-add", "--security-opt", "--memory",
         "--memory-swap", "--pids-limit", "--cpus", "--ulimit", "--workdir", "--pull", "--entrypoint"),
        ("--rm", "--interactive", "--init"))
    image, *command = args
    name = dict(given)["--name"]
    os.mkdir(f"{{state}}/{{name}}")
    remember(name)
    with open(f"{{state}}/{{name}}.json", "w") as file:
        json.dump(given, file)
    if os.path.exists(state + "/refuses"):
        fail(125, "docker: Error response from daemon: OCI runtime create failed")
    subprocess.run([dict(given)["--entrypoint"], *command], cwd=f"{{state}}/{{name}}")
    remove(name)
elif verb == "exec":
    given = dict(options(("--workdir",), ("--interactive",)))
    name = args.pop(0)
    if not os.path.exists(f"{{state}}/{{name}}.json"):
        fail(1, "Error response from daemon: No such container: " + name)
    cwd = f"{{state}}/{{name}}" if given["--workdir"] == "/" else given["--workdir"]
    if not os.path.isdir(cwd):
        fail(126, f"OCI runtime exec failed: chdir to cwd ({{cwd}}) set in config.json failed: no such file or directory")
    env = {{**os.environ, "HOME": f"{{state}}/{{name}}", "CYCLEQD_FAKE": name}}
    remember(name)
    # As in the engine, the command ends with its process, not with background processes.
    child = subprocess.Popen(args, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = child.stdout.fileno()
    while True:
        ended = child.poll() is not None
        ready, _, _ = select.select([out], [], [], 0 if ended else 0.02)
        chunk = os.read(out, 65536) if ready else b""
        if chunk:
            os.write(1, chunk)
        elif ended:
            sys.exit(child.returncode if child.returncode >= 0 else 128 - child.returncode)
        elif ready:
            sys.exit((child.wait() + 256) % 256 if child.wait() >= 0 else 128 - child.returncode)
elif verb == "rm":
    options((), ("--force", "--volumes"))
    if not os.path.exists(f"{{state}}/{{args[0]}}.json"):
        fail(1, "Error response from daemon: No such container: " + args[0])
    remove(args[0])
else:
    fail(125, f"docker: {{verb!r}} is not a docker command.")
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, programs = tmp_path / "state", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    docker = programs / "docker"
    docker.write_text(FAKE.format(python=sys.executable, state=str(folder)))
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def box(state: Path) -> Iterator[DockerBox]:
    with Docker().box(Limits(wall_s=10.0, output_bytes=4096), threading.BoundedSemaphore(2)) as box:
        yield box


def _calls(state: Path, verb: str) -> list[list[str]]:
    lines = (state / "calls").read_text().splitlines()
    return [call for call in map(json.loads, lines) if call[0] == verb]


def test_what_a_container_is_started_with(state: Path, box: DockerBox) -> None:
    (call,) = _calls(state, "run")
    line = " ".join(call)
    for words in (
        "--network none",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--memory 576m --memory-swap 576m",
        "--pids-limit 256",
        "--rm",
        "--pull never",
        "fsize=67108864",
    ):
        assert words in line
    assert line.count("--cap-add=") == 14
    assert not {"--privileged", "--volume", "-v", "--mount"} & set(call)


def test_commands(box: DockerBox) -> None:
    done = box.exec(["sh", "-c", "cat; echo err >&2; exit 4"], stdin="in\n")
    assert (done.output, done.exit_code, done.timed_out) == ("in\nerr\n", 4, False)
    assert box.exec(["sh", "-c", "echo $0 $1; echo x > kept", "a b", "c'\"d"]).output == "a b c'\"d\n"
    assert box.exec(["cat", "kept"], trusted=True).output == "x\n"
    assert box.exec(["no-such-program"]).exit_code == 127
    assert box.exec(["true"], cwd="/no/such/folder").exit_code == 126
    assert box.exec(["pwd"], cwd="/usr").output == "/usr\n"
    assert box.exec(["echo", "a\0b"]).exit_code == 127
    assert box.exec(["bash", "-c", "#" * (1 << 17)]).exit_code == 127
    assert box.exec(["echo", *["#" * 100_000] * 30]).exit_code == 127
    assert box.exec(["true"], cwd="/a\0b").exit_code == 126
    big = "y" * 300_000
    assert box.exec(["wc", "-c"], stdin=big).output.strip() == "300000"


def test_limits(box: DockerBox) -> None:
    slow = box.exec(["sh", "-c", "echo begun; sleep 60"], timeout=0.3)
    assert (slow.output, slow.timed_out, slow.exit_code) == ("begun\n", True, None)
    assert slow.seconds < 5
    some = box.exec(["sh", "-c", "yes | head -c 5000"])
    assert (len(some.output), some.truncated, some.exit_code) == (4096, True, 0)
    flood = box.exec(["yes"])
    assert (len(flood.output), flood.truncated, flood.exit_code) == (4096, True, -9)
    begin = time.monotonic()
    assert box.exec(["sh", "-c", "sleep 60 & echo done"]).output == "done\n"
    assert time.monotonic() - begin < 5


def test_a_shell_persists(box: DockerBox) -> None:
    shell = box.shell()
    assert shell.run("cd /usr; X='a b'; f() { echo f; }").output == ""
    assert shell.run('pwd; echo "$X"; f').output == "/usr\na b\nf\n"
    assert shell.run("false").exit_code == 1
    assert shell.run("for i in 1 2; do\n\techo $i\ndone").output == "1\n2\n"
    assert shell.run("printf 'no newline'").output == "no newline"
    assert shell.run("echo out; echo err >&2").output == "out\nerr\n"
    assert shell.run("echo 'unfinished").exit_code not in (0, None)
    long = shell.run("yes | head -c 9000; (exit 3)")
    assert (len(long.output), long.truncated, long.exit_code) == (4096, True, 3)
    assert shell.run("exit 7").exit_code == 7
    assert shell.run("echo [$X]").output == "[]\n"
    assert shell.run("sleep 60", timeout=0.3).timed_out
    assert shell.run("echo hi", timeout=0.3).timed_out  # typed, and read when the first command ends
    assert box.shell().run("echo hi").output == "hi\n"


def test_a_container_that_ends_is_the_fault_of_its_programs(state: Path, box: DockerBox) -> None:
    shell = box.shell()
    assert shell.run("true").ok
    remove = ["sh", "-c", f"rm {state}/{box.name}.json; exit 137"]
    with pytest.raises(Killed, match="a program ended the box"):
        box.exec(remove)
    with pytest.raises(Killed, match="closed"):
        box.exec(["true"])


def test_an_engine_that_goes_away_is_no_score(state: Path, box: DockerBox) -> None:
    assert box.exec(["true"]).ok
    (state / "down").touch()
    with pytest.raises(InfraError, match="expected the Docker engine to answer"):
        box.exec(["true"])
    (state / "down").unlink()


def test_missing_parts_are_errors(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InfraError, match=r"expected the image other .*docker pull other"):
        Docker("other")
    (state / "refuses").touch()
    with pytest.raises(InfraError, match="OCI runtime create failed"):
        Docker().box(Limits(), threading.BoundedSemaphore(1))
    (state / "down").touch()
    with pytest.raises(InfraError, match="expected a Docker engine, got"):
        Docker()
    monkeypatch.setenv("PATH", str(state))
    with pytest.raises(InfraError, match="expected the docker command, got no such program"):
        Docker()


def test_nothing_is_left(state: Path) -> None:
    docker = Docker()
    boxes = [docker.box(Limits(), threading.BoundedSemaphore(4)) for _ in range(4)]
    for box in boxes:
        box.exec(["sh", "-c", "sleep 300 & echo x > leak"])
        box.shell().run("sleep 300 &")
    boxes[0].close()
    boxes[0].close()
    docker.close()
    assert sorted(os.listdir(state)) == ["calls"]
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and _belongs(pid, f"HOME={state}/")]


def _belongs(pid: str, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def test_a_container_ends_with_this_process(state: Path) -> None:
    code = f"""
import sys, threading
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from cycleqd_jax.sandbox import Limits
from cycleqd_jax.sandbox.docker import Docker
import os
box = Docker().box(Limits(), threading.BoundedSemaphore(1))
os.kill(os.getpid(), 9)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    deadline = time.monotonic() + 10
    while sorted(os.listdir(state)) != ["calls"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sorted(os.listdir(state)) == ["calls"]


def test_the_sandbox_makes_its_boxes_there(state: Path) -> None:
    with Sandbox("none", backend="docker") as sandbox:
        assert sandbox.system == "docker sha256:" + "ab" * 32
        assert "local-os/default" in sandbox.boxes
        assert sandbox.run_python("print(1)").output == "1\n"
        box = sandbox.box()
        assert isinstance(box, DockerBox)
        assert box.exec(["echo", "here"]).output == "here\n"
    assert sorted(os.listdir(state)) == ["calls"]
    with pytest.raises(InfraError, match="expected an open sandbox, got one that was closed"):
        sandbox.box()
    with pytest.raises(ValueError, match="remove rootfs"):
        Sandbox(backend="docker", rootfs="/x")
    with pytest.raises(ValueError, match="bwrap or docker"):
        Sandbox(backend="podman")


@pytest.mark.docker
def test_a_real_engine() -> None:
    try:
        docker = Docker(os.environ.get("CYCLEQD_IMAGE", "local-os/default"))
    except InfraError as error:
        pytest.skip(str(error))
    with docker.box(Limits(wall_s=20.0), threading.BoundedSemaphore(1)) as box:
        assert isinstance(box.exec(["true"]), Completed)
        assert box.exec(["id", "-u"]).output == "0\n"
        assert box.exec(["sh", "-c", "echo a >&2; exit 3"]).exit_code == 3
        assert box.exec(["sleep", "60"], timeout=0.5).timed_out
        shell = box.shell()
        shell.run("useradd -m ann; su ann")
        assert shell.run("whoami").output == "ann\n"
        assert not box.exec(["sh", "-c", "cat < /dev/tcp/1.1.1.1/80"]).ok
