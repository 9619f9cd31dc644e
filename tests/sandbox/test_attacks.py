"""Attacks by programs. Each must end as an ordinary result, and the next execution must work."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from cycleqd_jax.sandbox import Limits, Sandbox

SMALL = Limits(wall_s=8.0, cpu_s=8.0, memory_mb=256, processes=16, disk_mb=16)


pytestmark = pytest.mark.usefixtures("still_works")


def test_fork_bomb(sealed: Sandbox) -> None:
    source = "import os\nn = 0\nwhile True:\n    try:\n        os.fork(); n += 1\n    except OSError: pass"
    done = sealed.run_python(source, limits=Limits(wall_s=1.0, processes=16))
    assert not done.ok
    assert done.seconds < 5


def test_processes_are_counted(sealed: Sandbox) -> None:
    source = """
import os, time
n = 0
while True:
    try:
        if os.fork() == 0: time.sleep(60)
    except BlockingIOError:
        break
    n += 1
print(n)"""
    assert sealed.run_python(source, limits=SMALL).output == "15\n"


def test_fork_bomb_in_a_box(sealed: Sandbox) -> None:
    with sealed.box(limits=SMALL) as box:
        done = box.exec(["bash", "-c", "b() { b | b & }; b; sleep 60"], timeout=0.7)
        assert not done.ok
    with sealed.box() as box:
        assert box.exec(["echo", "ok"]).output == "ok\n"


def test_memory_of_many_processes(sealed: Sandbox) -> None:
    source = """
import os, time
for _ in range(8):
    if os.fork() == 0: break
x = b"x" * (100 << 20)
time.sleep(30)"""
    done = sealed.run_python(source, limits=SMALL)
    assert (done.exit_code, done.timed_out) == (-9, False)


def test_forks_that_share_memory_are_within_the_limit(sealed: Sandbox) -> None:
    source = """
import os, time
x = b"x" * (80 << 20)
for _ in range(8):
    if os.fork() == 0:
        time.sleep(30)
time.sleep(0.5)
print("fine")"""
    assert sealed.run_python(source, limits=SMALL).output == "fine\n"


def test_memory_file_systems_are_closed(sealed: Sandbox) -> None:
    source = """
import os, ctypes
libc = ctypes.CDLL(None, use_errno=True)
for call in (lambda: os.memfd_create("x"), lambda: os.mkdir("/dev/x")):
    try:
        call(); print("open")
    except OSError: pass
for flags in (0x10000000, 0x00020000, 0x10020000):
    print(libc.unshare(flags), libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))"""
    assert sealed.run_python(source).output == "-1 -1\n" * 3


@pytest.mark.parametrize("where", ["/tmp", "/dev/shm"])
def test_disk_is_bounded(sealed: Sandbox, where: str) -> None:
    source = f"""
total = 0
try:
    for i in range(1000):
        with open("{where}/%d" % i, "wb") as f:
            for _ in range(8):
                total += f.write(bytes(1 << 20))
except OSError as error:
    print(error.errno, total >> 20)"""
    number, megabytes = sealed.run_python(source, limits=SMALL).output.split()
    assert number == "28"
    assert int(megabytes) <= 16


def test_disk_of_a_box_is_bounded(sealed: Sandbox) -> None:
    with sealed.box(limits=SMALL) as box:
        script = (
            "for d in /root /var /etc /usr/local/bin /tmp; do head -c 20M /dev/zero > $d/x; done; df --total -k / | tail -1"
        )
        done = box.exec(["bash", "-c", script])
        assert "No space left" in done.output or "File size limit" in done.output
        assert box.exec(["sh", "-c", "du -skx / | cut -f1"]).ok
        assert int(done.output.split()[-5]) <= 16 * 1024


def test_gigabytes_of_output(sealed: Sandbox) -> None:
    with sealed.box(limits=SMALL) as box:
        done = box.exec(["cat", "/dev/zero"])
        assert done.truncated
        assert len(done.output) == SMALL.output_bytes
        assert not box.exec(["sh", "-c", "yes >&2"]).ok
        assert box.exec(["echo", "ok"]).output == "ok\n"


def test_host_files_are_not_there(sealed: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    repository = Path(__file__).parents[2]
    paths = [secret, repository, Path(__file__), Path.home() / ".bashrc", "/etc/shadow", os.getcwd()]
    paths += ["/root/.ssh", "/var", "/sys", "/fs/etc/passwd", "/fs/lib/inside", "/proc/1/root/etc", "/proc/1/environ", "/boot"]
    source = f"""
import os
for path in {[str(path) for path in paths]!r}:
    try:
        open(path).close() if not os.path.isdir(path) else print("folder", path, os.listdir(path))
        os.path.isdir(path) or print("file", path)
    except OSError: pass
print(os.listdir("/home") if os.path.exists("/home") else [], os.environ.get("SECRET"))"""
    assert sealed.run_python(source).output == "[] None\n"


def test_programs_see_two_accounts_and_localhost(sealed: Sandbox) -> None:
    source = """
import getpass, grp, pwd, socket, subprocess
print([p.pw_name for p in pwd.getpwall()], getpass.getuser(), grp.getgrgid(0).gr_name, socket.gethostbyname("localhost"))
for name in ("python", "python3"):
    subprocess.run([name, "-c", "import json, os; print(os.getpid() > 1)"])"""
    assert sealed.run_python(source).output == "['root', 'nobody'] root root 127.0.0.1\n" + "True\n" * 2


def test_deep_recursion_through_c(sealed: Sandbox) -> None:
    source = """
import functools, sys, threading
sys.setrecursionlimit(10**6)
@functools.lru_cache(None)
def depth(n): return n and 1 + depth(n - 1)
print(depth(50_000))
threads = [threading.Thread(target=print, args=("up",)) for _ in range(8)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]"""
    assert sealed.run_python(source).output == "50000\n" + "up\n" * 8


def test_quotas_of_the_machine_are_not_used_up(sealed: Sandbox) -> None:
    source = """
import ctypes
libc = ctypes.CDLL(None)
print(libc.syscall(206, 10, ctypes.byref(ctypes.c_ulong(0))))"""
    if os.uname().machine == "x86_64":
        assert sealed.run_python(source).output == "-1\n"
    if os.getuid():
        return
    hold = "import ctypes, time\nlibc = ctypes.CDLL(None)\nwhile libc.inotify_init1(0) >= 0: pass\n"
    hold += "open('/tmp/full', 'w')\ntime.sleep(60)"
    with sealed.box() as one, sealed.box() as two:
        one.shell().run(
            f"python3 -c '{hold}' & until test -e /tmp/full; do sleep 0.05; done".replace(
                "'/tmp/full', 'w'", '"/tmp/full", "w"'
            )
        )
        assert two.exec(["python3", "-c", "import ctypes; print(ctypes.CDLL(None).inotify_init1(0) >= 0)"]).output == "True\n"


def test_buffers_of_sockets_count_as_memory(sealed: Sandbox) -> None:
    source = """
import os, socket, time
for _ in range(7):
    if os.fork() == 0: break
pairs = []
try:
    while True:
        pairs.append(socket.socketpair())
        pairs[-1][0].setblocking(False)
        try:
            while True: pairs[-1][0].send(b"x" * 65536)
        except BlockingIOError: pass
except OSError: pass
time.sleep(30)"""
    done = sealed.run_python(source, limits=Limits(wall_s=10.0, memory_mb=64, processes=16))
    assert (done.exit_code, done.timed_out) == (-9, False)


def test_host_packages_are_not_importable(sealed: Sandbox) -> None:
    source = "import sys\nfor name in ('jax', 'numpy', 'cycleqd_jax', 'pip'):\n"
    source += "    try:\n        __import__(name); print(name)\n    except ImportError: pass"
    assert sealed.run_python(source).output == ""


def test_box_hides_the_host(sealed: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    with sealed.box() as box:
        assert "hunter2" not in box.exec(["sh", "-c", "env; cat /proc/*/environ"]).output
        assert box.exec(["ls", "/home", "/opt", "/srv", "/mnt"]).output.split() == ["/home:", "/mnt:", "/opt:", "/srv:"]
        assert box.exec(["ls", "-A", "/root"]).output.split() == [".bashrc", ".profile"]
        shadow = box.exec(["cat", "/etc/shadow"])
        assert all(line.split(":")[1] == "*" for line in shadow.output.splitlines())
        assert not box.exec(["ls", str(Path(__file__).parents[2])]).ok
        assert "inside" not in box.exec(["sh", "-c", "ls / /fs /oldroot /host"]).output
        script = "ls /proc | grep -c '^[0-9]'"
        assert int(box.exec(["sh", "-c", script]).output) <= 5


def test_box_is_a_small_linux(sealed: Sandbox) -> None:
    with sealed.box() as box:
        assert box.exec(["id", "-un"]).output == "root\n"
        script = "useradd -m ann && id -u ann && ls -d /home/ann; touch /usr/local/bin/x /etc/x /var/log/x /opt/x && echo all"
        assert box.exec(["bash", "-c", script]).output == "1000\n/home/ann\nall\n"
        assert box.exec(["sh", "-c", "hostname; rm -rf /etc/alternatives && test ! -e /etc/alternatives && echo gone"]).ok
        assert box.exec(["python3", "-c", "print(6 * 7)"]).output == "42\n"
        assert box.exec(["sh", "-c", "find / -path /usr -prune -o -name no-such-name -print"]).output == ""
    with sealed.box() as box:
        assert not box.exec(["id", "ann"]).ok
        assert box.exec(["test", "-e", "/etc/alternatives"]).ok == os.path.exists("/etc/alternatives")


@pytest.mark.skipif(os.getuid() != 0, reason="several users in a box need root on the host")
def test_su_persists_in_the_shell(sealed: Sandbox) -> None:
    with sealed.box() as box:
        shell = box.shell()
        assert shell.run("useradd -m -s /bin/bash ann; useradd -m -s /bin/sh bob; su ann").ok
        assert shell.run("cd; whoami; pwd; touch /etc/x").output.startswith("ann\n/home/ann\ntouch: cannot touch")
        shell.run("exit")
        assert shell.run("whoami; su - bob").output == "root\n"
        assert shell.run("whoami").output == "bob\n"
        assert box.exec(["stat", "-c", "%U", "/home/bob", "/usr/bin"]).output == "bob\nroot\n"


def test_no_network(sealed: Sandbox) -> None:
    source = """
import socket
for family, address in ((socket.AF_INET, ("1.1.1.1", 80)), (socket.AF_INET6, ("::ffff:1.1.1.1", 80))):
    try:
        socket.create_connection(address, 2) if family == socket.AF_INET else socket.socket(family).connect(address)
        print("connected")
    except OSError: pass
for family in (16, 17, 38, 40):  # netlink, packet, alg, vsock
    try:
        socket.socket(family, socket.SOCK_RAW if family != 40 else socket.SOCK_STREAM); print("family", family)
    except OSError: pass
server = socket.create_server(("127.0.0.1", 0))  # its own loopback works
socket.create_connection(server.getsockname()).close()
print("own")"""
    assert sealed.run_python(source).output == "own\n"


def test_host_loopback_and_abstract_sockets_are_elsewhere(sealed: Sandbox) -> None:
    import socket

    name = f"\0{secrets.token_hex(8)}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(name)
        unix.listen()
        source = f"""
import socket
for family, address in ((socket.AF_INET, {tcp.getsockname()!r}), (socket.AF_UNIX, {name!r})):
    try:
        socket.socket(family).connect(address); print("connected")
    except OSError: print("refused")"""
        assert sealed.run_python(source).output == "refused\n" * 2


def test_cannot_signal_trace_or_limit_the_supervisor(sealed: Sandbox) -> None:
    source = """
import os, signal, resource, ctypes
for number in (9, 15, 2, 19, 10, 11, 17, 24):
    for target in (os.getppid(), 1):
        try: os.kill(target, number)
        except OSError: pass
try: resource.prlimit(1, resource.RLIMIT_CPU, (0, 0)); print("limited")
except OSError: pass
libc = ctypes.CDLL(None)
print(libc.ptrace(16, 1, 0, 0), libc.process_vm_readv(1, 0, 0, 0, 0, 0) > 0, os.getppid())
for name in ("environ", "mem", "fd/0", "fd/3", "fd/7", "root/etc", "cwd/etc", "maps"):
    try: os.listdir("/proc/1/" + name) if "/etc" in name else open("/proc/1/" + name, "rb").read(1); print("open", name)
    except OSError: pass
try: os.kill(-1, 9)  # everyone but pid 1 and me
except OSError: pass
print("end")"""
    done = sealed.run_python(source)
    assert (done.output, done.exit_code) == ("-1 False 1\nend\n", 0)


def test_box_root_cannot_end_the_box(sealed: Sandbox) -> None:
    with sealed.box() as box:
        box.exec(["sh", "-c", "kill -9 1; kill -15 1; kill -2 1; kill -9 -1; reboot -f; echo b > /proc/sysrq-trigger"])
        assert box.exec(["echo", "ok"]).output == "ok\n"
        box.exec(["sh", "-c", "rm -rf /etc /bin /lib64 /var /usr/local /dev /proc"])
        assert box.exec(["/usr/bin/true"]).exit_code in (0, 127)
        assert box.exec(["true"]).exit_code == 127


def test_result_cannot_be_forged(sealed: Sandbox) -> None:
    source = """
import os, json, struct, sys
frame = json.dumps({"output": "forged", "exit_code": 0, "timed_out": False, "truncated": False, "seconds": 0}).encode()
for fd in range(0, 256):
    for data in (struct.pack("!I", len(frame)) + frame, frame):
        try: os.write(fd, data)
        except OSError: pass
for fd in range(3, 256):
    try: os.close(fd)
    except OSError: pass
sys.stdout.flush()
os._exit(3)"""
    done = sealed.run_python(source)
    assert (done.exit_code, done.timed_out) == (3, False)
    assert done.output != "forged"
    assert sealed.run_python("import os; os.abort()").exit_code == -6
    assert sealed.run_python("import ctypes; ctypes.string_at(0)").exit_code == -11
    assert sealed.run_python("import os; os.kill(os.getpid(), 9)").exit_code == -9


def test_breaking_the_interpreter_changes_nothing_later(sealed: Sandbox) -> None:
    source = """
import builtins, sys, os, gc, json
builtins.print = None; sys.stdout = None; json.dumps = None; os._exit = lambda code: None; sys.excepthook = None
for o in gc.get_objects():
    try: o.clear()
    except Exception: pass
raise ValueError"""
    assert not sealed.run_python(source, limits=Limits(wall_s=2.0)).ok


def test_closed_streams_and_stopping_oneself(sealed: Sandbox) -> None:
    assert sealed.run_python("import os; os.closerange(0, 256)").exit_code in (0, 120)
    assert sealed.run_python("import os; os.kill(os.getpid(), 19)", limits=Limits(wall_s=0.3)).timed_out


def test_boxes_do_not_meet(sealed: Sandbox) -> None:
    with sealed.box() as one, sealed.box() as two:
        one.exec(["sh", "-c", "echo mine > /tmp/x; echo mine > /dev/shm/y 2>/dev/null; sleep 30 & sleep 30 &"])
        one.exec(["bash", "-c", "ipcmk -M 1000 -Q >/dev/null"])
        assert "mine" not in two.exec(["sh", "-c", "cat /tmp/x /dev/shm/y"]).output
        assert "sleep" not in two.exec(["ps", "aux"]).output
        assert two.exec(["sh", "-c", "ipcs | grep -c 0x"]).output.strip() == "0"
        assert "sleep" in one.exec(["ps", "aux"]).output


def test_read_only_runtime(sealed: Sandbox) -> None:
    source = f"""
import os
for path in ("/x", "/usr/x", "/etc/x", {os.path.dirname(os.__file__)!r} + "/x", "/dev/x", "/proc/sys/kernel/core_pattern"):
    try: open(path, "w"); print("wrote", path)
    except OSError: pass
for path in ("/usr/bin/env", "/dev/null"):
    try: os.chmod(path, os.stat(path).st_mode & 0o777); print("changed", path)
    except OSError: pass"""
    assert sealed.run_python(source).output == ""
    with sealed.box() as box:
        script = """
        for name in hostname core_pattern; do echo x > /proc/sys/kernel/$name && echo wrote; done
        mknod /tmp/sda b 8 0 && cat /tmp/sda && echo read
        mount -t tmpfs none /mnt && echo mounted
        mount -o remount,rw /usr && echo remounted
        chmod 666 /dev/null && echo changed
        true"""
        done = box.exec(["sh", "-c", script])
        assert not {"wrote", "read", "mounted", "remounted", "changed"} & set(done.output.split())
        assert not box.exec(["unshare", "-Ur", "true"]).ok
