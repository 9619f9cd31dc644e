"""AgentBench's OS interaction: shell problems, each in a sandbox of its own."""

from cycleqd_jax.tasks.os_interaction.task import OsInteraction

__all__ = ["OsInteraction"]
