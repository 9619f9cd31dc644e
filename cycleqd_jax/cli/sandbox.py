"""``cycleqd sandbox``: builds the root file system of the OS task's boxes."""

from __future__ import annotations

from pathlib import Path

from cycleqd_jax.sandbox import build_rootfs
from cycleqd_jax.types import InputError

__all__ = ["build"]


def build(into: Path, suite: str, mirror: str | None) -> None:
    """Builds a root file system and prints the setting that uses it.

    Args:
        into: the folder to write.
        suite: release of Debian or Ubuntu.
        mirror: address of the distribution, by default that of this machine's apt.

    Raises:
        InputError: the folder has other content, or there is no such suite.
        InfraError: no tool for the build is installed, or it fails.
    """
    try:
        rootfs = build_rootfs(into, suite=suite, mirror=mirror)
    except ValueError as error:
        raise InputError(str(error)) from error
    print(f"use it with: sandbox.rootfs={rootfs.folder}")
