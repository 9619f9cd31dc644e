"""Quality diversity: MAP-Elites archives per task (QDax), selection, and the cycle that swaps quality and behaviour."""

from cycleqd_jax.qd.aggregate import aggregate
from cycleqd_jax.qd.archive import Archives
from cycleqd_jax.qd.cycle import CycleQD, CycleQDState
from cycleqd_jax.qd.selection import EliteSelector, UniformSelector

__all__ = ["Archives", "CycleQD", "CycleQDState", "EliteSelector", "UniformSelector", "aggregate"]
