"""Attempts to escape from boxes, one by one. An attempt that succeeds prints ESCAPED."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cycleqd_jax.sandbox import Sandbox


@pytest.fixture(autouse=True)
def _still_works(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"boxes", "debian"} & set(request.fixturenames):
        assert request.getfixturevalue(name).run_python("print('alive')").output == "alive\n"


# Each command prints ESCAPED if it succeeds.
COMMANDS = {
    "mount a file system": "mount -t tmpfs none /mnt && echo ESCAPED",
    "mount what is there": "mount --bind /proc /mnt && echo ESCAPED",
    "mount the host's disk": "for d in vda vda1 sda sda1; do mknod /tmp/$d b 254 0; mount /tmp/$d /mnt && echo ESCAPED; done",
    "read the host's disk": "mknod /tmp/d b 254 0; head -c 1 /tmp/d && echo ESCAPED",
    "read the memory": "mknod /tmp/m c 1 1; head -c 1 /tmp/m && echo ESCAPED",
    "write to a read-only mount": "mount -o remount,rw /proc && echo ESCAPED",
    "uncover what is below a mount": "umount /proc/tty && echo ESCAPED; umount -l /dev && echo ESCAPED",
    "a user namespace": "unshare -Ur true && echo ESCAPED",
    "a mount namespace": "unshare -m true && echo ESCAPED",
    "the namespaces of pid 1": "for n in mnt pid net user; do nsenter -t 1 --$n true && echo ESCAPED; done 2>/dev/null",
    "the root of pid 1": "ls /proc/1/root/ && echo ESCAPED",
    "load a module": "echo x > /tmp/m.ko; insmod /tmp/m.ko && echo ESCAPED; modprobe dummy && echo ESCAPED",
    "the kernel's log": "dmesg && echo ESCAPED",
    "sysctl": "sysctl -w kernel.panic=1 && echo ESCAPED",
    "the clock": "date -s 2000-01-01 && echo ESCAPED",
    "the host's name": "hostname other && echo ESCAPED",
    "power": "reboot -f && echo ESCAPED; echo o > /proc/sysrq-trigger && echo ESCAPED",
    "cgroup release agent": "find /sys -name release_agent | grep . && echo ESCAPED",
    "the engine's socket": "ls /run/*.sock /run/*/*.sock /var/run/docker.sock 2>/dev/null && echo ESCAPED",
    "passwords": "grep -v ':[*!x]' /etc/shadow && echo ESCAPED",
    "keys": "find / -xdev \\( -name 'id_rsa*' -o -path '*private*.pem' -o -name '.netrc' \\) | grep . && echo ESCAPED",
    "a terminal": "exec 3<>/dev/tty && echo ESCAPED; exec 4<>/dev/ptmx && echo ESCAPED",
    "the network": "exec 3<>/dev/tcp/1.1.1.1/53 && echo ESCAPED",
    "names": "getent hosts example.com && echo ESCAPED",
    "an own limit": "ulimit -u 100000 && echo ESCAPED; ulimit -v unlimited && echo ESCAPED",
    "priority": "nice -n -10 true 2>&1 | grep -q . || echo ESCAPED; chrt -f 50 true && echo ESCAPED",
    "immortality": "echo -1000 > /proc/self/oom_score_adj && echo ESCAPED",
    "the program of pid 1": "cat /proc/1/exe > /tmp/x && echo ESCAPED; echo x > /proc/1/exe && echo ESCAPED",
    "signals to pid 1": "kill -STOP 1; kill -KILL 1; kill -SEGV 1; test -e /proc/1 || true",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_of_a_box(boxes: Sandbox, name: str) -> None:
    with boxes.box() as box:
        done = box.exec(["bash", "-c", COMMANDS[name]])
        assert "ESCAPED" not in done.output.split(), done.output
        assert not done.timed_out
        assert box.exec(["echo", "ok"]).output == "ok\n"


def test_out_of_a_chroot_is_still_in_the_box(boxes: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    source = f"""import os
os.makedirs("/root/jail", exist_ok=True)
outside = os.open("/", os.O_RDONLY)
os.chroot("/root/jail")
os.fchdir(outside)
for _ in range(100): os.chdir("..")
os.chroot(".")
print(os.path.exists("/root/jail"), os.path.exists({str(tmp_path / "secret")!r}), os.path.exists("/fs/skeleton"))"""
    with boxes.box() as box:
        assert box.exec(["python3", "-c", source]).output == "True False False\n"


@pytest.mark.skipif(os.getuid() != 0, reason="several users in a box need root on the host")
@pytest.mark.parametrize(
    "grant", ["chmod 4755 /tmp/p", "setcap cap_dac_override,cap_setuid+ep /tmp/p", "chmod 2755 /tmp/p; chgrp shadow /tmp/p"]
)
def test_setuid_and_capabilities_of_files_have_no_effect(boxes: Sandbox, grant: str) -> None:
    with boxes.box() as box:
        box.exec(["bash", "-c", f"useradd -m ann; cp $(readlink -f /usr/bin/python3) /tmp/p; {grant}"])
        code = "import os; print(os.geteuid(), os.access('/etc/shadow', os.R_OK)); os.setuid(0); print('ESCAPED')"
        done = box.exec(["su", "ann", "-c", f'/tmp/p -I -c "{code}"'])
        assert "1000 False\n" in done.output
        assert "ESCAPED" not in done.output


@pytest.mark.skipif(os.getuid() != 0, reason="several users in a box need root on the host")
def test_users_of_a_box_are_kept_apart(boxes: Sandbox) -> None:
    with boxes.box() as box:
        shell = box.shell()
        shell.run("useradd -m ann; useradd -m bob; chmod 700 /home/*; echo s > /home/ann/s; chown -R ann: /home/ann; su bob")
        # su waits for a password, so the command runs into its timeout.
        code = "whoami; cat /home/ann/s; cat /etc/shadow; echo x >> /etc/passwd; kill -9 1 $PPID; su -c id"
        output = shell.run(code, timeout=4.0).output
        assert output.startswith("bob\n")
        assert output.count("Permission denied") >= 3
        assert "uid=0" not in output
        assert box.exec(["stat", "-c", "%U %a", "/home/ann/s", "/home/bob"]).output == "ann 644\nbob 700\n"


def test_what_a_box_changes_is_its_own(debian: Sandbox, rootfs: str) -> None:
    tree = Path(rootfs) / "root"
    files = [tree / "etc/passwd", tree / "etc/hostname", tree / "usr/bin/env", tree / "root/.bashrc"]
    before = [(hashlib.sha256(f.read_bytes()).digest(), f.stat()) for f in files] + sorted(os.listdir(tree / "usr/bin"))
    with debian.box() as box, debian.box() as neighbour:
        script = "useradd ann; echo x > /usr/bin/env; rm -rf /usr/bin/tree /root/.bashrc /var/lib/dpkg; chmod 777 /etc /usr/bin"
        assert box.exec(["bash", "-c", f"{script}; touch /usr/bin/new /x; chown 1:1 /usr/bin/vi"]).ok
        assert neighbour.exec(["env", "sh", "-c", "id ann; ls /usr/bin/new /x"]).output.count("o such") == 3
        assert neighbour.exec(["tree", "--version"]).ok
    after = [(hashlib.sha256(f.read_bytes()).digest(), f.stat()) for f in files] + sorted(os.listdir(tree / "usr/bin"))
    # Reading changes the time of access.
    assert [x if isinstance(x, str) else (x[0], x[1].st_mtime, x[1].st_mode, x[1].st_uid) for x in after] == [
        x if isinstance(x, str) else (x[0], x[1].st_mtime, x[1].st_mode, x[1].st_uid) for x in before
    ]


def test_a_box_shows_nothing_of_the_host(debian: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with debian.box() as box:
        assert not box.exec(["test", "-e", str(tmp_path / "secret")]).ok
        assert box.exec(["ls", "/home", "/opt", "/srv", "/mnt"]).output.split() == ["/home:", "/mnt:", "/opt:", "/srv:"]
        assert box.exec(["cat", "/etc/hostname", "/etc/resolv.conf"]).output == "box\n"
        mounts = box.exec(["cat", "/proc/mounts"]).output
        assert str(tmp_path) not in mounts
        assert box.exec(["dpkg-query", "-W", "-f", "${Status}", "tree"]).output == "install ok installed"
