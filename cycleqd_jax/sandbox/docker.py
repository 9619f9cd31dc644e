"""Boxes as containers of a Docker engine, controlled by the ``docker`` command, as in AgentBench.

The main process of a container reads a pipe from this process. When this process ends, in whatever way, the pipe closes and
the container ends and is removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import shlex
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import IO

from .base import Completed, InfraError, Killed, Limits
from .inside.output import FLOOD, QUIET

__all__ = ["IMAGE", "Docker", "DockerBox", "DockerShell"]

IMAGE = "local-os/default"
_CALL_SECONDS = 60.0  # most time for an answer of the engine
_LONGEST_ARGUMENT = 1 << 17  # bytes of an argument that Linux passes to a program, with its final NUL
_LONGEST_ARGUMENTS = 1 << 20  # of all arguments together; the usual limit is twice that, and the environment counts too
# Docker's default capabilities, named so that an engine with other settings grants no more.
_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "NET_RAW",
    "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP",
)  # fmt: skip
_ATTEND = "echo up; cat > /dev/null"  # runs until its input ends
# Runs a command with both streams merged and a timeout inside the container. `timeout` exits with code 137.
_RUN = 'exec 2>&1; exec timeout --signal=KILL "$@"'


class Docker:
    """A Docker engine.

    Args:
        image: image of the containers. It must be present on the engine; nothing is pulled.

    Attributes:
        image: image of the containers.
        digest: digest of the image.

    Raises:
        InfraError: if there is no ``docker`` command, the engine does not answer, or the image is missing.
    """

    def __init__(self, image: str = IMAGE) -> None:
        self.image = image
        self._boxes: set[DockerBox] = set()
        self._lock = threading.Lock()
        version = _call(["docker", "version", "--format", "{{.Server.Version}}"])
        if version.returncode:
            raise InfraError(f"expected a Docker engine, got {_output_of(version)!r}; start it or use the backend bwrap")
        found = _call(["docker", "image", "inspect", "--format", "{{.Id}}", image])
        if found.returncode:
            raise InfraError(
                f"expected the image {image} on the Docker engine, got {_output_of(found)!r}; "
                f"build it or run docker pull {image}"
            )
        self.digest = found.stdout.strip()

    def box(self, limits: Limits, turn: threading.BoundedSemaphore) -> DockerBox:
        """Starts a container.

        Raises:
            InfraError: if the engine does not start it.
        """
        box = DockerBox(self, limits, turn)
        with self._lock:
            self._boxes.add(box)
        return box

    def forget(self, box: DockerBox) -> None:
        """Removes a container from the list of open containers."""
        with self._lock:
            self._boxes.discard(box)

    def close(self) -> None:
        """Removes all containers."""
        with self._lock:
            boxes = list(self._boxes)
        for box in boxes:
            box.close()


class DockerBox:
    """A container, with the methods of :class:`~cycleqd_jax.sandbox.Box`."""

    def __init__(self, docker: Docker, limits: Limits, turn: threading.BoundedSemaphore) -> None:
        self.limits = limits
        self.name = f"cycleqd-{os.getpid()}-{secrets.token_hex(6)}"
        self._docker, self._turn = docker, turn
        self._lock = threading.RLock()
        self._living: list[subprocess.Popen[bytes]] = []
        self._closed = False
        memory, processes = f"{limits.memory_mb + limits.disk_mb}m", 4 * limits.processes
        command = ["docker", "run", "--rm", "--interactive", "--init", "--name", self.name, "--hostname", "box"]
        command += [
            "--user",
            "root",
            "--network",
            "none",
            "--cap-drop",
            "ALL",
            *(f"--cap-add={name}" for name in _CAPABILITIES),
        ]
        command += ["--security-opt", "no-new-privileges", "--memory", memory, "--memory-swap", memory]
        command += ["--pids-limit", str(processes), "--cpus", "1", "--ulimit", "core=0", "--ulimit", "nofile=1024"]
        command += ["--ulimit", f"fsize={limits.disk_mb << 20}", "--workdir", "/", "--pull", "never", "--entrypoint", "sh"]
        self._attendant = self._start([*command, docker.image, "-c", _ATTEND])
        greeting = _read_until(self._attendant, b"up\n", _CALL_SECONDS, 4096)
        if not greeting.endswith(b"up\n"):
            self.close()
            text = greeting.decode(errors="replace").strip()
            raise InfraError(f"expected Docker to start a container of {docker.image}, got {text!r}; check the engine")

    def exec(
        self,
        argv: list[str],
        *,
        stdin: str = "",
        cwd: str = "/",
        timeout: float | None = None,
        trusted: bool = False,
        allowed: Mapping[str, str] | None = None,
    ) -> Completed:
        """Runs one command. The exit code is 127 if there is no such program.

        Args:
            argv: the program (looked up in PATH) and its arguments.
            stdin: input of the command.
            cwd: working directory.
            timeout: seconds; by default ``limits.wall_s``.
            trusted: has no effect here: changes to the container's programs cannot be detected.
            allowed: has no effect here.

        Raises:
            Killed: if the container has ended.
            InfraError: if Docker does not work.
        """
        timeout = timeout or self.limits.wall_s
        with self._lock, self._turn:
            self._refuse_closed()
            # No program can receive an argument with a NUL, or one that is too long.
            if any("\0" in argument for argument in (cwd, *argv)):
                return Completed("embedded null byte\n", 126 if "\0" in cwd else 127, False, False, 0.0)
            sizes = [len(argument.encode("utf-8", "surrogatepass")) + 1 for argument in argv]
            if max(sizes, default=0) > _LONGEST_ARGUMENT or sum(sizes) > _LONGEST_ARGUMENTS:
                return Completed("argument list too long\n", 127, False, False, 0.0)
            command = ["docker", "exec", "--interactive", "--workdir", cwd, self.name]
            command += ["sh", "-c", _RUN, "sh", f"{timeout:.3f}s"]
            begin = time.monotonic()
            process = self._start([*command, *argv])
            try:
                data, why = _exchange(process, stdin.encode("utf-8", "surrogatepass"), timeout, self.limits.output_bytes)
                seconds = time.monotonic() - begin
            except BaseException:
                self._end(process, wait=0.0)
                raise
            self._end(process, wait=0.0 if why else 2.0)
            code = process.returncode
            if code == 137 and seconds >= timeout:
                why = "time"
            if why == "stuck" or (code and not self._runs()):
                self.close()
                raise Killed("a program ended the box")
            return _completed(data, None if why == "time" else -9 if why else code, why, seconds, self.limits)

    def seal(self) -> None:
        """Does nothing: changes to the container's programs cannot be detected."""

    def changes(self) -> dict[str, str]:
        """An empty dictionary: changes to the container's programs cannot be detected."""
        return {}

    def shell(self) -> DockerShell:
        """An interactive login shell. It starts with its first command."""
        return DockerShell(self)

    def close(self) -> None:
        """Removes the container. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(InfraError):
                _call(["docker", "rm", "--force", "--volumes", self.name])
            for process in list(self._living):
                self._end(process, wait=2.0)
        self._docker.forget(self)

    def __enter__(self) -> DockerBox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        try:
            # In a new session, so that Ctrl-C reaches only this process.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise InfraError(f"expected docker to start, got {error}; install Docker or use the backend bwrap") from error
        self._living.append(process)
        return process

    def _end(self, process: subprocess.Popen[bytes], wait: float) -> None:
        """Ends a ``docker`` command, and with it the program that it has started in the container."""
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._living.remove(process)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise Killed("the box is closed")

    def _runs(self) -> bool:
        """Whether the container is running.

        Raises:
            InfraError: if the engine does not answer, which is not a fault of the programs in the container.
        """
        found = _call(["docker", "container", "inspect", "--format", "{{.State.Running}}", self.name])
        if found.returncode == 0:
            return found.stdout.strip() == "true"
        version = _call(["docker", "version", "--format", "{{.Server.Version}}"])
        if version.returncode:
            self.close()
            raise InfraError(f"expected the Docker engine to answer, got {_output_of(version)!r}; start it again and resume")
        return False


class DockerShell:
    """An interactive login shell in a container, with the methods of :class:`~cycleqd_jax.sandbox.Shell`."""

    def __init__(self, box: DockerBox) -> None:
        self._box = box
        self._process: subprocess.Popen[bytes] | None = None
        self._busy = False  # whether an earlier command has not ended in time
        self._markers: list[bytes] = []

    def run(self, code: str, timeout: float | None = None) -> Completed:
        """Types ``code`` and returns the output of the shell and its programs, and the last exit code.

        After a timeout, the command goes on and the next one is typed all the same, see :class:`~cycleqd_jax.sandbox.Shell`.

        Args:
            code: one or more lines of bash.
            timeout: seconds; by default ``limits.wall_s``.

        Raises:
            Killed: if earlier commands have ended the box or keep the shell from starting.
            InfraError: if Docker does not work.
        """
        box = self._box
        timeout = timeout or box.limits.wall_s
        with box._lock, box._turn:
            box._refuse_closed()
            if self._process is None:
                argv = ["bash", "--login", "--noediting", "-i"]
                self._process = box._start(["docker", "exec", "--interactive", "--workdir", "/", box.name, *argv])
                greeting = self._type(f"exec 2>&1; {QUIET}", 10.0)
                if greeting.exit_code != 0:
                    if box._runs():
                        box.close()
                    raise Killed(f"the shell does not start: {greeting.output[-500:]}")
            code = code.replace("\0", "")
            return self._type(code if self._busy else f"eval {shlex.quote(code)}", timeout)

    def _type(self, command: str, timeout: float) -> Completed:
        box, process, begin = self._box, self._process, time.monotonic()
        assert process is not None
        token = secrets.token_hex(8)
        # A command that reads its input receives the next line that is typed, and then waits until its timeout.
        marker = f"printf '\\n{token} %d\\n' $?\n"
        typed = f"{command}\n{marker}".encode("utf-8", "replace")
        data, why = _exchange(process, typed, timeout, box.limits.output_bytes, until=token.encode())
        seconds = time.monotonic() - begin
        head, found, tail = data.rpartition(f"\n{token} ".encode())
        exit_code = re.match(rb"[0-9]{1,3}\s", tail)
        self._busy = why == "time"
        self._markers.append(f"\n{token} ".encode())
        if self._busy or (found and not why and exit_code is not None):
            head = data if self._busy else head
            for mark in self._markers:  # of earlier commands that ended later, or read by a program
                head = re.sub(re.escape(mark) + rb"[0-9]{1,3}\n", b"", head)
                head = head.replace(f"printf '\\n{mark.decode().strip()} %d\\n' $?\n".encode(), b"")
            code = None if exit_code is None or self._busy else int(exit_code.group())
            return _completed(head, code, why, seconds, box.limits)
        box._end(process, wait=0.0 if why else 2.0)
        self._process, self._markers = None, []
        code = -9 if why else process.returncode
        if code and not why and not box._runs():
            box.close()
            raise Killed("a program ended the box")
        return _completed(data, code, why, seconds, box.limits)


def _exchange(
    process: subprocess.Popen[bytes], given: bytes, timeout: float, limit: int, until: bytes | None = None
) -> tuple[bytes, str]:
    """Sends input and collects output until the process ends or, with ``until``, until a line with this mark arrives.

    Returns:
        At most ``limit`` bytes (and the last line), and the limit that was reached: "" for none, "time", "output", or "stuck"
        for a command that the container should have ended.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    source, sink = process.stdout.fileno(), process.stdin.fileno()
    os.set_blocking(source, False)
    os.set_blocking(sink, False)
    end = time.monotonic() + timeout + (0.0 if until else 10.0)
    todo, data, total, last = memoryview(given), bytearray(), 0, b""
    while True:
        left = end - time.monotonic()
        if left <= 0:
            return bytes(data), "time" if until else "stuck"
        poll = select.poll()
        poll.register(source, select.POLLIN)
        if todo:
            poll.register(sink, select.POLLOUT)
        ready = dict(poll.poll(1000 * left))
        if sink in ready:
            try:
                todo = todo[os.write(sink, todo[:65536]) :]
            except BlockingIOError:
                pass
            except OSError:
                todo = memoryview(b"")
            if not todo and until is None:
                process.stdin.close()
        elif not given and until is None and not process.stdin.closed:
            process.stdin.close()
        if source in ready:
            chunk = os.read(source, 65536)
            if not chunk:
                return bytes(data), ""
            total += len(chunk)
            data += chunk[: max(0, limit + 1 - len(data))]
            last = (last + chunk)[-256:]
            at = -1 if until is None else last.rfind(b"\n" + until)
            if at >= 0 and last.endswith(b"\n") and len(last) > at + 2 + len(until or b""):
                return bytes(data if total <= limit else data + last[at:]), ""
            if total > FLOOD * limit:
                return bytes(data), "output"


def _completed(data: bytes, code: int | None, why: str, seconds: float, limits: Limits) -> Completed:
    limit = limits.output_bytes
    return Completed(data[:limit].decode("utf-8", "replace"), code, why == "time", len(data) > limit, seconds)


def _read_until(process: subprocess.Popen[bytes], mark: bytes, seconds: float, limit: int) -> bytes:
    stream: IO[bytes] | None = process.stdout
    assert stream is not None
    data, end = b"", time.monotonic() + seconds
    while not data.endswith(mark) and len(data) < limit:
        ready, _, _ = select.select([stream], [], [], max(0.0, end - time.monotonic()))
        chunk = os.read(stream.fileno(), 4096) if ready else b""
        if not chunk:
            break
        data += chunk
    return data


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_CALL_SECONDS
        )
    except FileNotFoundError as error:
        raise InfraError("expected the docker command, got no such program; install Docker or use the backend bwrap") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InfraError(f"expected docker to answer, got {error}; start the engine or use the backend bwrap") from error


def _output_of(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr or done.stdout).strip()[-300:]
