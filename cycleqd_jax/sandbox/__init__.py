"""Runs untrusted Python programs, servers and shells without access to the host.

    with Sandbox() as sandbox:
        sandbox.run_python("print(6 * 7)").output  # 42
        with sandbox.box() as box:
            box.exec(["bash", "-c", "useradd ann && id -u ann"]).output  # 1000

How it works: a warm Python process (the fork server, ``inside/server.py``) waits inside an outer sandbox, made by bubblewrap or
by our own code if bubblewrap is missing. The outer sandbox has no network, and no files except a read-only runtime. For every
execution, the fork server forks a supervisor into new PID, mount, IPC, UTS and network namespaces. The supervisor mounts a
throwaway /tmp or root and forks the program into its own user namespace, without capabilities outside of it, with a system call
filter and resource limits. It measures the program from outside. When the supervisor ends, the kernel ends all processes of the
box. When the host process ends, in whatever way, the fork server ends too.

Guarantees (``tests/sandbox`` attacks each claim): a program cannot read the host's files, environment or processes. It cannot
reach a network (abstract and vsock sockets included), signal or trace anything outside its box, see another box, outlive its
box, exceed its limits of time, memory, processes, disk and output, or report a result that it did not have. It cannot turn its
own fault into an error of the sandbox: a box in which nothing starts any more, or which no longer answers, is ``Killed``.

A command whose result decides a score must run with ``trusted=True``. It sees a copy of the files, in a PID namespace that the
programs of the box do not see (``inside/snapshot.py``). If earlier commands have replaced programs of the system since
:meth:`Box.seal`, a trusted command is ``Killed``.

Not guaranteed:

* Boxes share the kernel with the host, so its flaws are not covered. Use a virtual machine against determined attackers.
* CPU time and memory bandwidth are shared, so a program can measure the load of the machine and of its caches. /proc shows the
  load, memory and CPU model. /usr is that of the host. In boxes without a root file system (``rootfs``, see
  :func:`build_rootfs`), the world-readable files of /etc are those of the host too.
* Memory is measured every 50 ms while a command runs, and every second between commands. A box may exceed its limit for that
  long. Kernel buffers of sockets are estimated from their number; those of pipes are limited only by the number of descriptors.
  Each execution may take ``memory_mb + disk_mb``, and a trusted command ``disk_mb`` more.
* A program controls its own output. A task must not treat printed text as proof that a test passed.
* A trusted command that runs or reads what users wrote (their scripts, /etc/passwd, programs that the system did not have) can
  be deceived by it.
* The server script of a session is trusted: it shares its pipe with the program's stdout.
* Boxes have no network, no /sys, no terminal device (pseudo-terminals) and no setuid programs. Without root on the host, a box
  has one user (useradd works, su and chown do not), and files below /usr belong to the user nobody. Without a root file system,
  boxes have no package database.
* The backend ``docker`` is as safe as its engine, and its checks are not ``trusted``; see docs/how-to/security.md.
* The isolation ``none`` protects from mistakes only.
"""

from .base import Completed, InfraError, Isolation, Killed, Limits
from .build import Rootfs, build_rootfs
from .docker import DockerBox, DockerShell
from .probe import detect
from .sandbox import Box, Sandbox, Session, Shell

__all__ = ["Box", "Completed", "DockerBox", "DockerShell", "InfraError", "Isolation", "Killed", "Limits", "Rootfs"]
__all__ += ["Sandbox", "Session", "Shell", "build_rootfs", "detect"]
