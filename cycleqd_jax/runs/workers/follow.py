"""A run whose models span several machines: what all of its processes check, and what the processes beside process 0 do."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
from collections.abc import Mapping
from typing import Any

import jax

from cycleqd_jax.compilation import device_kind
from cycleqd_jax.config import RunConfig, to_dict
from cycleqd_jax.processes import Processes
from cycleqd_jax.runs.coefficients import Merges
from cycleqd_jax.runs.devices.mirror import Mirror
from cycleqd_jax.runs.folder.run_folder import flat
from cycleqd_jax.runs.opening import open_context
from cycleqd_jax.runs.workers.placement import Placement
from cycleqd_jax.runs.workers.remote import software
from cycleqd_jax.sharding import mesh_sizes
from cycleqd_jax.types import InputError, no_progress

__all__ = ["agree_on_inputs", "agree_on_run", "check_distributed", "follow"]


def check_distributed(config: RunConfig) -> None:
    """Checks that a run can divide its models between the processes.

    Raises:
        InputError: it can't, or the mesh does not have all devices of all processes.
    """
    wanted = {
        "language models": (config.segments, "tasks.*.kind segmentation"),
        "genome.space expert": (config.genome.space == "dense" and not config.search.coefficients, "genome.space dense"),
        "ray.address null": (config.ray.address is not None, f"ray.address {config.ray.address}"),
        "gradient null": (config.gradient is not None, "a section gradient"),
        "search.racing null": (config.search.racing is not None, "a section search.racing"),
        "engine.population 1": (config.engine.population != 1, f"engine.population {config.engine.population}"),
        "mesh.population 1": (config.mesh.population != 1, f"mesh.population {config.mesh.population}"),
    }
    for what, (refused, found) in wanted.items():
        if refused:
            raise InputError(f"expected {what} with --distributed, got {found}; correct it, or leave --distributed out")
    devices, processes = jax.device_count(), jax.process_count()
    _, fsdp, tensor = mesh_sizes(devices, population=1, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    if math.prod((fsdp, tensor)) != devices:
        raise InputError(
            f"expected mesh.fsdp × mesh.tensor of the {devices} devices of {processes} processes, got {fsdp} × {tensor}; "
            "choose sizes whose product is that"
        )


def agree_on_run(config: RunConfig, command: Mapping[str, Any], processes: Processes) -> None:
    """Compares command, config, software and kind of device of all processes.

    Args:
        config: the config of this process.
        command: what else the command line has, by name.
        processes: the processes of the run.

    Raises:
        InputError: they differ.
    """
    processes.agree("the command's", command, "start all processes with the same command")
    processes.agree("the config's", flat(to_dict(config)), "start all processes with the same config")
    versions = {**software(), "jaxlib": importlib.metadata.version("jaxlib"), "kind of device": device_kind()}
    processes.agree("version of", versions, "install the same versions on all machines of one kind")


def agree_on_inputs(processes: Processes, digests: Mapping[str, str]) -> None:
    """Compares the digests of models and problems of all processes.

    Raises:
        InputError: they differ.
    """
    processes.agree("digest of", digests, "give all machines the same files")


def follow(config: RunConfig, mirror: Mirror) -> int:
    """Makes the calls of process 0, until it ends; writes nothing into the run folder.

    Args:
        config: the config of the run.
        mirror: the mirror of this process.

    Returns:
        The exit code of process 0.

    Raises:
        InputError: config, data or models can't be used, or differ from those of process 0.
    """

    def log(line: str) -> None:
        """Process 0 writes the line."""

    with contextlib.ExitStack() as stack:
        context = open_context(
            config,
            stack,
            progress=no_progress,
            log=log,
            check=lambda digests: agree_on_inputs(mirror.processes, digests),
            read_only=True,
            mirror=mirror,
        ).context
        Placement(context)
        Merges(context)
        return mirror.follow()
