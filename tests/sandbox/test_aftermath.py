"""Commands that damage their own box: this is never an error of the sandbox, and it never forges a later verdict."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cycleqd_jax.sandbox import Box, Killed, Limits, Sandbox

_SIGNALS = """
import os, time
if os.fork(): os._exit(0)
os.setsid()
time.sleep(0.2)
while True:
    try: os.kill(-1, {number})
    except OSError: pass"""
_DEEP = """
import os
os.chdir('/usr')
for _ in range(3000):
    os.mkdir('d'); os.chdir('d')"""
_FAKE = "printf '#!/bin/sh\\nexit 0\\n' > /tmp/fake; chmod 755 /tmp/fake"
_LIBRARIES = "dirname $(readlink -f $(ldd /usr/bin/bash | grep -o '/[^ ]*/libc[.][^ ]*'))"
_REFUSED = ("Permission denied", "Operation not permitted", "Value too large")


def _run(box: Box, script: str) -> bool:
    """Runs an attack. False if the box refuses it: without root on the host, files below /usr belong to the user nobody."""
    output = box.exec(["bash", "-c", script], timeout=20.0).output
    return os.getuid() == 0 or not any(words in output for words in _REFUSED)


@pytest.mark.parametrize(
    "command",
    [
        "echo 'exit 1' >> ~/.profile; exit",
        "chmod 0 /usr/bin/bash; exit",
        "mv /usr/bin/bash /usr/bin/bash2; exit",
        "rm -rf /lib64 /lib; exit",
        pytest.param("echo 'sleep 30' >> ~/.profile; exit", marks=pytest.mark.slow),
    ],
)
def test_a_shell_that_no_longer_starts(sealed: Sandbox, command: str) -> None:
    with sealed.box() as box:
        shell = box.shell()
        output = shell.run(command).output
        if os.getuid() and any(words in output for words in _REFUSED):
            pytest.skip("without root on the host, programs cannot be changed in place")
        with pytest.raises(Killed, match="the shell does not start"):
            shell.run("ls")
        with pytest.raises(Killed, match="closed"):
            box.exec(["true"])


def test_a_process_that_died_unnoticed_among_orphans(sealed: Sandbox) -> None:
    with sealed.box() as box:
        shell = box.shell()
        shell.run("(sleep 0.1; kill -9 $$; for i in {1..2500}; do (true &); done; touch /tmp/done) >/dev/null 2>&1 &")
        deadline = time.monotonic() + 30
        while not box.exec(["test", "-e", "/tmp/done"]).ok and time.monotonic() < deadline:
            time.sleep(0.1)
        begin = time.monotonic()
        assert shell.run("ls", timeout=1.0).exit_code == -9
        assert time.monotonic() - begin < 5
        assert shell.run("echo anew").output == "anew\n"


@pytest.mark.parametrize("number", [9, pytest.param(19, marks=pytest.mark.slow)])
def test_signals_to_every_new_process(sealed: Sandbox, number: int) -> None:
    with sealed.box() as neighbour, sealed.box() as box:
        box.exec(["python3", "-c", _SIGNALS.format(number=number)])
        time.sleep(0.3)
        try:
            for _ in range(60):
                box.exec(["true"], timeout=0.2)
        except Killed:
            pass
        assert neighbour.exec(["true"]).ok


@pytest.mark.parametrize("text", ["{'9' * 6000}", "{'x' * 6000}", "-1", "07 7", "\\xff"])
def test_what_a_command_writes_on_the_markers_pipe_is_no_fault_of_the_sandbox(sealed: Sandbox, text: str) -> None:
    word = eval(f"f{text!r}")
    with sealed.box() as box:
        shell = box.shell()
        shell.run("true")
        shell.run(f"read -r l; t=${{l#*\\'}}; t=${{t%% *}}; printf '%s %b\\n' \"$t\" '{word}' >&8", timeout=1.0)
        assert box.exec(["true"]).ok


def test_trusted_commands_are_commands(sandbox: Sandbox) -> None:
    with sandbox.box() as box:
        code = "import json, os, sys; print(sys.argv[1:], input(), os.getcwd())"
        done = box.exec(["python3", "-c", code, "a b"], stdin="in\n", cwd="/usr", trusted=True)
        assert done.output == "['a b'] in /usr\n"
        assert box.exec(["bash", "-c", "exit 3"], trusted=True).exit_code == 3
        assert box.exec(["sleep", "9"], timeout=0.2, trusted=True).timed_out


def test_trusted_commands_after_ordinary_work(sealed: Sandbox) -> None:
    with sealed.box() as box:
        shell = box.shell()
        script = """
        useradd -m ann; echo 1 > /usr/stock.log; echo 10.0.0.1 x >> /etc/hosts; mkdir -p /usr/local/tools/lib
        printf '#!/bin/bash\\necho mine' > /usr/local/bin/count-all; chmod +x /usr/local/bin/count-all
        ln -s /usr/local/bin/count-all /usr/bin/count-all2; touch /lib.txt; rm -rf /usr/local/tools
        python3 -c 'import json, email.message, xml.dom'"""
        shell.run(script)
        shell.run("touch /tmp/beat; sleep 300 & while sleep 0.02; do echo x >> /tmp/beat; done &")
        check = "count-all && count-all2 && id -un ann && cat /usr/stock.log && pgrep -xc 'sleep' > /dev/null"
        assert box.exec(["bash", "-c", check], trusted=True).output == "mine\nmine\nann\n1\n"
        beats = "import time; n = lambda: len(open('/tmp/beat').read()); a = n(); time.sleep(0.2); print(n() - a)"
        assert box.exec(["python3", "-c", beats], trusted=True).output == "0\n"
        assert box.exec(["python3", "-c", beats]).output != "0\n"
        assert shell.run("echo here").output == "here\n"


@pytest.mark.parametrize(
    "attack",
    [
        "cp /bin/true /tmp/b; mv -f /tmp/b /usr/bin/bash",
        f"{_FAKE}; cp /tmp/fake /usr/local/bin/grep",
        f"{_FAKE}; cp /tmp/fake /usr/local/sbin/bash",
        f"{_FAKE}; rm -rf /usr/local/sbin; mkdir /tmp/s; mv /tmp/fake /tmp/s/bash; ln -s /tmp/s /usr/local/sbin",
        "echo /tmp/x.so > /etc/ld.so.preload",
        "ldconfig; echo >> /etc/ld.so.cache",
        f"cd $({_LIBRARIES}); cp libc.so.6 libc2; mv libc2 libc.so.6",
        f"cd $({_LIBRARIES}); mkdir -p glibc-hwcaps/x86-64-v2; cp libc.so.6 glibc-hwcaps/x86-64-v2/",
        "rm /bin; mkdir /bin; cp /usr/bin/true /bin/sh",
        "rm /lib64; cp -r /usr/lib64 /lib64",
        "cp -r /etc/alternatives /tmp/a; rm -rf /etc/alternatives; mkdir /etc/alternatives",
        "echo 'home = /tmp' > /usr/bin/pyvenv.cfg",
        "echo 'home = /tmp' > /usr/pyvenv.cfg",
        "d=$(python3 -c 'import os; print(os.path.dirname(os.__file__))'); echo 'raise SystemExit' > $d/usercustomize.py",
        "d=$(python3 -c 'import os; print(os.path.dirname(os.__file__))'); chmod 0 $d/json; rm -r $d/json; mkdir $d/json",
        "mkdir -p /usr/local/lib/python3.99/dist-packages; touch /usr/local/lib/python3.99/dist-packages/x.pth",
        f'python3 -c "{_DEEP}"',
    ],
)
def test_trusted_commands_are_refused_after_changes_to_programs(sealed: Sandbox, attack: str) -> None:
    with sealed.box() as box:
        assert box.exec(["bash", "-c", "exit 5"], trusted=True).exit_code == 5
        if _run(box, attack):
            with pytest.raises(Killed, match=r"was changed|too long"):
                box.exec(["bash", "-c", "exit 5"], trusted=True)
        else:
            assert box.exec(["bash", "-c", "exit 5"], trusted=True).exit_code == 5


@pytest.mark.parametrize(
    "attack",
    [
        "for m in json re os usercustomize sitecustomize; do echo 'raise SystemExit(0)' > /$m.py; done",
        "mkdir /json; echo 'raise SystemExit(0)' > /json/__init__.py",
        "d=$(python3 -m site --user-site); mkdir -p $d; echo 'raise SystemExit' | tee $d/usercustomize.py > $d/x.py; "
        "echo 'import os; os._exit(0)' > $d/x.pth",
        "echo 'exit 0' | tee -a ~/.bashrc ~/.profile ~/.bash_profile ~/.bash_env /etc/profile > /etc/bash.bashrc",
        # Bytecode of a module that exits, with the header that makes it pass for the one of json.
        """python3 -c "
import glob, json, marshal, os, sys, importlib.util as u
path = u.cache_from_source(json.__file__)
head = open(path, 'rb').read(16) if os.path.exists(path) else None
if head is None:
    stat = os.stat(json.__file__)
    head = u.MAGIC_NUMBER + bytes(4) + int(stat.st_mtime).to_bytes(4, 'little') + stat.st_size.to_bytes(4, 'little')
os.makedirs(os.path.dirname(path), exist_ok=True)
open(path, 'wb').write(head + marshal.dumps(compile('import os; os._exit(0)', 'x', 'exec')))
" """,
    ],
)
def test_trusted_commands_do_not_load_files_of_users(sealed: Sandbox, attack: str) -> None:
    with sealed.box() as box:
        _run(box, attack)
        assert box.exec(["python3", "-c", "import json, re, os, sys; sys.exit(5)"], trusted=True).exit_code == 5
        assert box.exec(["bash", "-c", "exit 5"], trusted=True).exit_code == 5
        nested = "python3 -c 'import json, sys; sys.exit(5)'"
        for cwd in ("/", "/usr"):
            assert box.exec(["bash", "-c", nested], cwd=cwd, trusted=True).exit_code == 5


def test_changes_by_a_trusted_command_are_detected(sealed: Sandbox) -> None:
    """A command that runs a program of a user, which replaces the program that the command runs next."""
    with sealed.box(limits=Limits(wall_s=10.0)) as box:
        _run(box, f"{_FAKE}; printf '#!/bin/sh\\ncp /tmp/fake /usr/local/bin/grep' > /root/mine; chmod +x /root/mine")
        with pytest.raises(Killed, match="grep was changed"):
            box.exec(["bash", "-c", "/root/mine; grep -q secret /etc/passwd"], trusted=True)


# ------------------------------------------------------------------------------------------------ trusted commands

_CLIENT = """
import socket, sys
for family, address in ((socket.AF_INET, ("127.0.0.1", 8765)), (socket.AF_UNIX, "/run/answers")):
    with socket.socket(family) as client:
        client.connect(address)
        print(client.recv(9).decode())"""
_SERVER = """
import os, socket, threading
def serve(server, word):
    while True: server.accept()[0].sendall(word)
unix = socket.socket(socket.AF_UNIX); unix.bind("/run/answers"); unix.listen()
tcp = socket.create_server(("127.0.0.1", 8765))
threading.Thread(target=serve, args=(unix, b"unix")).start()
if os.fork() == 0: serve(tcp, b"tcp")
open("/tmp/up", "w")"""


def _background(box: Box, source: str) -> None:
    """Starts a Python program and waits until it has made /tmp/up."""
    box.exec(["sh", "-c", "cat > /tmp/program.py"], stdin=source)
    box.shell().run("python3 /tmp/program.py > /dev/null 2>&1 & until test -e /tmp/up; do sleep 0.02; done", timeout=3.0)


def test_trusted_commands_reach_servers(sealed: Sandbox) -> None:
    with sealed.box() as box:
        _background(box, _SERVER)
        assert box.exec(["python3", "-c", _CLIENT], trusted=True).output == "tcp\nunix\n"


def test_trusted_commands_see_processes_by_their_numbers(sealed: Sandbox) -> None:
    with sealed.box() as box:
        box.shell().run("sleep 300 & echo $! > /tmp/pid")
        check = "kill -0 $(cat /tmp/pid) && tr '\\0' ' ' < /proc/$(cat /tmp/pid)/cmdline && pgrep -xc sleep && cat <(echo end)"
        assert box.exec(["bash", "-c", check], trusted=True).output == "sleep 300 1\nend\n"


def test_trusted_commands_share_a_copy_of_the_files(sealed: Sandbox) -> None:
    with sealed.box() as box:
        script = """
        mkdir -p /root/a/b; echo one > /root/a/b/f; ln /root/a/b/f /root/hard; ln -s b /root/a/s; mkfifo /root/p
        rm -r /var/tmp; rm /etc/hostname; chmod 640 /root/hard; truncate -s 10M /root/sparse; touch -d 2001-02-03 /root/old"""
        box.exec(["sh", "-c", script])
        look = (
            "cd /root; cat a/s/f; stat -c '%h %a' hard; find . -type p; test ! -e /var/tmp -a ! -e /etc/hostname && echo gone"
        )
        look += "; stat -c '%s %b' sparse; date -r old +%F; echo 1 > mark"
        expected = "one\n2 640\n./p\ngone\n10485760 0\n2001-02-03\n"
        assert box.exec(["sh", "-c", look], trusted=True).output == expected
        assert box.exec(["cat", "/root/mark"], trusted=True).output == "1\n"
        assert not box.exec(["test", "-e", "/root/mark"]).ok
        assert not box.exec(["test", "-e", "/root/mark"], trusted=True).ok


# Each runs beside a check for a file that is not there, which only a forged or killed program can pass.
_MEANWHILE = {
    "reverted": "os.rename('/tmp/fake', FAKE); time.sleep(0.001); os.rename(FAKE, '/tmp/fake')",
    "files": "open('/root/wanted', 'w'); os.unlink('/root/wanted')",
    "signals": "[os.kill(pid, 9) for pid in range(os.getpid() + 1, os.getpid() + 60) if alive(pid)]",
    "everyone": "os.kill(-1, 9)",
    "proc": "[os.kill(int(p), 9) for p in os.listdir('/proc') if p.isdigit() and int(p) > os.getpid()]",
    "stopped": "[os.kill(int(p), 19) for p in os.listdir('/proc') if p.isdigit() and int(p) > os.getpid()]",
}


@pytest.mark.parametrize("name", _MEANWHILE)
def test_nothing_acts_on_a_trusted_command(sealed: Sandbox, name: str) -> None:
    source = f"""
import os, time
FAKE = "/usr/local/bin/grep"
def alive(pid):
    try: os.kill(pid, 0)
    except OSError: return False
    return True
open("/tmp/fake", "w").write("#!/bin/sh\\nexit 0\\n"); os.chmod("/tmp/fake", 0o755)
open("/tmp/up", "w")
while True:
    try: {_MEANWHILE[name]}
    except (OSError, ValueError): pass"""
    check = "for i in 1 2 3 4 5 6 7 8; do test ! -e /root/wanted || exit 8; echo no | grep -q yes && exit 9; sleep 0.05; done"
    check += "; exit 5"
    with sealed.box() as box:
        _background(box, source)
        try:
            code = box.exec(["bash", "-c", check], trusted=True).exit_code
        except Killed:
            return  # the copy was made at a moment of tampering
        assert code in (5, 8)


def test_trusted_commands_start_programs_when_no_more_may_start(sealed: Sandbox) -> None:
    source = "import os, time\nopen('/tmp/up', 'w')\nwhile True:\n    try:\n        if os.fork() == 0: time.sleep(60)\n"
    source += "    except OSError: time.sleep(0.1)"
    with sealed.box(limits=Limits(wall_s=10.0, processes=16)) as box:
        _background(box, source)
        time.sleep(0.5)
        assert box.exec(["bash", "-c", "echo $(echo $(echo deep))"], trusted=True).output == "deep\n"


def test_changes_are_measured_from_the_seal(sealed: Sandbox) -> None:
    with sealed.box() as box:
        box.exec(["sh", "-c", "cp /usr/bin/tee /usr/local/bin/tee; echo /opt/x > /etc/ld.so.conf.d/x.conf"])
        assert set(box.changes()) == {"/usr/local/bin/tee", "/etc/ld.so.conf.d/x.conf"}
        box.seal()
        assert box.changes() == {}
        assert box.exec(["true"], trusted=True).ok
        box.exec(["sh", "-c", "rm /usr/local/bin/tee; echo >> /etc/ld.so.conf.d/x.conf; cp /usr/bin/tee /usr/local/bin/cat"])
        changes = {"/usr/local/bin/tee": "removed", "/etc/ld.so.conf.d/x.conf": "content", "/usr/local/bin/cat": "new"}
        assert box.changes() == changes
        assert box.exec(["true"], trusted=True, allowed=changes).ok
        with pytest.raises(Killed, match=r"x\.conf was changed"):
            box.exec(["true"], trusted=True, allowed=changes | {"/etc/ld.so.conf.d/x.conf": "new"})


def test_trusted_commands_leave_no_open_files(sealed: Sandbox) -> None:
    def open_files() -> int:
        found = [sealed._worker.process.pid]
        for pid in found:
            children = Path(f"/proc/{pid}/task/{pid}/children")
            found += map(int, children.read_text().split() if children.exists() else ())
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in found if Path(f"/proc/{pid}/fd").exists())

    with sealed.box() as box:
        counts = []
        for _ in range(3):
            for _ in range(4):
                assert box.exec(["true"]).ok
                assert box.exec(["true"], trusted=True).ok
            counts.append(open_files())
        assert counts[2] == counts[1], counts
