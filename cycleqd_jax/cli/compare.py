"""``cycleqd compare``: several methods at an equal budget, over seeds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cycleqd_jax.config import load_config
from cycleqd_jax.runs import compare

__all__ = ["run_comparison"]


def run_comparison(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs the comparison, and prints its table.

    Args:
        args: the arguments of the command line.
        command: the arguments as they were given, for model cards.
    """
    config = load_config(args.config, args.overrides)
    output = args.output or f"{config.folder}-compare"
    table = compare(
        config,
        args.methods,
        seeds=args.seeds,
        budget=args.budget,
        budget_items=args.budget_items,
        output=output,
        reference=args.reference,
        command=command,
    )
    print(table.text(color=sys.stdout.isatty()))
    print(f"tables and figures: {output}/tables, {output}/figures")
