"""Search algorithms as ask/tell: CycleQD and the searches it is compared with, parent selection, model aggregation."""

from cycleqd_jax.algorithms.aggregation import Aggregate, aggregate
from cycleqd_jax.algorithms.archive import Archives
from cycleqd_jax.algorithms.cmaes import CMAES, CMAESState
from cycleqd_jax.algorithms.cycleqd import CycleQD, CycleQDState
from cycleqd_jax.algorithms.dns import DominatedNovelty, DominatedNoveltyState
from cycleqd_jax.algorithms.leaders import Leaders
from cycleqd_jax.algorithms.nsga2 import NSGA2, NSGA2State
from cycleqd_jax.algorithms.plain_qd import PlainQD, PlainQDState
from cycleqd_jax.algorithms.random_search import RandomSearch, RandomSearchState
from cycleqd_jax.algorithms.selection import DistinctSelector, EliteSelector, UniformSelector

__all__ = [
    "CMAES",
    "NSGA2",
    "Aggregate",
    "Archives",
    "CMAESState",
    "CycleQD",
    "CycleQDState",
    "DistinctSelector",
    "DominatedNovelty",
    "DominatedNoveltyState",
    "EliteSelector",
    "Leaders",
    "NSGA2State",
    "PlainQD",
    "PlainQDState",
    "RandomSearch",
    "RandomSearchState",
    "UniformSelector",
    "aggregate",
]
