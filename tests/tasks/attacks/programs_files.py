"""Attacks by programs: files, output, signals and the interpreter."""

from __future__ import annotations

from .attack import Attack

__all__ = ["PROGRAMS_FILES"]

PROGRAMS_FILES = [
    Attack(
        "files",
        "deep folders",
        "program",
        """\
import os
os.chdir('/tmp')
try:
    for _ in range(3000): os.mkdir('d'); os.chdir('d')
except OSError: pass
""",
        "the tmpfs goes with its namespace; no recursion",
    ),
    Attack(
        "files",
        "a fifo as the program's own file",
        "program",
        """\
import os
os.unlink('/tmp/main.py'); os.mkfifo('/tmp/main.py')
""",
        "the file is not read again",
    ),
    Attack(
        "files",
        "a sparse file of a terabyte",
        "program",
        """\
import signal
signal.signal(25, signal.SIG_IGN)
open('/tmp/x', 'w').truncate(1 << 40)
print('ESCAPED')
""",
        "RLIMIT_FSIZE",
    ),
    Attack(
        "files",
        "a million inodes",
        "program",
        """\
try:
    for n in range(10**6): open(f'/tmp/{n}', 'x').close()
    print('ESCAPED')
except OSError: pass
""",
        "number of inodes of the tmpfs",
    ),
    Attack(
        "files",
        "links to what lies outside",
        "program",
        """\
import os
for n, t in enumerate(('/proc/1/root', '/proc/1/cwd', '/fs/rootfs', '/fs/lib')):
    os.symlink(t, f'/tmp/{n}')
    try: os.listdir(f'/tmp/{n}') and print('ESCAPED')
    except OSError: pass
""",
        "no such files; pid 1 is not accessible",
    ),
    Attack(
        "output",
        "a gigabyte of output",
        "program",
        """\
import os
while True: os.write(1, bytes(1 << 20))
""",
        "64 times the output limit ends the program",
    ),
    Attack(
        "output",
        "bytes that are no text",
        "program",
        """\
import os
os.write(1, bytes(range(256)) * 9)
""",
        "decoded with replacement",
    ),
    Attack(
        "signals",
        "to the supervisor",
        "program",
        """\
import os
for n in range(1, 65):
    for p in (1, os.getppid()):
        if p == os.getpid(): continue
        try: os.kill(p, n)
        except OSError: pass
""",
        "the supervisor is in an outer user namespace",
    ),
    Attack(
        "signals",
        "to everyone",
        "program",
        """\
import os
os.kill(-1, 9)
os.kill(-1, 19)
""",
        "a PID namespace of its own",
    ),
    Attack(
        "signals",
        "stopped by itself",
        "program",
        """\
import os
os.kill(os.getpid(), 19)
""",
        "wall clock of the supervisor",
    ),
    Attack(
        "ptrace",
        "of pid 1",
        "program",
        """\
import ctypes
if ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0: print('ESCAPED')
""",
        "system call filter",
    ),
    Attack(
        "ptrace",
        "process_vm_writev",
        "program",
        """\
import ctypes
if ctypes.CDLL(None).process_vm_writev(1, 0, 0, 0, 0, 0) > 0: print('ESCAPED')
""",
        "system call filter",
    ),
    Attack(
        "/proc",
        "memory of pid 1",
        "program",
        """\
for n in ('mem', 'environ', 'maps', 'fd/0', 'exe', 'syscall', 'stack'):
    try: open(f'/proc/1/{n}', 'rb').read(1) and print('ESCAPED')
    except OSError: pass
""",
        "pid 1 belongs to another user namespace",
    ),
    Attack(
        "/proc",
        "settings of the kernel",
        "program",
        """\
for n in ('sys/kernel/core_pattern', 'sys/vm/overcommit_memory', 'sysrq-trigger', '1/oom_score_adj', 'self/uid_map'):
    try: open(f'/proc/{n}', 'w').write('0') and print('ESCAPED')
    except OSError: pass
""",
        "a read-only /proc without rights",
    ),
    Attack(
        "interpreter",
        "broken exit",
        "program",
        """\
import builtins, os, sys, threading, atexit
os._exit = sys.exit = threading._shutdown = atexit._run_exitfuncs = lambda *a: 1 / 0
""",
        "the supervisor waits for the process",
    ),
    Attack(
        "interpreter",
        "audit hooks",
        "program",
        """\
import sys
def hook(*a): raise RuntimeError
sys.addaudithook(hook)
""",
        "a process for each program",
    ),
    Attack(
        "interpreter",
        "a crash of the stack",
        "program",
        """\
import sys
sys.setrecursionlimit(10**9)
f = lambda: f()
f()
""",
        "RLIMIT_STACK",
    ),
]
