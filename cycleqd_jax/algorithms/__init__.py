"""Search algorithms as ask/tell: CycleQD with its MAP-Elites archives (QDax), parent selection and model aggregation."""

from cycleqd_jax.algorithms.aggregation import Aggregate, aggregate
from cycleqd_jax.algorithms.archive import Archives
from cycleqd_jax.algorithms.cycleqd import CycleQD, CycleQDState
from cycleqd_jax.algorithms.selection import DistinctSelector, EliteSelector, UniformSelector

__all__ = [
    "Aggregate",
    "Archives",
    "CycleQD",
    "CycleQDState",
    "DistinctSelector",
    "EliteSelector",
    "UniformSelector",
    "aggregate",
]
