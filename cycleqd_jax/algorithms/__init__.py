"""Quality diversity: MAP-Elites archives per task (QDax), selection, and the cycle that swaps quality and behaviour."""

from cycleqd_jax.algorithms.aggregate import aggregate
from cycleqd_jax.algorithms.archive import Archives
from cycleqd_jax.algorithms.cycleqd import CycleQD, CycleQDState
from cycleqd_jax.algorithms.selection import EliteSelector, UniformSelector

__all__ = ["Archives", "CycleQD", "CycleQDState", "EliteSelector", "UniformSelector", "aggregate"]
