"""Runs: the stages of a search, its models, its folder and its devices; and comparisons of several runs."""

from cycleqd_jax.runs.comparison.compare import compare
from cycleqd_jax.runs.extension.extend import extend
from cycleqd_jax.runs.inputs.resolve import Inputs, resolve
from cycleqd_jax.runs.run import Run

__all__ = ["Inputs", "Run", "compare", "extend", "resolve"]
