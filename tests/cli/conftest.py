"""A small run, finished once for all workers of a test run."""

from ..small_run import TASKS, finished, history, kill_at, small_config, trained, write_config

__all__ = ["TASKS", "finished", "history", "kill_at", "small_config", "trained", "write_config"]
