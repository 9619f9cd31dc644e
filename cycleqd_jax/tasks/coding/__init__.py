"""Single-turn tasks whose replies are Python programs: MBPP, EvalPlus, HumanEval, BigCodeBench."""

from cycleqd_jax.tasks.coding.bigcodebench import BigCodeBench
from cycleqd_jax.tasks.coding.evalplus import EvalPlus
from cycleqd_jax.tasks.coding.humaneval import HumanEval
from cycleqd_jax.tasks.coding.mbpp import Mbpp

__all__ = ["BigCodeBench", "EvalPlus", "HumanEval", "Mbpp"]
