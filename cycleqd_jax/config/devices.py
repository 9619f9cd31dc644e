"""The keys of what a run computes on: the devices of its process, and the workers of a cluster."""

from __future__ import annotations

import dataclasses

from cycleqd_jax.config.fields import field

__all__ = ["MeshConfig", "RayConfig"]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The arrangement of the devices. One of the axes may be -1, which means all devices that the other axes leave.

    Attributes:
        population: number of device groups. Each group holds the experts and evaluates its own children.
        fsdp: number of devices over which every weight of a model is sharded.
        tensor: number of devices over which the heads and hidden units of every layer are sharded (tensor parallelism).
    """

    population: int = field(1, minimum=1, special=-1)
    fsdp: int = field(1, minimum=1, special=-1)
    tensor: int = field(1, minimum=1, special=-1)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Population, fsdp and tensor, as configured."""
        return self.population, self.fsdp, self.tensor


@dataclasses.dataclass(frozen=True)
class RayConfig:
    """Evaluation on the workers of a Ray cluster. The archives do not depend on these keys.

    Attributes:
        address: ``host:port`` of the cluster's head, or ``auto`` for the cluster that this machine is part of. Null evaluates
            in this process, on the devices of ``mesh``.
        workers: maximum number of workers. Each has a group of ``mesh.fsdp`` × ``mesh.tensor`` devices.
        cpus: cores per worker.
        gpus: GPUs per worker. Null is ``mesh.fsdp`` × ``mesh.tensor``, or 0 where this process computes on CPUs.
        deadline: seconds for the evaluation of one individual. A worker that needs more is ended, and another one evaluates the
            individual. The first evaluation of a worker also compiles. The deadline must be above ``search.deadline``, and at
            least twice that with ``engine.population``.
        start: seconds that a worker may take to load the base, the experts and their singular directions.
        deaths: an individual is quarantined after this many workers ended while they evaluated it.
    """

    address: str | None = None
    workers: int = field(8, minimum=1)
    cpus: float = field(1.0, minimum=0)
    gpus: float | None = field(None, minimum=0)
    deadline: float = field(3600.0, above=0)
    start: float = field(3600.0, above=0)
    deaths: int = field(3, minimum=1)
