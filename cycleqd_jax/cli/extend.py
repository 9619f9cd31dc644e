"""``cycleqd extend``: a finished run goes on with other tasks, in a folder of its own."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from cycleqd_jax.cli.stages import run_all
from cycleqd_jax.runs.extension.extend import extend

__all__ = ["extend_run"]


def extend_run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Makes the config of the new run, and runs all its stages.

    Args:
        args: the arguments of the command line.
        command: the arguments as they were given, for the model card.

    Raises:
        InputError: see :func:`cycleqd_jax.runs.extension.extend.extend`.
    """
    folder = args.folder if args.folder.name not in ("", "..") else Path(os.path.abspath(args.folder))
    output = folder.parent / f"{folder.name}-extended" if args.output is None else args.output
    config = extend(
        folder,
        output,
        task=args.task,
        expert=args.expert,
        remove=args.remove,
        generations=args.generations,
        overrides=args.overrides,
    )
    run_all(config, command)
