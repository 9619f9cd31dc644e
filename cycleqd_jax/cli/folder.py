"""The run folder: which config it belongs to, and whether this one may go on in it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import yaml

import cycleqd_jax
from cycleqd_jax.config import RunConfig, to_dict
from cycleqd_jax.types import InputError

__all__ = ["claim_folder", "write_json", "write_text"]

VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "qdax", "transformers", "numpy")

# What may differ between a run and its continuation: where things lie and how fast they go, never what comes out.
FREE = {"output", "cache", "sandbox.workers", "checkpoint.every", "checkpoint.keep"}


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    found = {"cycleqd_jax": cycleqd_jax.__version__, "python": platform.python_version()}
    for name in VERSIONED:
        found[name] = importlib.metadata.version(name)
    return found


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for key, item in tree.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    if isinstance(tree, list) and tree:
        return {k: v for i, item in enumerate(tree) for k, v in _flat(item, f"{prefix}{i}.").items()}
    return {prefix[:-1]: tree}


def claim_folder(config: RunConfig) -> None:
    """Makes the run folder, or makes sure that it is this config's own.

    Args:
        config: of the run.

    Raises:
        InputError: when the folder holds something else than a run, or a run of another config; nothing is written then.
    """
    folder = config.folder
    file = folder / "config.yaml"
    mine = to_dict(config)
    if file.exists():
        try:
            other = yaml.safe_load(file.read_text("utf-8"))
            assert isinstance(other, dict)
        except (yaml.YAMLError, UnicodeDecodeError, AssertionError) as error:
            raise InputError(f"{file} is not the config of a run: choose another output folder.") from error
        other.pop("versions", None)
        here, there = _flat(mine), _flat(other)
        for key in sorted(here.keys() | there.keys()):
            if key not in FREE and here.get(key, "<absent>") != there.get(key, "<absent>"):
                raise InputError(
                    f"the run folder {folder} belongs to another config: its {key} is {there.get(key, '<absent>')!r}, now it "
                    f"is {here.get(key, '<absent>')!r}. Choose another output, or continue with the old value."
                )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"the output {folder} exists and is not a run folder: choose another output.")
    write_text(file, yaml.safe_dump({**mine, "versions": versions()}, sort_keys=False, allow_unicode=True))
