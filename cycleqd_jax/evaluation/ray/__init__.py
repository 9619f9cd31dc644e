"""Evaluation workers in other processes and on other machines, with Ray.

Every worker is a Ray actor. It loads base, experts and basis once, and has an engine on devices of its own. Only genomes and
evaluations travel. An evaluation depends on its genome alone, so the evaluation of a worker that has died is repeated on
another one. Ray itself (the extra ``ray``) is imported by :class:`RayCluster` only.
"""

from cycleqd_jax.evaluation.ray.cluster import Cluster, RayCluster, WorkerLost, check_ray
from cycleqd_jax.evaluation.ray.host import Host, Hosted, Program
from cycleqd_jax.evaluation.ray.pool import Patience, RayPool
from cycleqd_jax.evaluation.ray.records import WorkerRecord

__all__ = [
    "Cluster",
    "Host",
    "Hosted",
    "Patience",
    "Program",
    "RayCluster",
    "RayPool",
    "WorkerLost",
    "WorkerRecord",
    "check_ray",
]
