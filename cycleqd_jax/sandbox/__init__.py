"""Runs untrusted Python, SQL servers and shells, fast, without letting them at the host.

    with Sandbox() as sandbox:
        sandbox.run_python("print(6 * 7)").output  # 42
        with sandbox.box() as box:
            box.exec(["bash", "-c", "useradd ann && id -u ann"]).output  # 1000

How: one warm Python process (the fork server, ``inside/server.py``) waits inside an outer sandbox made by bubblewrap, or by
ourselves where there is none: no network, no files but a read-only runtime. For every execution it forks a supervisor into
new PID, mount, IPC, UTS and network namespaces; that mounts a throwaway /tmp or root, forks the program into a user namespace
of its own, without capabilities over anything outside, with a system call filter and resource limits, and measures it from
outside. When the supervisor ends, the kernel ends all processes of the box. When the host process ends, however it ends,
the fork server does.

Holds (tests/sandbox attack each): a program can't read the host's files, environment or processes, reach a network (abstract
and vsock sockets included), signal or trace anything outside its box, meet another box, outlive its box, go beyond its
limits of time, memory, processes, disk and output, or report a result that it did not have. Nor can it turn its own fault
into an error of the sandbox: a box in which nothing starts any more, or which no longer answers, is ``Killed``.

A command whose result is a verdict on earlier ones is to be run with ``trusted=True``: what runs in the box may have replaced
the programs of the system, and then it is ``Killed`` too.

Does not hold, so do not rely on it:

* A flaw of the kernel itself: boxes share it with the host. Use a virtual machine against determined attackers.
* Fairness: CPU time and memory bandwidth are shared, and what a program can learn of the load (or of caches) it may learn.
  /proc shows the machine's load, memory and CPU model; /usr is the host's, and so are, in boxes without a root file system
  (``rootfs``, see :func:`build_rootfs`), the world-readable files of /etc.
* Memory is counted from outside, every 50 ms, as what processes hold, so a box may exceed its limit for that long; buffers
  that the kernel holds for open pipes and sockets (hundreds of megabytes at most, with 256 descriptors per process) are
  bounded by the number of descriptors only. Each execution may take ``memory_mb + disk_mb``.
* Output comes from one program: what it prints to pretend that a *test* passed is for the task to see through.
* A trusted command that itself runs, or believes, what users wrote (their scripts, /etc/passwd, a program that the system
  did not have) is as good as that.
* The server script of a session is trusted: it speaks on the same pipe that is its stdout.
* Boxes have no network, no /sys, no terminal device (pseudo-terminals), no setuid programs; without root on the host a box
  has a single user (useradd works, su and chown do not), and files below /usr belong to nobody. Without a root file system
  they have no package database.
* Of the backend ``docker``, what docs/SECURITY.md says: containers are as safe as the engine makes them, and checks in them
  are not ``trusted``.
* The isolation ``none`` protects from nothing but mistakes.
"""

from .base import Completed, InfraError, Isolation, Killed, Limits
from .build import Rootfs, build_rootfs
from .docker import DockerBox, DockerShell
from .sandbox import Box, Sandbox, Session, Shell, detect

__all__ = ["Box", "Completed", "DockerBox", "DockerShell", "InfraError", "Isolation", "Killed", "Limits", "Rootfs"]
__all__ += ["Sandbox", "Session", "Shell", "build_rootfs", "detect"]
