"""Tasks: problems that are played as conversations, executed in a sandbox and scored.

:func:`make_task` makes a task of a kind in :data:`TASKS`; a new task is a subclass of :class:`RecordTask`.
"""

from cycleqd_jax.tasks.base import RecordTask, Solution, clean_text, fixed_replies, play_solution
from cycleqd_jax.tasks.choice import Arc, BoolQ, ChoiceTask, CommonsenseQA, HellaSwag, Mmlu
from cycleqd_jax.tasks.coding import BigCodeBench, EvalPlus, HumanEval, Mbpp
from cycleqd_jax.tasks.dbbench import DbBench
from cycleqd_jax.tasks.exact_match import Bbh, ExactMatchTask, Gsm8k
from cycleqd_jax.tasks.kinds import TASKS, checked_options, make_task, own_options, task_class
from cycleqd_jax.tasks.memo import Environment, Memo
from cycleqd_jax.tasks.options import TaskOptions
from cycleqd_jax.tasks.os_interaction import OsInteraction
from cycleqd_jax.tasks.records import Row

__all__ = [
    "TASKS",
    "Arc",
    "Bbh",
    "BigCodeBench",
    "BoolQ",
    "ChoiceTask",
    "CommonsenseQA",
    "DbBench",
    "Environment",
    "EvalPlus",
    "ExactMatchTask",
    "Gsm8k",
    "HellaSwag",
    "HumanEval",
    "Mbpp",
    "Memo",
    "Mmlu",
    "OsInteraction",
    "RecordTask",
    "Row",
    "Solution",
    "TaskOptions",
    "checked_options",
    "clean_text",
    "fixed_replies",
    "make_task",
    "own_options",
    "play_solution",
    "task_class",
]
