"""``cycleqd export`` of a run folder: one model, rebuilt from the experts and the journal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cycleqd_jax.runs.export.model_folders import export_from_folder
from cycleqd_jax.runs.folder.models import ModelChoice
from cycleqd_jax.types import InputError

__all__ = ["export_from_run", "names_a_run"]


def names_a_run(args: argparse.Namespace) -> bool:
    """Whether ``cycleqd export`` got a run folder instead of a config.

    Raises:
        InputError: it got a config, with an option that needs a run folder.
    """
    if Path(args.config).is_dir():
        return True
    given = {
        "--child": args.child is not None,
        "--elite": args.elite is not None,
        "--selected": args.selected,
        "--aggregate": args.aggregate,
        "--output": args.output is not None,
    }
    wrong = [name for name, is_given in given.items() if is_given]
    if wrong:
        raise InputError(f"expected a run folder for {wrong[0]}, got {args.config}; give the output folder of a run")
    return False


def export_from_run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Rebuilds the model that the arguments name, and prints its folder.

    Args:
        args: the arguments of the command line.
        command: the arguments as they were given, for the model card.

    Raises:
        InputError: see :func:`cycleqd_jax.runs.export.model_folders.export_from_folder`.
    """
    if args.overrides:
        raise InputError(
            f"expected no overrides for a run folder, whose config is fixed, got {args.overrides[0]}; leave them out, or give "
            "the config"
        )
    choice = None
    if args.child is not None:
        choice = ModelChoice("child", id=args.child)
    elif args.elite is not None:
        choice = ModelChoice.elite(args.elite)
    elif args.selected or args.aggregate or args.best_elite:
        choice = ModelChoice("selected" if args.selected else "aggregate" if args.aggregate else "best_elite")
    print(f"model: {export_from_folder(args.config, choice, args.output, command=command)}")
