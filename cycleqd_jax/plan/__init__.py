"""What a run needs before it is started: memory, disk and time by stage, from shapes, or from what XLA compiles of them."""

from cycleqd_jax.plan.compiled import Collective, Program, compile_programs, topology
from cycleqd_jax.plan.device import DEVICES, Device, this_machine
from cycleqd_jax.plan.estimate import Stage, Workload, estimate
from cycleqd_jax.plan.layout import USABLE, advice, choose_mesh, fits, peak

__all__ = [
    "DEVICES",
    "USABLE",
    "Collective",
    "Device",
    "Program",
    "Stage",
    "Workload",
    "advice",
    "choose_mesh",
    "compile_programs",
    "estimate",
    "fits",
    "peak",
    "this_machine",
    "topology",
]
