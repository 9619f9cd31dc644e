"""The run folder: which config and which inputs it belongs to."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cycleqd_jax.config import RunConfig, to_dict
from cycleqd_jax.files import write_json, write_text
from cycleqd_jax.models.files.safetensors import INDEX, weight_files
from cycleqd_jax.models.folder import TOKENIZER_FILES
from cycleqd_jax.types import InputError
from cycleqd_jax.version import __version__

__all__ = ["check_folder", "check_inputs", "claim_folder", "folder_digest", "versions"]

VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "qdax", "transformers", "numpy")

FREE = {"output", "cache", "mesh.population", "sandbox.workers", "checkpoint.every", "checkpoint.keep", "baselines"}
"""Keys that may change when a run continues: they decide about places and speed, never about what is found."""

SAMPLE = 1 << 20


def versions() -> dict[str, str]:
    """Versions of the software that a run's numbers depend on."""
    found = {"cycleqd_jax": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in VERSIONED}


def folder_digest(folder: str | Path) -> str:
    """Sixteen hexadecimal digits that identify the content of a model folder or file.

    Of a folder, only the files that a model is read from count: other programs add files to the hub's cache. Files of up to
    64 MiB are read whole. Of larger files the size and 64 evenly spaced samples of 1 MiB count, because reading 16 GB would
    take minutes.
    """
    total = hashlib.sha256()
    folder = Path(folder)
    names = {"config.json", INDEX, *weight_files(folder), "adapter_config.json", "adapter_model.safetensors", *TOKENIZER_FILES}
    found = [folder] if folder.is_file() else sorted(path for path in folder.iterdir() if path.name in names)
    for file in filter(Path.is_file, found):
        size = file.stat().st_size
        total.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= 64 * SAMPLE:
                total.update(stream.read())
            else:
                for i in range(64):
                    stream.seek((size - SAMPLE) * i // 63)
                    total.update(stream.read(SAMPLE))
    return total.hexdigest()[:16]


def check_folder(config: RunConfig) -> None:
    """Checks that a run may start or continue in its folder; writes nothing.

    Raises:
        InputError: the folder holds something other than a run, or a run of another config that has scores.
    """
    folder = config.folder
    file = folder / "config.yaml"
    if not file.exists():
        if folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())):
            raise InputError(
                f"expected a run folder or an empty place for the output {folder}, got something that is not a run folder; "
                "choose another output"
            )
        return
    try:
        other = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        other = None
    if not isinstance(other, dict):
        raise InputError(f"expected the config of a run in {file}, got something else; choose another output")
    if not (folder / "history.jsonl").exists():
        return
    other.pop("versions", None)
    here, there = _flat(to_dict(config)), _flat(other)
    for key in sorted(here.keys() | there.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE)
        if key == "search.generations":
            free = here[key] >= there.get(key, math.inf)  # no generation depends on how many follow
        if not free and here.get(key, "<absent>") != there.get(key, "<absent>"):
            raise InputError(
                f"expected {key} {there.get(key, '<absent>')!r}, as in the run in {folder}, got "
                f"{here.get(key, '<absent>')!r}; choose another output, or continue with the old value"
            )


def claim_folder(config: RunConfig) -> None:
    """Writes the resolved config, with versions, into a folder that :func:`check_folder` has passed.

    Where the run continues with more generations, results measured after fewer are removed.
    """
    file = config.folder / "config.yaml"
    here = {**to_dict(config), "versions": versions()}
    if (config.folder / "history.jsonl").exists():
        there = yaml.safe_load(file.read_text("utf-8"))
        if there["search"]["generations"] == config.search.generations:
            return
        there["search"]["generations"] = config.search.generations
        here = there
        (config.folder / "tables" / "results.json").unlink(missing_ok=True)
    write_text(file, yaml.safe_dump(here, sort_keys=False, allow_unicode=True))


def check_inputs(folder: Path, inputs: Mapping[str, Any], log: Callable[[str], None]) -> None:
    """Records what a run's scores depend on beside its config, or compares it with what was recorded.

    Args:
        folder: the run folder.
        inputs: digests of models and problems, by name.
        log: called with a warning that names changed versions.

    Raises:
        InputError: a model or a problem has changed.
    """
    file = folder / "inputs.json"
    if not file.exists():
        write_json(file, {**inputs, "versions": versions()})
        return
    before = json.loads(file.read_text("utf-8"))
    for name, value in inputs.items():
        if before.get(name) != value:
            raise InputError(
                f"expected {name} with digest {before.get(name)}, as when the run in {folder} began, got {value}; restore it, "
                "or choose another output"
            )
    changed = [f"{k} {before['versions'].get(k)} → {v}" for k, v in versions().items() if before["versions"].get(k) != v]
    if changed:
        log(f"warning: versions changed since this run began, so it may not continue bit for bit: {', '.join(changed)}")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of mappings and lists as dotted keys."""
    if isinstance(tree, dict) and tree:
        return {k: v for key, item in tree.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    if isinstance(tree, list) and tree:
        return {k: v for i, item in enumerate(tree) for k, v in _flat(item, f"{prefix}{i}.").items()}
    return {prefix[:-1]: tree}
