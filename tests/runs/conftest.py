"""A small run, finished once for all workers of a test run."""

from ..small_run import TASKS, finished, history, small_config, trained, write_config

__all__ = ["TASKS", "finished", "history", "small_config", "trained", "write_config"]
