"""Multiple choice by log-likelihood: ARC, BoolQ, CommonsenseQA, HellaSwag, MMLU, with the prompts of lm-evaluation-harness."""

from cycleqd_jax.tasks.choice.base import ChoiceTask
from cycleqd_jax.tasks.choice.benchmarks import Arc, BoolQ, CommonsenseQA, HellaSwag, Mmlu

__all__ = ["Arc", "BoolQ", "ChoiceTask", "CommonsenseQA", "HellaSwag", "Mmlu"]
