"""Tasks: problems played as conversations, executed in a sandbox and scored.

:data:`TASKS` has the classes by name; :func:`rollout` plays episodes of any of them together.
"""

from cycleqd_jax.tasks.base import RecordTask
from cycleqd_jax.tasks.dbbench import DbBench
from cycleqd_jax.tasks.mbpp import Mbpp
from cycleqd_jax.tasks.memo import Memo
from cycleqd_jax.tasks.os_interaction import OsInteraction
from cycleqd_jax.tasks.rollout import rollout

__all__ = ["TASKS", "DbBench", "Mbpp", "Memo", "OsInteraction", "RecordTask", "rollout"]

TASKS = {"mbpp": Mbpp, "dbbench": DbBench, "os_interaction": OsInteraction}
"""Task classes by the name that configurations use."""
