"""Generated miniature data sets in the published record formats of MBPP, DBBench, AgentBench's OS interaction and HumanEval.

These problems are the default of a run without data files. They are real problems (Python functions judged by asserts, SQL on a
table, shell commands on files), but their prompts and answers are so short that a model of about a million parameters learns
them in a minute. A problem combines a few phrases with words and numbers to be copied; each phrase stands for a piece of the
program. No gold program (and no function of a Python problem) occurs in more than one of the pools ``train``, ``test`` and
demonstrations, so a test problem asks for a combination that no training data contains.

Some phrases are *basic*. The pretraining corpus (:func:`pretraining`) has mostly basic phrases, in the formats of all tasks of
the run; the demonstrations of an expert (:func:`demonstrations`) have all phrases of one task.
"""

from cycleqd_jax.tasks.miniature.corpus import OPTIONS, SIZES, TASKS, demonstrations, generate, pretraining, write

__all__ = ["OPTIONS", "SIZES", "TASKS", "demonstrations", "generate", "pretraining", "write"]
