"""Programs that attack the machine, the sandbox or other programs."""

from __future__ import annotations

from .attack import Attack

__all__ = ["PROGRAMS"]

PROGRAMS = [
    Attack(
        "fork bomb",
        "forks without end",
        "program",
        """\
import os
while True:
    try: os.fork()
    except OSError: pass
""",
        "RLIMIT_NPROC, and the end of the box",
        default=True,
    ),
    Attack(
        "fork bomb",
        "threads that start threads",
        "program",
        """\
import threading
def f():
    while True:
        try: threading.Thread(target=f).start()
        except RuntimeError: pass
f()
""",
        "RLIMIT_NPROC",
    ),
    Attack(
        "memory",
        "a growing list",
        "program",
        """\
x = []
while True: x.append(bytes(1 << 20))
""",
        "RLIMIT_AS",
    ),
    Attack(
        "memory",
        "mapped files in /dev/shm",
        "program",
        """\
import os, mmap
fd = os.open('/dev/shm/x', os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 40)
print('ESCAPED')
""",
        "RLIMIT_FSIZE",
    ),
    Attack(
        "memory",
        "System V segments",
        "program",
        """\
import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
while True:
    p = libc.shmat(libc.shmget(0, 32 << 20, 0o1600), None, 0)
    if p in (None, ctypes.c_void_p(-1).value): break
    ctypes.memset(p, 1, 32 << 20)
import time; time.sleep(9)
""",
        "segments count as memory of the box",
    ),
    Attack(
        "memory",
        "message queues",
        "program",
        """\
import ctypes
libc = ctypes.CDLL(None)
n = 0
while n < 10**5 and libc.msgget(0, 0o1600) >= 0: n += 1
if n == 10**5: print('ESCAPED')
""",
        "an IPC namespace of its own",
    ),
    Attack(
        "sockets",
        "full buffers of socket pairs",
        "program",
        """\
import socket, time
keep = []
try:
    while True:
        a, b = socket.socketpair(); keep += [a, b]; a.setblocking(False)
        try:
            while True: a.send(bytes(65536))
        except BlockingIOError: pass
except OSError: time.sleep(9)
""",
        "buffers of sockets count as memory",
    ),
    Attack(
        "sockets",
        "sockets in flight",
        "program",
        """\
import socket
try:
    while True:
        a, b = socket.socketpair()
        for _ in range(200): socket.send_fds(a, [b'x'], [b.fileno()])
        a.detach()
except OSError: pass
""",
        "RLIMIT_NOFILE; descriptors in flight count",
    ),
    Attack(
        "sockets",
        "full pipes",
        "program",
        """\
import os
try:
    while True:
        r, w = os.pipe(); os.set_blocking(w, False)
        try:
            while True: os.write(w, bytes(65536))
        except BlockingIOError: pass
except OSError: pass
""",
        "RLIMIT_NOFILE",
    ),
    Attack(
        "quotas",
        "asynchronous I/O",
        "program",
        """\
import ctypes, platform
if platform.machine() == 'x86_64' and ctypes.CDLL(None).syscall(206, 10, ctypes.byref(ctypes.c_ulong(0))) == 0: print('ESCAPED')
""",
        "system call filter",
    ),
    Attack(
        "quotas",
        "inotify",
        "program",
        """\
import ctypes, time
libc = ctypes.CDLL(None)
while libc.inotify_init1(0) >= 0: pass
time.sleep(0.3)
""",
        "quotas of the creator of the box's user namespace",
    ),
    Attack(
        "quotas",
        "POSIX timers",
        "program",
        """\
import ctypes
libc = ctypes.CDLL(None)
t = ctypes.c_int()
n = 0
while n < 10**6 and libc.syscall(222, 1, 0, ctypes.byref(t)) == 0: n += 1
""",
        "RLIMIT_SIGPENDING of the box's creator",
    ),
    Attack(
        "quotas",
        "pending signals",
        "program",
        """\
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [34])
for _ in range(10**5):
    try: os.kill(os.getpid(), 34)
    except OSError: break
""",
        "RLIMIT_SIGPENDING",
    ),
    Attack(
        "quotas",
        "file locks and leases",
        "program",
        """\
import fcntl
f = open('/tmp/x', 'w')
for n in range(20000): fcntl.lockf(f, fcntl.LOCK_EX, 1, 2 * n)
""",
        "memory of the box's processes",
    ),
    Attack(
        "descriptors",
        "every descriptor is closed",
        "program",
        """\
import os
os.closerange(0, 4096)
""",
        "the supervisor's descriptors are not in the program",
    ),
    Attack(
        "descriptors",
        "every descriptor is written",
        "program",
        """\
import os
for fd in range(3, 4096):
    try: os.write(fd, b'{}'); print('ESCAPED')
    except OSError: pass
""",
        "only three descriptors are inherited",
    ),
    Attack(
        "descriptors",
        "as many open files as there may be",
        "program",
        """\
keep = []
try:
    while True: keep.append(open('/dev/null'))
except OSError: pass
if len(keep) > 300: print('ESCAPED')
""",
        "RLIMIT_NOFILE",
    ),
]
