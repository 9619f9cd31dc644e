"""Generated miniature data sets in the record formats of MBPP, DBBench and AgentBench's OS interaction."""

from cycleqd_jax.tasks.miniature.problems import TASKS, generate, lessons, pretraining, write

__all__ = ["TASKS", "generate", "lessons", "pretraining", "write"]
