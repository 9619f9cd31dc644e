"""AgentBench's OS interaction: shell tasks in a throwaway box."""

from cycleqd_jax.tasks.os_interaction.task import OsInteraction

__all__ = ["OsInteraction"]
