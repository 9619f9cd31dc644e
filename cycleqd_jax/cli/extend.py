"""``cycleqd extend``: a finished run goes on with other tasks, in a folder of its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cycleqd_jax.cli.stages import run_all
from cycleqd_jax.runs.extension import extend

__all__ = ["extend_run"]


def extend_run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Makes the config of the new run, and runs all its stages.

    Args:
        args: the arguments of the command line.
        command: the arguments as they were given, for the model card.

    Raises:
        InputError: see :func:`cycleqd_jax.runs.extension.extend`.
    """
    output = args.folder.with_name(f"{args.folder.name}-extended") if args.output is None else args.output
    config = extend(
        args.folder,
        output,
        task=args.task,
        expert=args.expert,
        remove=args.remove,
        generations=args.generations,
        overrides=args.overrides,
    )
    run_all(config, command)
