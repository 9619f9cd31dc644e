"""The search: evaluating genomes, the loop, its journal and its checkpoints."""

from cycleqd_jax.search.checkpoint import Checkpoints
from cycleqd_jax.search.evaluate import Abandoned, Evaluation, Evaluator
from cycleqd_jax.search.journal import Journal
from cycleqd_jax.search.judge import Judge, Lane, OneByOne, OverOneBase, Record, SideBySide
from cycleqd_jax.search.loop import evolve

__all__ = ["Abandoned", "Checkpoints", "Evaluation", "Evaluator", "Journal", "Judge", "Lane", "OneByOne", "OverOneBase"]
__all__ += ["Record", "SideBySide", "evolve"]
