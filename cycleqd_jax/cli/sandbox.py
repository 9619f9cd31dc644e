"""``cycleqd sandbox``: the root file system that boxes show, and the sandbox that a config asks for."""

from __future__ import annotations

from pathlib import Path

from cycleqd_jax.config import SandboxConfig
from cycleqd_jax.sandbox import Limits, Sandbox, build_rootfs
from cycleqd_jax.types import InputError

__all__ = ["build", "open_sandbox"]


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


def open_sandbox(config: SandboxConfig) -> Sandbox:
    """The sandbox of a config; the caller closes it.

    Raises:
        InputError: where parts of the config do not go together, or there is no root file system in its folder.
        InfraError: when no sandbox holds.
    """
    limits = Limits(wall_s=config.wall_s, cpu_s=config.cpu_s, memory_mb=config.memory_mb, disk_mb=config.disk_mb)
    try:
        return Sandbox(
            config.isolation,
            limits=limits,
            workers=config.workers,
            rootfs=config.rootfs,
            backend=config.backend,
            image=config.image,
        )
    except ValueError as error:
        raise InputError(f"sandbox: {error}") from error
