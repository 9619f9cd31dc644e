"""A small run, finished once for all workers of a test run."""

from ..small_run import TASKS, finished, history, small_config, trained, write_config
from .basis.small_basis import decomposed
from .extension.carried import old

__all__ = ["TASKS", "decomposed", "finished", "history", "old", "small_config", "trained", "write_config"]
