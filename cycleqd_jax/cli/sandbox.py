"""``cycleqd sandbox``: the root file system that boxes show."""

from __future__ import annotations

from pathlib import Path

from cycleqd_jax.sandbox import build_rootfs
from cycleqd_jax.types import InputError

__all__ = ["build"]


def build(into: Path, suite: str, mirror: str | None) -> None:
    """Builds a root file system and says how to use it.

    Args:
        into: folder for it.
        suite: of Debian or Ubuntu.
        mirror: the distribution's address; by default this machine's apt says.

    Raises:
        InputError: the folder is not empty and not ours, or there is no such suite.
        InfraError: no tool is installed, or it failed.
    """
    try:
        rootfs = build_rootfs(into, suite=suite, mirror=mirror)
    except ValueError as error:
        raise InputError(str(error)) from error
    print(f"use it with: sandbox.rootfs={rootfs.folder}")
