"""A private MariaDB server for tests, started as docs/how-to/mysql.md says, with its own folder and a Unix socket only."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FLAGS = (
    "--skip-networking",
    "--skip-log-bin",
    "--skip-symbolic-links",  # else DATA DIRECTORY writes wherever the server may
    "--local-infile=0",
    "--enforce-storage-engine=InnoDB",  # the engine whose tables are counted
    "--innodb-temp-data-file-path=ibtmp1:12M:autoextend:max:256M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-buffer-pool-size=64M",
)
LARGEST_FILE_KB = 256 * 1024  # else CREATE TABLE … SELECT fills the folder for temporary files, and can't be stopped
PASSWORD = "p@ss/word"


def missing() -> str | None:
    """The reason why no server can be started, or None."""
    if _program("mariadbd") is None or _program("mariadb-install-db") is None:
        return "mariadbd is not installed (apt-get install mariadb-server)"
    return None


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """Runs a server; yields its socket. The account is root with :data:`PASSWORD`."""
    folder = Path(tempfile.mkdtemp(prefix="cqdb-"))  # paths of sockets must be short
    socket, log = folder / "s", folder / "log"
    common = ["--no-defaults", f"--datadir={folder / 'data'}", f"--user={getpass.getuser()}"]
    install = [_program("mariadb-install-db"), *common, "--skip-test-db", "--auth-root-authentication-method=normal"]
    server: subprocess.Popen | None = None
    try:
        (folder / "init.sql").write_text(f"SET PASSWORD FOR root@localhost = PASSWORD('{PASSWORD}');")
        with log.open("w") as stream:
            subprocess.run([*install, "--skip-name-resolve"], check=True, stdout=stream, stderr=stream, env=_environment())
            command = [
                "bash",
                "-c",
                f'trap "" XFSZ; ulimit -f {LARGEST_FILE_KB}; exec "$@"',
                "-",
                _program("mariadbd"),
                *common,
                *FLAGS,
                f"--socket={socket}",
                f"--pid-file={folder / 'pid'}",
            ]
            command += [f"--init-file={folder / 'init.sql'}"]
            server = subprocess.Popen(command, stdout=stream, stderr=stream, env=_environment())
        for _ in range(600):
            if socket.exists():
                break
            if server.poll() is not None:
                break
            time.sleep(0.05)
        if not socket.exists():
            raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")
        yield str(socket)
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"}
