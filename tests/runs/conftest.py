"""A small run, finished once for all workers of a test run."""

from ..small_run import TASKS, finished, history, small_config, trained, write_config
from .carried import old
from .small_basis import decomposed

__all__ = ["TASKS", "decomposed", "finished", "history", "old", "small_config", "trained", "write_config"]
