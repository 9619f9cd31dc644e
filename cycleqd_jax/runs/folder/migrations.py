"""Run folders of older versions: each migration takes a folder to the next schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cycleqd_jax.config import read_yaml
from cycleqd_jax.files import load_json, write_json, write_text
from cycleqd_jax.schema import SCHEMA, check_schema
from cycleqd_jax.types import InputError

__all__ = ["MIGRATIONS", "migrate", "read_inputs"]


def read_inputs(file: Path) -> dict[str, Any]:
    """Reads ``inputs.json``: digests by name, the ``versions`` of packages and the ``schema``.

    Raises:
        InputError: the file is damaged, or of a newer version.
    """
    try:
        tree = load_json(file)
    except ValueError as error:
        raise InputError(
            f"expected the digests of a run's inputs in {file}, got an error ({error}); restore the file"
        ) from error
    if isinstance(tree, dict):
        check_schema(tree, file)
        if isinstance(tree.get("versions"), dict):
            return tree
    got = "no versions" if isinstance(tree, dict) else type(tree).__name__
    raise InputError(f"expected the digests of a run's inputs with versions in {file}, got {got}; restore the file")


def _add_schemas(folder: Path) -> None:
    """Schema 0 to 1: the files name their schema, and are the same otherwise."""
    for name in ("inputs.json", "grid.json"):
        file = folder / name
        if not file.exists():
            continue
        tree = read_inputs(file) if name == "inputs.json" else load_json(file)
        if not isinstance(tree, dict):
            raise InputError(f"expected a JSON object in {file}, got {type(tree).__name__}; restore the file")
        if check_schema(tree, file) == 0:
            write_json(file, {"schema": 1, **tree})


MIGRATIONS: tuple[Callable[[Path], None], ...] = (_add_schemas,)
"""The migration at place n takes a folder of schema n to schema n + 1. It may be interrupted, and is called again then."""


def migrate(folder: Path) -> None:
    """Takes a run folder to the schema of this version; does nothing where it has that.

    ``config.yaml`` has the schema of the folder and is written after each migration, so that one that was interrupted is
    repeated. The caller holds the lock of the folder.

    Raises:
        InputError: the folder is of a newer version, or a file of it is damaged.
        OSError: the disk refuses.
    """
    file = folder / "config.yaml"
    tree = read_yaml(file, "the config of a run")
    for schema in range(check_schema(tree, file), SCHEMA):
        try:
            MIGRATIONS[schema](folder)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(
                f"expected files of a run that can be read, got an error ({error}) in {folder}; restore them"
            ) from error
        tree = {**tree, "schema": schema + 1}
        write_text(file, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
