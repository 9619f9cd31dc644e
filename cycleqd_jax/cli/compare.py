"""``cycleqd compare``: several methods at an equal budget, over seeds."""

from __future__ import annotations

import argparse
import sys

from cycleqd_jax.config import load_config
from cycleqd_jax.runs import compare

__all__ = ["run_comparison"]


def run_comparison(args: argparse.Namespace) -> None:
    """Runs the comparison of the command line's arguments, and prints its table."""
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
    )
    print(table.text(color=sys.stdout.isatty()))
    print(f"tables and figures: {output}/tables, {output}/figures")
