"""Building of root file systems, with stand-ins for mmdebstrap and apt."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from cycleqd_jax.cli import main
from cycleqd_jax.sandbox import InfraError, Rootfs, Sandbox, build, build_rootfs

TOOL = """#!/bin/sh
printf '%s\\n' "$@" > {calls}/{name}
for last; do case "$last" in */root|*/root.tar) tree="$last";; esac; done
case "$tree" in *.tar) target="$tree"; tree=$(mktemp -d);; esac
mkdir -p "$tree/usr/bin" "$tree/var/lib/dpkg" "$tree/var/log" "$tree/dev"
mkdir -p "$tree/etc/apt/apt.conf.d" "$tree/etc/apt/sources.list.d"
echo 'Acquire::http::Proxy "http://secret.example:1";' > "$tree/etc/apt/apt.conf.d/99mmdebstrap"
echo 'deb http://secret.example/debian x main' > "$tree/etc/apt/sources.list"
echo secret > "$tree/etc/resolv.conf"; echo secret > "$tree/etc/hostname"; date +%N > "$tree/var/log/x"
printf 'Package: tree\\nStatus: install ok installed\\nVersion: 2\\n\\n' > "$tree/var/lib/dpkg/status"
ln -s usr/bin "$tree/bin"
[ -z "$target" ] || tar -C "$tree" -cf "$target" .
{end}
"""
APT = """#!/bin/sh
echo 'http://mirror.example/debian/|bookworm|main|$(SIGNED_BY)'
echo 'http://mirror.example/debian/|bookworm|contrib|$(SIGNED_BY)'
echo 'http://mirror.example/debian/|bookworm-updates|main|$(SIGNED_BY)'
echo 'http://other.example/|stable|main|/usr/share/keyrings/other.gpg'
"""
CONFIG = """#!/bin/sh
echo 'Acquire::http::Proxy "http://proxy.example:3128";'
echo 'Acquire::IndexTargets::deb::Packages::MetaKey "x";'
echo 'APT::Install-Recommends "1";'
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, programs = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    texts = {"mmdebstrap": TOOL.format(calls=folder, name="mmdebstrap", end=""), "apt-get": APT, "apt-config": CONFIG}
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(build, "_TOOLS", ("mmdebstrap",))
    return folder


def test_built_from_the_sources_of_this_machine(calls: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    rootfs = build_rootfs(tmp_path / "made", log=lines.append)
    asked = (calls / "mmdebstrap").read_text().splitlines()
    assert asked[-2:] == [
        "deb http://mirror.example/debian/ bookworm main contrib",
        "deb http://mirror.example/debian/ bookworm-updates main",
    ]
    assert '--aptopt=Acquire::http::Proxy "http://proxy.example:3128";' in asked
    assert not [line for line in asked if "IndexTargets" in line or "Recommends" in line]
    assert rootfs == Rootfs.load(tmp_path / "made")
    assert (rootfs.suite, rootfs.packages) == ("bookworm", {"tree": "2"})
    assert re.fullmatch("[0-9a-f]{64}", rootfs.digest)
    assert rootfs.digest[:16] in lines[-1]
    assert sorted(os.listdir(tmp_path / "made")) == ["root", "rootfs.json"]
    # The tree holds nothing of this machine, and its digest does not depend on the time of the build.
    for path in rootfs.tree.rglob("*"):
        assert not path.is_file() or "secret" not in path.read_text()
    assert build_rootfs(tmp_path / "again", log=lines.append).digest == rootfs.digest


def test_an_existing_tree_is_kept(calls: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    first = build_rootfs(tmp_path / "made", log=lines.append)
    (calls / "mmdebstrap").unlink()
    assert build_rootfs(tmp_path / "made", log=lines.append) == first
    assert not (calls / "mmdebstrap").exists()
    assert "holds this root file system already" in lines[-1]
    # Another suite replaces the tree, and an interrupted build is replaced.
    assert build_rootfs(tmp_path / "made", suite="other", mirror="http://x.example", log=lines.append).suite == "other"
    assert (calls / "mmdebstrap").read_text().splitlines()[-1] == "deb http://x.example other main"
    stamp = tmp_path / "made" / "rootfs.json"
    stamp.write_text(json.dumps({"version": 0, "state": "building"}))
    (tmp_path / "made" / "build-x" / "root").mkdir(parents=True)
    with pytest.raises(ValueError, match="interrupted"):
        Rootfs.load(tmp_path / "made")
    build_rootfs(tmp_path / "made", log=lines.append)
    assert sorted(os.listdir(tmp_path / "made")) == ["root", "rootfs.json"]


def test_other_folders_are_not_touched(calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("x")
    assert main(["sandbox", "build-rootfs", "--into", str(tmp_path / "mine")]) == 2
    assert "got thesis and no rootfs.json; give another --into, nothing was touched" in capsys.readouterr().err
    assert os.listdir(tmp_path / "mine") == ["thesis"]
    assert main(["sandbox", "build-rootfs", "--into", str(tmp_path / "mine" / "thesis")]) == 2
    (tmp_path / "file").write_text(json.dumps({"version": 1}))
    with pytest.raises(ValueError, match="name of a suite"):
        build_rootfs(tmp_path / "made", suite="--variant=x")
    with pytest.raises(ValueError, match=r"a source for the suite 'noble'.*--mirror"):
        build_rootfs(tmp_path / "made", suite="noble")


def test_failures_are_errors(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = calls.parent / "bin" / "mmdebstrap"
    tool.write_text(TOOL.format(calls=calls, name="mmdebstrap", end="echo E: no such package >&2; exit 25"))
    with pytest.raises(InfraError, match=r"exit code 25.*no such package"):
        build_rootfs(tmp_path / "made")
    assert os.listdir(tmp_path / "made") == ["rootfs.json"]
    with pytest.raises(ValueError, match="interrupted"):
        Sandbox(rootfs=tmp_path / "made")
    monkeypatch.setattr(build, "_TOOLS", ())
    with pytest.raises(InfraError, match="apt-get install mmdebstrap"):
        build_rootfs(tmp_path / "other")


def test_a_sandbox_describes_its_boxes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file rootfs\.json there; build one with: cycleqd sandbox build-rootfs"):
        Sandbox(rootfs=tmp_path)
    with pytest.raises(ValueError, match="remove rootfs"):
        Sandbox("none", rootfs=tmp_path)
    with Sandbox("none") as sandbox:
        assert (sandbox.system, sandbox.boxes) == ("host", "boxes are temporary folders of this machine")


def test_boxes_show_a_built_root_file_system(debian: Sandbox, rootfs: str) -> None:
    digest = Rootfs.load(rootfs).digest
    assert debian.system.endswith(digest)
    assert digest[:8] in debian.boxes
    with debian.box() as box:
        assert box.exec(["sh", "-c", ". /etc/os-release; echo $ID"]).output == "debian\n"
        tools = ["python3", "pip", "git", "vim", "curl", "wget", "unzip", "zip", "tree", "ps", "useradd", "find", "awk"]
        done = box.exec(["sh", "-c", f"for t in {' '.join(tools)}; do command -v $t || echo missing $t; done"])
        assert done.ok
        assert "missing" not in done.output
        assert box.exec(["sh", "-c", "exit 5"], trusted=True).exit_code == 5


@pytest.mark.skipif(os.getuid() != 0, reason="several users in a box need root on the host")
def test_two_real_users(debian: Sandbox) -> None:
    with debian.box() as box:
        shell = box.shell()
        assert shell.run("useradd -m -s /bin/bash ann; useradd -m bob; groupadd team; usermod -aG team bob; su - ann").ok
        assert shell.run("whoami; pwd; umask 077; echo mine > note").output == "ann\n/home/ann\n"
        shell.run("exit")
        assert box.exec(["runuser", "-l", "bob", "-c", "cat /home/ann/note"]).exit_code == 1
        assert box.exec(["su", "bob", "-c", "id -un; id -Gn; id -u"]).output == "bob\nbob team\n1001\n"
        assert box.exec(["sh", "-c", "chown bob:team /home/ann/note; stat -c '%U %G' /home/ann/note"]).output == "bob team\n"
        assert box.exec(["sh", "-c", "chmod u+s /usr/bin/find; stat -c %a /usr/bin/find"]).output == "4755\n"
        assert box.exec(["sh", "-c", "userdel -r ann; id ann"]).exit_code == 1
