"""Commands in the shell of a box that attack the machine, other boxes, or the checks of their own work."""

from __future__ import annotations

from .attack import Attack

__all__ = ["BOXES"]

BOXES = [
    Attack(
        "daemons",
        "programs that come and go during a check",
        "box",
        """\
cat > /tmp/d.py <<'E'
import os, shutil, time
if os.fork(): os._exit(0)
os.setsid()
while True:
    for n in ('grep', 'python3', 'bash'):
        p = f'/usr/local/bin/{n}'
        try: shutil.copy('/tmp/ok', p); os.unlink(p)
        except OSError: pass
E
printf '#!/bin/sh\\nexit 0\\n' > /tmp/ok; chmod 755 /tmp/ok; python3 /tmp/d.py > /dev/null 2>&1; sleep 0.1
""",
        "checks run on a copy of the files, in a PID namespace that the box does not see",
        default=True,
    ),
    Attack(
        "daemons",
        "signals to everything in /proc",
        "box",
        """\
cat > /tmp/d.py <<'E'
import os
if os.fork(): os._exit(0)
os.setsid()
while True:
    for p in os.listdir('/proc'):
        try: p.isdigit() and int(p) > os.getpid() and os.kill(int(p), 19)
        except OSError: pass
E
python3 /tmp/d.py > /dev/null 2>&1
""",
        "checks run on a copy of the files, in a PID namespace that the box does not see",
    ),
    Attack(
        "daemons",
        "signals to each new process",
        "box",
        """\
cat > /tmp/d.py <<'E'
import os, shutil, time
if os.fork(): os._exit(0)
os.setsid()
while True:
    for n in ('grep', 'python3', 'bash'):
        p = f'/usr/local/bin/{n}'
        try: [os.kill(k, 19) for k in range(os.getpid() + 1, os.getpid() + 50)]
        except OSError: pass
E
printf '#!/bin/sh\\nexit 0\\n' > /tmp/ok; chmod 755 /tmp/ok; python3 /tmp/d.py > /dev/null 2>&1; sleep 0.1
""",
        "checks run on a copy of the files, in a PID namespace that the box does not see",
    ),
    Attack(
        "daemons",
        "POSIX timers that continue a stopped daemon",
        "box",
        """\
python3 -c 'import os, signal, time
if os.fork(): os._exit(0)
os.setsid(); signal.setitimer(0, .01, .01); signal.signal(14, lambda *a: os.kill(0, 18))
time.sleep(60)' > /dev/null 2>&1
""",
        "checks run on a copy of the files, in a PID namespace that the box does not see",
    ),
    Attack(
        "daemons",
        "processes until no more may start",
        "box",
        "for i in $(seq 200); do sleep 60 & done 2> /dev/null",
        "checks have their own count of processes",
    ),
    Attack(
        "programs",
        "another grep",
        "box",
        """\
printf '#!/bin/sh\\nexit 0\\n' > /tmp/ok; chmod 755 /tmp/ok; cp /tmp/ok /usr/local/bin/grep
cp /tmp/ok /usr/local/bin/python3
""",
        "changes to programs, libraries and settings end the episode",
    ),
    Attack(
        "programs",
        "another loader",
        "box",
        "echo /tmp/x.so > /etc/ld.so.preload",
        "changes to programs, libraries and settings end the episode",
    ),
    Attack(
        "programs",
        "another libc",
        "box",
        "cd $(dirname $(readlink -f /lib64/ld-linux-x86-64.so.2)); cp libc.so.6 l; mv l libc.so.6",
        "changes to programs, libraries and settings end the episode",
    ),
    Attack(
        "programs",
        "a module of Python",
        "box",
        """\
d=$(python3 -c 'import os; print(os.path.dirname(os.__file__))'); echo 'import os
os._exit(0)' > $d/sitecustomize.py
""",
        "changes to programs, libraries and settings end the episode",
    ),
    Attack(
        "programs",
        "another bash in place",
        "box",
        """\
printf '#!/bin/sh\\nexit 0\\n' > /tmp/ok; chmod 755 /tmp/ok; cp /usr/bin/bash /tmp/bash
cat /tmp/ok > /usr/bin/bash; cp /tmp/ok /bin/sh
""",
        "changes to programs, libraries and settings end the episode",
    ),
    Attack(
        "environment",
        "LD_PRELOAD in profiles",
        "box",
        """\
for f in ~/.profile ~/.bashrc ~/.bash_profile /etc/profile /etc/environment
do echo 'export LD_PRELOAD=/tmp/x.so PATH=/tmp' >> $f; done
""",
        "checks get a fixed environment, and Python in isolated mode",
    ),
    Attack(
        "environment",
        "BASH_ENV and ENV",
        "box",
        """\
echo 'exit 0' > /tmp/e; export BASH_ENV=/tmp/e ENV=/tmp/e PYTHONSTARTUP=/tmp/e
echo 'export BASH_ENV=/tmp/e' >> ~/.bashrc
""",
        "checks get a fixed environment, and Python in isolated mode",
    ),
    Attack(
        "environment",
        "exported functions",
        "box",
        "grep() { return 0; }; python3() { return 0; }; export -f grep python3",
        "checks get a fixed environment, and Python in isolated mode",
    ),
    Attack(
        "environment",
        "aliases",
        "box",
        "alias grep=true python3=true test=true; echo 'alias grep=true' >> ~/.bashrc",
        "checks get a fixed environment, and Python in isolated mode",
    ),
    Attack(
        "environment",
        "PYTHONPATH and user site",
        "box",
        """\
d=$(python3 -m site --user-site); mkdir -p $d; echo 'import os
os._exit(0)' | tee $d/usercustomize.py > $d/json.py; export PYTHONPATH=$d
""",
        "checks get a fixed environment, and Python in isolated mode",
    ),
    Attack(
        "environment",
        "modules in the working folder",
        "box",
        "for m in json os re sys site; do echo 'import os; os._exit(0)' > /$m.py; cp /$m.py /root/; done",
        "checks get a fixed environment, and Python in isolated mode",
    ),
    Attack(
        "environment",
        "compiled modules",
        "box",
        "d=$(python3 -c 'import json; print(json.__cached__)'); mkdir -p $(dirname $d); echo x > $d",
        "bytecode is not read",
    ),
    Attack(
        "environment",
        "locale and readline settings",
        "box",
        """\
echo '"x": "exit 0\\n"' > ~/.inputrc
export LC_ALL=../../tmp LOCPATH=/tmp GCONV_PATH=/tmp NLSPATH=/tmp/%N
""",
        "checks get a fixed environment, and Python in isolated mode",
    ),
    Attack(
        "files",
        "folders swapped for links at the end",
        "box",
        """\
mkdir -p /tmp/a; (while :; do mv /tmp/a /tmp/b; ln -s / /tmp/a; rm /tmp/a; mv /tmp/b /tmp/a
done) > /dev/null 2>&1 &
""",
        "the file system goes with its namespace",
    ),
    Attack(
        "files",
        "deep folders",
        "box",
        "cd /root; for i in $(seq 800); do mkdir d; cd d; done 2> /dev/null",
        "no recursion; a copy that is too deep is refused",
    ),
    Attack(
        "files",
        "fifos where checks read",
        "box",
        "rm -f /root/.bashrc /etc/passwd; mkfifo /root/.bashrc /etc/passwd",
        "time limit of checks",
    ),
    Attack(
        "files",
        "a full disk",
        "box",
        "head -c 99M /dev/zero > /root/x; head -c 99M /dev/zero > /tmp/x",
        "size of the tmpfs",
    ),
    Attack(
        "files",
        "a sparse file",
        "box",
        "truncate -s 15M /root/s; truncate -s 900G /root/t && echo ESCAPED",
        "RLIMIT_FSIZE",
    ),
    Attack(
        "files",
        "all inodes",
        "box",
        "cd /tmp; for i in $(seq 30000); do : > $i || break; done 2> /dev/null",
        "number of inodes",
    ),
    Attack(
        "files",
        "devices",
        "box",
        """\
mknod /tmp/m c 1 1 && head -c 1 /tmp/m && echo ESCAPED
mknod /tmp/d b 8 0 && head -c 1 /tmp/d && echo ESCAPED
""",
        "nodev; no capability",
    ),
    Attack(
        "files",
        "names that are no text",
        "box",
        "cd /usr/local/bin; touch $'\\xff' $'\\n' $'\\x01'; mkdir -p $'/usr/lib/\\xfe'",
        "names are decoded with replacement",
    ),
    Attack(
        "fork bomb",
        "of a shell",
        "box",
        "f() { f | f & }; f",
        "RLIMIT_NPROC",
    ),
    Attack(
        "signals",
        "to pid 1 and everyone",
        "box",
        "kill -9 1; kill -15 1; kill -19 -1; kill -9 -1",
        "pid 1 belongs to the sandbox",
    ),
    Attack(
        "signals",
        "to the parent of the shell",
        "box",
        "kill -9 $PPID; kill -19 $PPID; kill -9 $$",
        "the parent is outside of the namespace",
    ),
    Attack(
        "/proc",
        "the namespaces of pid 1",
        "box",
        """\
for n in mnt pid net user; do nsenter -t 1 --$n true && echo ESCAPED; done 2> /dev/null
ls /proc/1/root/ && echo ESCAPED
""",
        "pid 1 belongs to another user namespace",
    ),
    Attack(
        "/proc",
        "the files of the check",
        "box",
        "for p in /proc/[0-9]*; do ls $p/root/fs > /dev/null 2>&1 && echo ESCAPED; done",
        "checks run on a copy of the files, in a PID namespace that the box does not see",
    ),
    Attack(
        "namespaces",
        "mounts",
        "box",
        """\
unshare -Ur true && echo ESCAPED; mount -t tmpfs none /mnt && echo ESCAPED
umount /proc && echo ESCAPED; chroot / true
""",
        "system call filter",
    ),
    Attack(
        "marker",
        "forged exit codes",
        "box",
        "echo '0 0' >&8; printf '%05000d 0\\n' 0 >&8; exec 8>&-",
        "tokens; numbers of at most three digits",
    ),
    Attack(
        "marker",
        "no builtins",
        "box",
        "enable -n printf eval exec; printf() { :; }; eval() { :; }; PATH=",
        "a shell without an answer times out",
    ),
    Attack(
        "network",
        "of the host",
        "box",
        "exec 3<>/dev/tcp/1.1.1.1/53 && echo ESCAPED; ip link add x type dummy && echo ESCAPED",
        "a network namespace of its own",
    ),
]
