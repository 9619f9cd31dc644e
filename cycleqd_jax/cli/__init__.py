"""The ``cycleqd`` command."""

from cycleqd_jax.cli.main import main

__all__ = ["main"]
