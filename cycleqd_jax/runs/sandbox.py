"""The sandbox that a config asks for."""

from __future__ import annotations

from cycleqd_jax.config import SandboxConfig
from cycleqd_jax.sandbox import Limits, Sandbox
from cycleqd_jax.types import InputError

__all__ = ["open_sandbox"]


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
