"""Evaluation: models play episodes of all tasks; workers turn genomes into scores."""

from cycleqd_jax.evaluation.evaluator import Abandoned, Evaluation, Evaluator
from cycleqd_jax.evaluation.rollout import rollout
from cycleqd_jax.evaluation.workers import Judge, Lane, OneByOne, OverOneBase, Record, SideBySide

__all__ = [
    "Abandoned",
    "Evaluation",
    "Evaluator",
    "Judge",
    "Lane",
    "OneByOne",
    "OverOneBase",
    "Record",
    "SideBySide",
    "rollout",
]
