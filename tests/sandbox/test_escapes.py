"""Attempts to escape from a program, one by one. An attempt that succeeds prints ESCAPED or other text."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

import pytest

from cycleqd_jax.sandbox import Limits, Sandbox

SMALL = Limits(wall_s=8.0, cpu_s=8.0, memory_mb=256, processes=16, disk_mb=16)
TRY = """
import contextlib, ctypes, errno, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
iov = lambda: (ctypes.c_void_p * 2)(0x400000, 8)
def attempt(action):
    try:
        result = action()
    except (OSError, ValueError):
        return
    if result != -1:
        print("ESCAPED", result)
"""


pytestmark = pytest.mark.usefixtures("still_works")


# ---------------------------------------------------------------------------------------------------------- programs

# Numbers of x86_64 and aarch64; the arguments would be valid for a process that may.
SYSTEM_CALLS = {
    "unshare user namespace": ((272, 97), "0x10000000"),
    "unshare mounts": ((272, 97), "0x20000"),
    "clone into a user namespace": ((56, 220), "0x10000011, 0, 0, 0, 0"),
    "clone3": ((435, 435), "ctypes.create_string_buffer(88), 88"),
    "mount": ((165, 40), "b'none', b'/tmp', b'tmpfs', 0, 0"),
    "new mount interface": ((430, 430), "b'tmpfs', 0"),
    "umount": ((166, 39), "b'/proc', 2"),
    "pivot_root": ((155, 41), "b'/tmp', b'/tmp'"),
    "chroot": ((161, 51), "b'/tmp'"),
    "join a namespace": ((308, 268), "os.open('/proc/self/ns/net', 0), 0"),
    "ptrace": ((101, 117), "16, 1, 0, 0"),
    "read the memory of the supervisor": ((310, 270), "1, iov(), 1, iov(), 1, 0"),
    "take a descriptor of the supervisor": ((438, 438), "libc.syscall(434, 1, 0), 0, 0"),
    "load a module": ((313, 273), "0, b'', 0"),
    "load a module from memory": ((175, 105), "b'', 0, b''"),
    "kexec": ((246, 104), "0, 0, 0, 0"),
    "reboot": ((169, 142), "0xfee1dead, 672274793, 0x1234567, 0"),
    "keyring": ((250, 219), "0, -4, 1"),
    "add a key": ((248, 217), "b'user', b'x', b'x', 1, -4"),
    "bpf": ((321, 280), "5, ctypes.create_string_buffer(128), 128"),
    "perf events": ((298, 241), "ctypes.create_string_buffer(128), 0, -1, -1, 0"),
    "userfaultfd": ((323, 282), "0"),
    "io_uring": ((425, 425), "1, ctypes.create_string_buffer(120)"),
    "open by handle": ((304, 265), "0, ctypes.create_string_buffer(128), 0"),
    "swap": ((167, 224), "b'/tmp/x', 0"),
    "set the clock": ((164, 170), "ctypes.create_string_buffer(16), 0"),
    "process accounting": ((163, 89), "b'/tmp/x'"),
    "kernel log": ((103, 116), "3, ctypes.create_string_buffer(100), 100"),
    "host name": ((170, 161), "b'x', 1"),
    "real-time scheduling": ((144, 119), "0, 1, ctypes.byref(ctypes.c_int(50))"),
    "limits of the supervisor": ((302, 261), "1, 6, ctypes.create_string_buffer(16), 0"),
    "memory outside of every count": ((319, 279), "b'x', 0"),
    "quotas": ((179, 60), "0x800002, 0, 0, 0"),
}


@pytest.mark.parametrize("name", SYSTEM_CALLS)
def test_system_calls(sealed: Sandbox, name: str) -> None:
    numbers, arguments = SYSTEM_CALLS[name]
    number = numbers[os.uname().machine == "aarch64"]
    done = sealed.run_python(f"{TRY}\nattempt(lambda: libc.syscall({number}, {arguments}))\nprint('end')")
    assert (done.output, done.exit_code) == ("end\n", 0)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="older system call tables are x86's")
@pytest.mark.parametrize("table", ["int 0x80", "x32"])
def test_other_system_call_tables(sealed: Sandbox, table: str) -> None:
    if table == "x32":
        code = f"{TRY}\nattempt(lambda: libc.syscall(0x40000000 | 272, 0x10000000))"
        assert sealed.run_python(code).output == ""
        return
    # mov eax, 310 (unshare of i386); mov ebx, CLONE_NEWUSER; int 0x80; ret
    code = f"""{TRY}
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("53b836010000bb00000010cd805bc3"))
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
print("ESCAPED" if call() == 0 else "refused", flush=True)"""
    done = sealed.run_python(code)
    assert "ESCAPED" not in done.output
    assert done.output == "refused\n" or done.exit_code == -31


@pytest.mark.parametrize(
    "path",
    [
        "/dev/mem",
        "/dev/kmem",
        "/dev/port",
        "/dev/kmsg",
        "/dev/sda",
        "/dev/vda",
        "/dev/kvm",
        "/dev/fuse",
        "/dev/net/tun",
        "/dev/ptmx",
        "/dev/tty",
        "/dev/console",
        "/proc/kcore",
        "/proc/kmsg",
        "/proc/1/mem",
        "/proc/1/environ",
        "/proc/1/exe",
        "/proc/1/root/etc/passwd",
        "/proc/1/fd/0",
        "/etc/shadow",
        "/sys/kernel/uevent_seqnum",
        "/sys/fs/cgroup/cgroup.procs",
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/root/.ssh/id_rsa",
        "/root/.aws/credentials",
        "/run/secrets",
    ],
)
def test_private_files(sealed: Sandbox, path: str) -> None:
    source = f"{TRY}\nfor flags in (os.O_RDONLY, os.O_WRONLY, os.O_PATH): attempt(lambda: os.read(os.open({path!r}, flags), 1))"
    assert sealed.run_python(source).output == ""


@pytest.mark.parametrize(
    "path",
    [
        "sys/kernel/core_pattern",
        "sys/kernel/modprobe",
        "sys/vm/drop_caches",
        "sysrq-trigger",
        "self/oom_score_adj",
        "self/uid_map",
        "self/setgroups",
        "1/oom_score_adj",
        "sys/net/ipv4/ip_forward",
        "sys/fs/binfmt_misc/register",
        "irq/0",
    ],
)
def test_kernel_settings(sealed: Sandbox, path: str) -> None:
    source = f"{TRY}\nattempt(lambda: os.write(os.open('/proc/{path}', os.O_WRONLY), b'-1000'))"
    assert sealed.run_python(source).output == ""
    with sealed.box() as box:
        assert "ESCAPED" not in box.exec(["bash", "-c", f"echo -1000 > /proc/{path} && echo ESCAPED"]).output


def test_links_lead_nowhere_else(sealed: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    source = f"""{TRY}
for target in ({str(secret)!r}, "/proc/1/root{secret}", "/proc/1/cwd{secret}", "../" * 40 + {str(secret)[1:]!r}):
    with contextlib.suppress(OSError): os.unlink("/tmp/link")
    os.symlink(target, "/tmp/link")
    attempt(lambda: open("/tmp/link").read())
    attempt(lambda: os.listdir(os.path.dirname(target)) if "pytest" in target else -1)
attempt(lambda: os.link("/usr/bin/env", "/tmp/env"))
attempt(lambda: os.rename("/usr/bin/env", "/tmp/env"))
for folder in ("/proc/self/fd", "/proc/self/task"):
    attempt(lambda: open(folder + "/../../1/root/etc/hostname").read())"""
    assert sealed.run_python(source).output == ""


def test_descriptors_do_not_leak(sealed: Sandbox) -> None:
    listing = "import os; print([fd for fd in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + fd)])"
    assert sealed.run_python(listing).output == "['0', '1', '2']\n"
    with sealed.box() as box:
        assert box.exec(["python3", "-c", listing]).output == "['0', '1', '2']\n"
        # 8 is the shell's own, where it says that a command is done.
        assert box.shell().run(f'python3 -c "{listing}"').output in ("['0', '1', '2']\n", "['0', '1', '2', '8']\n")
        assert box.exec(["bash", "-c", "ls -l /proc/self/fd | grep -c socket"]).output == "0\n"


def test_environment_is_not_the_hosts(sealed: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    names = "import os; print(sorted(set(os.environ) - {'PATH', 'HOME', 'LANG', 'LC_CTYPE', 'PYTHONHASHSEED'}))"
    with Sandbox(sealed.isolation.name) as fresh:  # started while the secret was there
        assert fresh.run_python(names).output == "[]\n"
        assert "hunter2" not in fresh.run_python("print(open('/proc/self/environ').read())").output
        with fresh.box() as box:
            assert "hunter2" not in box.exec(["sh", "-c", "env; cat /proc/*/environ"]).output


def test_pickles_and_ctypes_do_what_programs_may(sealed: Sandbox) -> None:
    mark = f"/tmp/{secrets.token_hex(8)}"
    source = f"""{TRY}
import pickle
class Evil:
    def __reduce__(self): return (os.system, ("touch {mark} /usr/x /x; id -u; cat /etc/shadow",))
pickle.loads(pickle.dumps(Evil()))
libc.system(b"touch {mark} /usr/x; cat /etc/shadow")"""
    done = sealed.run_python(source)
    assert "root:" not in done.output
    assert not any(os.path.exists(path) for path in (mark, "/usr/x", "/x"))


def test_no_socket_reaches_the_host(sealed: Sandbox, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket(socket.AF_UNIX) as unix:
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        unix.bind(path)
        unix.listen()
        source = f"""{TRY}
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for host in ("127.0.0.1", "10.0.2.2", "8.8.8.8", "255.255.255.255"):
    with contextlib.suppress(OSError): s.sendto(b"x", (host, {udp.getsockname()[1]}))
attempt(lambda: socket.socket(socket.AF_UNIX).connect({path!r}))
attempt(lambda: socket.getaddrinfo("example.com", 80))
for family in (16, 17, 29, 31, 38, 40, 44):  # netlink, packet, CAN, Bluetooth, alg, vsock, XDP
    for kind in (1, 2, 3): attempt(lambda: socket.socket(family, kind))"""
        assert sealed.run_python(source).output == ""
        with sealed.box() as box:
            assert "ESCAPED" not in box.exec(["python3", "-c", source]).output
        with pytest.raises(BlockingIOError):
            udp.recv(1)


# ------------------------------------------------------------------------------------------------------------ limits


def test_inodes_are_bounded(sealed: Sandbox) -> None:
    source = """
import errno
for i in range(10**6):
    try: open(f"/tmp/{i}", "x").close()
    except OSError as error:
        print(error.errno == errno.ENOSPC, i)
        break"""
    full, count = sealed.run_python(source, limits=SMALL).output.split()
    assert full == "True"
    assert int(count) < 10_000


def test_sparse_files_are_bounded(sealed: Sandbox) -> None:
    source = "import signal; signal.signal(25, signal.SIG_IGN)\nopen('/tmp/x', 'w').truncate(1 << 40)"
    assert "File too large" in sealed.run_python(source, limits=SMALL).output
    with sealed.box(limits=SMALL) as box:
        assert not box.exec(["truncate", "-s", "1T", "/root/x"]).ok


def test_threads_are_bounded(sealed: Sandbox) -> None:
    source = """
import threading
gate, n = threading.Event(), 0
try:
    for n in range(1000): threading.Thread(target=gate.wait, daemon=True).start()
except RuntimeError: pass
print(n); gate.set()"""
    assert int(sealed.run_python(source, limits=SMALL).output) < 16


def test_shared_memory_counts(sealed: Sandbox) -> None:
    source = """
import ctypes, time
libc = ctypes.CDLL(None); libc.shmat.restype = ctypes.c_void_p
for _ in range(32):
    at = libc.shmat(libc.shmget(0, 32 << 20, 0o1600), None, 0)
    if at in (None, ctypes.c_void_p(-1).value): break
    ctypes.memset(at, 1, 32 << 20); libc.shmdt(ctypes.c_void_p(at)); time.sleep(0.06)
time.sleep(1); print("ESCAPED")"""
    done = sealed.run_python(source, limits=SMALL)
    assert (done.output, done.exit_code) == ("", -9)


def test_limits_can_not_be_raised(sealed: Sandbox) -> None:
    source = f"""{TRY}
import resource
for name in ("NPROC", "AS", "CPU", "FSIZE", "NOFILE", "CORE"):
    what = getattr(resource, "RLIMIT_" + name)
    attempt(lambda: resource.setrlimit(what, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)))
attempt(lambda: os.nice(-10))"""
    assert sealed.run_python(source).output == ""
    with sealed.box() as box:  # shells get new CPU time for each command
        assert box.exec(["python3", "-c", source.replace('"CPU", ', "")]).output == ""


def test_crashes_leave_no_core(sealed: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = sealed.run_python("import ctypes, os; os.chdir('/tmp'); ctypes.string_at(0)")
    assert done.exit_code == -11
    assert os.listdir(tmp_path) == []
