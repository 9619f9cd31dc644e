"""Builds a root file system for boxes with Debian's tools, from the mirrors that apt uses on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .base import InfraError

__all__ = ["PACKAGES", "Rootfs", "build_rootfs"]

_STAMP = "rootfs.json"
_TREE = "root"
_VERSION = 1
_MINUTES = 60

# The packages of AgentBench's image (python3 to tree), and those of its Ubuntu that a minimal Debian lacks.
PACKAGES = (
    "python3",
    "python3-pip",
    "git",
    "vim",
    "curl",
    "wget",
    "unzip",
    "zip",
    "tree",
    "adduser",
    "ca-certificates",
    "e2fsprogs",
    "gpgv",
    "procps",
)
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*")
# Settings below Acquire:: that do not concern how packages are fetched.
_NOT_FETCHING = ("IndexTargets", "Changelogs", "CompressionTypes", "Languages", "cdrom", "GzipIndexes")
_TOOLS = ("mmdebstrap", "debootstrap")


@dataclasses.dataclass(frozen=True)
class Rootfs:
    """A root file system on disk, as ``cycleqd sandbox build-rootfs`` leaves it.

    Attributes:
        folder: the folder of the tree and its stamp.
        tree: the root file system.
        suite: the suite of the distribution, such as bookworm.
        digest: SHA-256 over the names, owners, modes and contents of all files except logs and caches.
        files: number of files.
        size: bytes of all files.
        packages: version of every package.
    """

    folder: Path
    tree: Path
    suite: str
    digest: str
    files: int
    size: int
    packages: dict[str, str]

    @classmethod
    def load(cls, folder: str | Path) -> Rootfs:
        """Loads the root file system in ``folder``.

        Raises:
            ValueError: if there is none, or if its build was interrupted.
        """
        folder = Path(folder).absolute()
        stamp = _read_stamp(folder)
        advice = f"build one with: cycleqd sandbox build-rootfs --into {folder}"
        if stamp is None:
            raise ValueError(f"expected a root file system in {folder}, got no file {_STAMP} there; {advice}")
        if stamp.get("version") != _VERSION or not (folder / _TREE / "usr").is_dir():
            raise ValueError(f"expected a finished root file system in {folder}, got one whose build was interrupted; {advice}")
        fields = {name: stamp[name] for name in ("suite", "digest", "files", "size", "packages")}
        return cls(folder=folder, tree=folder / _TREE, **fields)


def build_rootfs(
    into: str | Path, *, suite: str = "bookworm", mirror: str | None = None, log: Callable[[str], None] = print
) -> Rootfs:
    """Builds a root file system with mmdebstrap, or with debootstrap if mmdebstrap is not installed.

    The tree is built in a temporary folder and renamed when it is complete. An existing tree of the same suite and packages is
    kept.

    Args:
        into: folder for the tree and its stamp; created if missing.
        suite: a suite of Debian or Ubuntu, such as bookworm.
        mirror: address of the distribution; by default the sources of apt on this machine.
        log: called with single lines of progress.

    Raises:
        ValueError: if the folder holds files that this function did not write, or if apt has no source for the suite.
        InfraError: if no tool is installed, or if the tool fails.
    """
    folder = Path(into).absolute()
    if suite.startswith("-") or not suite.replace("-", "").replace(".", "").isalnum():
        raise ValueError(f"expected the name of a suite such as bookworm, got {suite!r}; correct --suite")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder, got a file at {folder}; give another --into")
    found = sorted(os.listdir(folder)) if folder.is_dir() else []
    if found and _read_stamp(folder) is None:
        raise ValueError(
            f"expected {folder} to be empty or built by this command, got {', '.join(found[:3])} and no {_STAMP}; "
            "give another --into, nothing was touched"
        )
    tool = next((name for name in _TOOLS if shutil.which(name)), None)
    if tool is None:
        raise InfraError("expected mmdebstrap or debootstrap to be installed, got neither; run apt-get install mmdebstrap")
    if tool == "debootstrap" and os.geteuid() != 0:
        raise InfraError("expected root for debootstrap, got another user; run as root, or apt-get install mmdebstrap uidmap")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        stamp = _read_stamp(folder) or {}
        if stamp.get("suite") == suite and stamp.get("asked") == sorted(PACKAGES):
            with contextlib.suppress(ValueError):
                done = Rootfs.load(folder)
                log(f"{folder} holds this root file system already; remove the folder to build it again")
                return done
        _write_stamp(folder, {"version": 0, "state": "building"})
        begin = time.monotonic()
        _sweep(folder)
        with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as work:
            tree = Path(work) / _TREE
            log(f"building {suite} with {tool} in {folder}; this takes minutes")
            sources = _sources(suite, mirror)
            _TOOL_RUNS[tool](suite, tree, sources)
            _tidy(tree)
            digest, files, size = _measure(tree)
            os.chmod(tree, 0o755)
            os.rename(tree, folder / _TREE)
        stamp = {
            "version": _VERSION,
            "suite": suite,
            "asked": sorted(PACKAGES),
            "digest": digest,
            "files": files,
            "size": size,
            "packages": _installed(folder / _TREE),
            "tool": tool,
            "seconds": round(time.monotonic() - begin, 1),
        }
        _write_stamp(folder, stamp)
    os.chmod(folder, 0o755)
    done = Rootfs.load(folder)
    log(f"{files} files, {size >> 20} MB, {len(done.packages)} packages, {stamp['seconds']:.0f} s, digest {digest[:16]}")
    return done


# --------------------------------------------------------------------------------------------------------------------
# Sources


def _sources(suite: str, mirror: str | None) -> list[str]:
    """Lines of a sources.list: the sources of apt on this machine for the suite, its updates and its security fixes."""
    if mirror is not None:
        return [f"deb {mirror} {suite} main"]
    form = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"
    try:
        listed = subprocess.run(
            ["apt-get", "indextargets", "Created-By: Packages", "--format", form], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise InfraError(f"expected apt-get to list the sources of this machine, got {error}; give --mirror URL") from error
    found: dict[tuple[str, str, str], list[str]] = {}
    for line in listed.splitlines():
        uri, release, component, key = line.split("|")
        # apt prints the placeholder itself where a source lacks the field.
        option = f"[signed-by={key}] " if key.startswith("/") else ""
        if release in (suite, f"{suite}-updates", f"{suite}-security"):
            found.setdefault((option, uri, release), []).append(component)
    if not any(release == suite for _, _, release in found):
        raise ValueError(f"expected apt on this machine to have a source for the suite {suite!r}, got none; give --mirror URL")
    return [f"deb {option}{uri} {release} {' '.join(dict.fromkeys(names))}" for (option, uri, release), names in found.items()]


def _fetch_options() -> list[str]:
    """The settings by which apt fetches on this machine (proxies, dates), as lines of an apt.conf."""
    try:
        dump = subprocess.run(["apt-config", "dump", "--no-empty"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    lines = [line for line in dump.splitlines() if line.startswith("Acquire::")]
    return [line for line in lines if line.split("::")[1].split()[0] not in _NOT_FETCHING]


# --------------------------------------------------------------------------------------------------------------------
# Tools


def _mmdebstrap(suite: str, tree: Path, sources: list[str]) -> None:
    root = os.geteuid() == 0
    target = tree if root else tree.with_suffix(".tar")
    command = ["mmdebstrap", "--variant=minbase", f"--mode={'root' if root else 'auto'}", f"--include={','.join(PACKAGES)}"]
    command += ["--skip=cleanup/reproducible"]  # keep the logs of the installation, as an image does
    command += [f"--aptopt={line}" for line in _fetch_options()]
    command += [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
    _run([*command, suite, str(target), *sources])
    if not root:
        _unpack(target, tree)
        target.unlink()


def _debootstrap(suite: str, tree: Path, sources: list[str]) -> None:
    options, _, rest = sources[0].removeprefix("deb ").rpartition("] ")
    key = options.partition("signed-by=")[2]
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    _run([*command, *([f"--keyring={key}"] if key else []), suite, str(tree), rest.split()[0]])


_TOOL_RUNS: dict[str, Callable[[str, Path, list[str]], None]] = {"mmdebstrap": _mmdebstrap, "debootstrap": _debootstrap}


def _run(command: list[str]) -> None:
    env = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=_MINUTES * 60)
    except subprocess.TimeoutExpired as error:
        raise InfraError(
            f"expected {command[0]} to end within {_MINUTES} minutes, got a timeout; give another --mirror"
        ) from error
    except OSError as error:
        raise InfraError(f"expected {command[0]} to start, got {error}; install it again") from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise InfraError(
            f"expected {command[0]} to succeed, got exit code {done.returncode} ({' / '.join(lines[-5:])[-1000:]}); "
            "correct the cause and build again"
        )


def _unpack(archive: Path, tree: Path) -> None:
    """Unpacks everything except devices, with the caller as owner: without root on the host, the caller is the box's root."""
    tree.mkdir()

    def as_own(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        if member.ischr() or member.isblk() or member.isfifo():
            return None
        # The owner must be able to fill every folder and to read every file.
        mode = stat.S_IMODE(member.mode) & 0o777
        return member.replace(mode=mode | (0o700 if member.isdir() else 0o400), deep=False)

    with tarfile.open(archive) as file:
        file.extractall(tree, filter=as_own)


# --------------------------------------------------------------------------------------------------------------------
# The tree


def _tidy(tree: Path) -> None:
    """Removes what the build took over from this machine: sources, proxies, names, caches and device files."""
    etc = tree / "etc"
    for path in ("apt/apt.conf.d/99mmdebstrap", "apt/auth.conf", "resolv.conf", "hostname", "machine-id"):
        with contextlib.suppress(FileNotFoundError):
            (etc / path).unlink()
    for name in ("resolv.conf", "machine-id"):
        (etc / name).touch()
    (etc / "hostname").write_text("box\n")
    shutil.rmtree(etc / "apt" / "sources.list.d", ignore_errors=True)
    (etc / "apt" / "sources.list.d").mkdir(parents=True, exist_ok=True)
    (etc / "apt" / "sources.list").write_text("# boxes have no network\n")
    for folder in ("dev", "proc", "sys", "run", "tmp", "var/lib/apt/lists", "var/cache/apt"):
        for path in (tree / folder).glob("*") if (tree / folder).is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _measure(tree: Path) -> tuple[str, int, int]:
    """Digest of the tree, number of files, and total bytes."""
    digest, files, size = hashlib.sha256(), 0, 0
    for path in _walk(tree):
        info = path.lstat()
        if path.is_relative_to(tree / "var/log") or path.is_relative_to(tree / "var/cache"):  # depend on the time
            continue
        what = ""
        if stat.S_ISLNK(info.st_mode):
            what = os.readlink(path)
        elif stat.S_ISREG(info.st_mode):
            with path.open("rb") as file:
                what = hashlib.file_digest(file, "sha256").hexdigest()
            files, size = files + 1, size + info.st_size
        entry = [os.fsencode(path.relative_to(tree)).hex(), info.st_mode, info.st_uid, info.st_gid, what]
        digest.update(json.dumps(entry).encode() + b"\n")
    return digest.hexdigest(), files, size


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _installed(tree: Path) -> dict[str, str]:
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for block in (tree / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(" "))
            if fields.get("Status", "").endswith(" installed"):
                found[fields["Package"]] = fields.get("Version", "")
    return dict(sorted(found.items()))


def _sweep(folder: Path) -> None:
    """Removes earlier trees.

    Raises:
        InfraError: if something is still mounted in them.
    """
    mounts = Path("/proc/self/mounts")
    mounted = [line.split()[1] for line in mounts.read_text().splitlines()] if mounts.exists() else []
    for path in sorted(folder.iterdir()):
        if path.name == _TREE or path.name.startswith("build-"):
            inside = [where for where in mounted if where.startswith(f"{path}/")]
            if inside:
                raise InfraError(f"expected no mounts in {path}, got {inside[0]}; run umount {inside[0]}")
            shutil.rmtree(path)


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and "version" in stamp else None


def _write_stamp(folder: Path, stamp: dict[str, Any]) -> None:
    temporary = folder / f"{_STAMP}.new"
    temporary.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / _STAMP)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InfraError(f"expected no other build in {folder}, got another process; wait until it has ended") from None
        yield
    finally:
        os.close(fd)
