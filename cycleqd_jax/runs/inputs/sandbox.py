"""The sandbox that a config asks for."""

from __future__ import annotations

from cycleqd_jax.config import SandboxConfig
from cycleqd_jax.sandbox import Limits, Sandbox
from cycleqd_jax.types import InputError, with_place

__all__ = ["open_sandbox"]


def open_sandbox(config: SandboxConfig) -> Sandbox:
    """Opens the sandbox of a config; the caller closes it.

    Raises:
        InputError: keys of the config contradict each other, or its folder holds no root file system.
        InfraError: no kind of isolation works on this machine.
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
        raise InputError(with_place(error, "the config's section sandbox")) from error
