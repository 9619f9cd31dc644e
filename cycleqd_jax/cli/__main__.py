"""Runs the command as ``python -m cycleqd_jax.cli``."""

import sys

from cycleqd_jax.cli.main import main

sys.exit(main())
