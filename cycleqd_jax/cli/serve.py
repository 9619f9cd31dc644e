"""``cycleqd serve``: OpenAI's API over HTTP."""

from __future__ import annotations

import argparse
import dataclasses

from cycleqd_jax.serve import Options, serve

__all__ = ["serve_models"]


def serve_models(args: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        args: the arguments of the command line.

    Raises:
        InputError: see :func:`cycleqd_jax.serve.serve`.
    """
    given = vars(args) | {"key": args.api_key}
    serve(args.model, Options(**{field.name: given[field.name] for field in dataclasses.fields(Options)}))
