"""A small run, finished once for all workers of a test run."""

from ..small_run import finished, trained, write_config

__all__ = ["finished", "trained", "write_config"]
