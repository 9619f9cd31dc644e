"""AgentBench's DBBench: questions about a table and changes to it, on SQLite, MySQL or MariaDB."""

from cycleqd_jax.tasks.dbbench.task import DbBench

__all__ = ["DbBench"]
