"""Any shell commands in live boxes: a result or ``Killed``, never an error of the sandbox, and the next box works."""

from __future__ import annotations

from hypothesis import strategies as st

from cycleqd_jax.sandbox import Killed, Limits, Sandbox

from ..fuzz import SOME, fuzzed

LIMITS = Limits(wall_s=5.0, cpu_s=5.0, memory_mb=256, processes=24, disk_mb=16, output_bytes=4096)
COMMANDS = (
    *(
        "echo x",
        "ls /",
        "cd /tmp",
        "exit 3",
        "exec true",
        "exec bash",
        "read x",
        "cat",
        "cat /dev/zero | head -c 9999999",
        "sleep 9 &",
        "wait",
    ),
    *(
        "kill -9 $$",
        "kill -9 -1",
        "kill -STOP $$",
        "kill -STOP -1",
        "kill -9 $PPID",
        "kill -KILL 1",
        "trap '' TERM INT HUP CHLD",
        "trap true EXIT",
    ),
    *(
        "exec 8>&-",
        "exec 9>&-",
        "exec 0</dev/null",
        "exec 1>&-",
        "exec 1>&2 2>&-",
        "echo x >&8",
        "echo 1 >&9",
        "exec 8</dev/zero",
        "exec > /tmp/x",
    ),
    *(
        "printf() { false; }",
        "eval() { :; }",
        "alias printf=false",
        "alias eval=exit",
        "set -e",
        "set -n",
        "set -v",
        "set -x",
        "shopt -s extdebug",
    ),
    *(
        "enable -n printf eval exec",
        "PS1='$(exit 9)'",
        "PROMPT_COMMAND='exit 4'",
        "PATH=",
        "unset PATH HOME",
        "IFS=0",
        "ulimit -f 0",
        "ulimit -n 3",
    ),
    *(
        "ulimit -v 1000",
        "ulimit -u 1",
        "umask 777",
        "rm -rf /tmp /root /bin",
        "chmod 0 /usr/bin/bash",
        "mv /usr /usr2",
        "rm -rf /lib64 /lib",
        "su nobody",
    ),
    *(
        "mkfifo /tmp/f; cat /tmp/f",
        "head -c 99M /dev/zero > /root/big",
        "yes | head -c 3000000",
        "f() { f | f & }; f",
        "while :; do :; done",
        "fg",
        "bg",
    ),
    *(
        "echo $((2**63 / -1))",
        "printf '%s\\n' {1..40000}",
        "x=$(yes | head -c 900000)",
        "declare -r PATH BASH_ENV",
        "cat <<'E'\nx",
        "E",
        "((",
        "))",
        "[[",
    ),
    *(
        "python3 -c 'import os; os.kill(-1, 19)'",
        "python3 -c 'while 1: print(1)'",
        "stty raw",
        "tput x",
        "logout",
        "history -c",
        "suspend",
        "times",
    ),
    *(
        "setsid sh -c 'sleep 9' &",
        "nohup sleep 9 &",
        "disown -a",
        "ln -sf /dev/full /tmp/x; cat /tmp/x",
        "echo x > /dev/full",
        "hash -r",
        "bash -l -i",
    ),
)
PIECES = (
    "\n",
    "; ",
    " && ",
    " | ",
    " & ",
    " > /tmp/o",
    " 2>&1",
    " < /tmp/i",
    "'",
    '"',
    "`",
    "$(",
    ")",
    "{",
    "}",
    "\\",
    "#",
    "!",
    "\x03",
    "\x04",
    "\x1a",
    "\t",
    "\r",
    "\x7f",
    "\xff",
    "\ud800",
    "\0",
    "é",
)


@st.composite
def scripts(draw):
    parts = draw(
        st.lists(
            st.sampled_from(COMMANDS) | st.sampled_from(PIECES) | st.text(st.characters(), max_size=5), min_size=1, max_size=6
        )
    )
    return draw(st.sampled_from(["\n", " ; ", ""])).join(parts)


@fuzzed(2, SOME, typed=st.lists(scripts(), min_size=1, max_size=3), argument=scripts())
def test_commands(sealed: Sandbox, typed, argument):
    with sealed.box(limits=LIMITS) as box:
        try:
            shell = box.shell()
            for code in typed:
                shell.run(code, timeout=0.25).output.encode()
            box.exec(["bash", "-c", argument], stdin=argument, timeout=0.25)
            box.changes()
            assert box.exec(["sh", "-c", "test -e /never"], timeout=3.0, trusted=True).exit_code != 0
        except Killed as killed:
            str(killed).encode("utf-8", "backslashreplace")
    with sealed.box(limits=LIMITS) as box:
        assert box.shell().run("echo next", timeout=10.0).output == "next\n"


PROGRAMS = (
    *(
        "import os\n",
        "import sys, signal, threading, ctypes\n",
        "os._exit(0)\n",
        "sys.exit(0)\n",
        "os.kill(os.getpid(), 9)\n",
        "os.kill(-1, 9)\n",
    ),
    *(
        "os.kill(os.getppid(), 19)\n",
        "print('x' * 10**6)\n",
        "while True: pass\n",
        "os.fork()\n",
        "b = bytes(10**9)\n",
        "os.closerange(0, 256)\n",
    ),
    *(
        "[os.write(fd, b'x') for fd in range(64) if os.path.exists(f'/proc/self/fd/{fd}')]\n",
        "open('/tmp/main.py', 'w')\n",
        "sys.stdout = None\n",
    ),
    *(
        "threading.Thread(target=input).start()\n",
        "ctypes.string_at(0)\n",
        "sys.setrecursionlimit(10**9)\n",
        "f = lambda: f()\n",
        "f()\n",
    ),
    *(
        "raise KeyError\n",
        "def x(): yield\n",
        "exec('1' * 9999)\n",
        "\xff",
        "\0",
        "\ud800",
        "(",
        "'''",
        "\t",
        "import atexit; atexit.register(os.abort)\n",
    ),
    *(
        "signal.alarm(1)\n",
        "signal.signal(15, lambda *a: 0)\n",
        "os.setsid()\n",
        "os.mkfifo('/tmp/p'); open('/tmp/p')\n",
        "os.chdir('/')\n",
        "os.execv('/bin/sh', ['sh'])\n",
    ),
)


@fuzzed(2, SOME, parts=st.lists(st.sampled_from(PROGRAMS) | st.text(st.characters(), max_size=8), max_size=6))
def test_programs(sealed: Sandbox, parts):
    limits = Limits(wall_s=0.5, cpu_s=1.0, memory_mb=128, processes=16, disk_mb=8, output_bytes=4096)
    sealed.run_python("".join(parts), stdin="".join(parts), limits=limits).output.encode()
    assert sealed.run_python("print('next')").output == "next\n"
