"""The version of the format of a run folder's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cycleqd_jax.types import InputError

__all__ = ["SCHEMA", "check_schema", "without_versions"]

SCHEMA = 1
"""Version of the format that this version writes; increased with every change that older versions can't read.

``config.yaml`` has the version of the whole folder, ``inputs.json`` and ``grid.json`` have their own, and checkpoints have that
of :mod:`cycleqd_jax.search`. A line of the journal has none as long as its format is that of schema 1. Files of versions that
recorded no schema have schema 0, which has the same content.
"""


def check_schema(tree: Mapping[str, Any], place: str | Path) -> int:
    """The schema of a file.

    Args:
        tree: the content of the file; its key ``schema`` may be missing.
        place: where it is, for the message.

    Raises:
        InputError: it is of a newer version, or ``schema`` is not a version.

    >>> from cycleqd_jax.schema import check_schema
    >>> check_schema({"schema": 1}, "grid.json"), check_schema({}, "grid.json")
    (1, 0)
    """
    found = tree.get("schema", 0)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise InputError(f"expected schema to be a version, got {found!r:.40} in {place}; restore the file")
    if found > SCHEMA:
        raise InputError(
            f"expected a file of schema {SCHEMA} or older, got schema {found} in {place}; use the version of cycleqd_jax that "
            "wrote it, or a newer one"
        )
    return found


def without_versions(tree: Mapping[str, Any], place: str | Path) -> dict[str, Any]:
    """The content of a ``config.yaml`` without ``schema`` and ``versions``, which a run adds to its config.

    Args:
        tree: the content of the file.
        place: where it is, for messages.

    Raises:
        InputError: see :func:`check_schema`.
    """
    check_schema(tree, place)
    return {key: value for key, value in tree.items() if key not in ("schema", "versions")}
