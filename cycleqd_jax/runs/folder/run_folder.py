"""The run folder: which config and which inputs it belongs to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cycleqd_jax.config import EngineConfig, ExportConfig, ModelConfig, RunConfig, SearchConfig, read_yaml, to_dict
from cycleqd_jax.files import check_writable, load_json, write_json, write_text
from cycleqd_jax.models.files import hf
from cycleqd_jax.runs.folder.migrations import migrate, read_inputs
from cycleqd_jax.schema import SCHEMA, without_versions
from cycleqd_jax.types import InputError
from cycleqd_jax.version import __version__

__all__ = [
    "FREE",
    "check_folder",
    "check_inputs",
    "claim_folder",
    "compare_inputs",
    "flat",
    "value_at",
    "versions",
]

VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "qdax", "transformers", "numpy", "scikit-learn")

FREE = {
    "output", "cache", "mesh", "engine.slots", "sandbox.workers", "checkpoint.every", "checkpoint.keep",
    "checkpoint.training_minutes", "baselines", "merges", "gradient", "loggers", "export.method", "search.retries",
    "search.deadline", "search.max_failures", "search.grace", "ray", "masks.cache_gib",
}  # fmt: skip
"""Keys that may change when a run continues: they decide about places and speed, or choose among what is found.

The last bits of scores may depend on the sizes of ``mesh`` and ``engine``; :func:`check_inputs` says so.
"""

PATHS = re.compile(r"model\.(base|tokenizer|experts\..+)|tasks\.\d+\.(train|test|finetune)")
"""Keys whose files may move while a run goes on: ``inputs.json`` has digests of what is read from them."""

STATED = ("baselines", "merges", "gradient", "export")
"""Those of them that decide about rows and about the exported model: ``config.yaml`` has their last values."""

LATER = (
    *(
        f"search.{name}"
        for name in (
            "method",
            "budget",
            "budget_items",
            "groups",
            "low",
            "high",
            "step",
            "population",
            "neighbours",
            "descriptors",
            "cells",
            "steady",
            "racing",
        )
    ),
    "engine.kv_cache_dtype",
    "export.elites",
    "model.prepare",
    "masks",
    "model.others",
)
"""Keys that run folders of version 0.1 lack, beside ``origin``, ``tasks.*.validation_size`` and ``tasks.*.finetune_on_train``.

Their defaults do what that version did.

Keys of ``FREE`` are not compared, so they are not here.
"""

FOLDERS = (
    "origin",
    "checkpoints",
    "tables",
    "transcripts",
    "replies",
    "figures",
    "model",
    "best_elite",
    "exports",
    "tensorboard",
    "wandb",
    "mlflow",
    "pictures",
)
"""The folders in a run folder."""

FILES = ("config.yaml", "inputs.json", "engine.json", "workers.json", "history.jsonl", "grid.json", "report.html")
"""The files in a run folder."""

RESULTS = {"tables": {".json", ".csv", ".md", ".tex", ".txt"}, "transcripts": {".jsonl"}, "figures": {".png", ".svg"}}
"""The endings of the files in folders of a run that are written late."""

STARTED = {"inputs.json", "grid.json", "checkpoints", "tables", "tables/basis.json"}
"""What a run that was killed while it started may leave without a ``config.yaml``."""


def versions() -> dict[str, str]:
    """Versions of the software that a run's numbers depend on."""
    found = {"cycleqd_jax": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in VERSIONED}


def check_folder(config: RunConfig) -> None:
    """Checks that a run may start or continue in its folder, and write all its results; writes nothing.

    Raises:
        InputError: the folder holds something other than a run, or a run of another config that has scores; something in it
            can't be replaced by a result; or the folder or the cache can't be written.
    """
    folder = config.folder
    file = folder / "config.yaml"
    if not file.exists() and folder.exists():
        foreign = folder.name if not folder.is_dir() else _foreign(folder)
        if foreign is not None:
            raise InputError(
                f"expected a run folder or an empty place for the output {folder}, which has {foreign}, got something that is "
                "not a run folder; choose another output"
            )
    _check_places(config)
    if not file.exists():
        return
    try:
        other = read_yaml(file, "the config of a run")
    except InputError as error:
        raise InputError(f"{error}, or choose another output") from error
    if not (folder / "history.jsonl").exists():
        return
    here, there = flat(to_dict(config)), flat(without_versions(other, file))
    later = _later_keys(config, here)
    there = {key: later[key] for key in later if not any(known.startswith(f"{key}.") for known in there)} | there
    for key in sorted(here.keys() | there.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE)
        if key == "search.generations":
            before = there.get(key)
            free = isinstance(before, int) and here[key] >= before  # no generation depends on how many follow
        if PATHS.fullmatch(key) and (folder / "inputs.json").exists():
            free = all(isinstance(value_at(tree, key), str) for tree in (here, there))  # digests are compared later
        if not free and value_at(here, key) != value_at(there, key):
            old, new = (_shown(value_at(tree, key)) for tree in (there, here))
            raise InputError(
                f"expected {key} {old}, as in the run in {folder}, got {new}; choose another output, or continue with the old "
                "value"
            )


def _later_keys(config: RunConfig, here: Mapping[str, Any]) -> dict[str, Any]:
    """The values with which a run does what the version did that lacked these keys.

    Validation problems may be held out of a run that began without them if neither its search nor its experts have seen them:
    ``train_size`` is a number, and the experts are not fine-tuned on the train file.
    """
    sections: dict[str, Any] = {
        "search": SearchConfig(),
        "engine": EngineConfig(),
        "export": ExportConfig(),
        "model": ModelConfig(),
        "masks": None,
    }
    defaults = flat({name: to_dict(section) for name, section in sections.items()})
    values = {key: value for key, value in defaults.items() if key in LATER} | {"origin": None}
    for i, task in enumerate(config.tasks):
        key = f"tasks.{i}.validation_size"
        trained = config.model.experts is None and task.finetune is None
        seen = task.train is not None and (task.train_size is None or trained)
        values[key] = 0 if seen else here[key]
        values[f"tasks.{i}.finetune_on_train"] = True
    return values


def _foreign(folder: Path) -> str | None:
    """The name of something in a folder without a config that no run leaves there while it starts."""
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    names += [f"tables/{path.name}" for path in (folder / "tables").glob("[!.]*")]
    steps = [f"checkpoints/{path.name}" for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    return next(iter(sorted({*names} - STARTED) or sorted(steps)), None)


def _check_places(config: RunConfig) -> None:
    """Raises where a result could not be written at the end of a run."""
    for place, key in ((config.folder, "output"), (Path(config.cache), "cache")):
        check_writable(place, f"choose another {key}")
    for name in FOLDERS:
        if (place := config.folder / name).exists():
            if not place.is_dir():
                raise InputError(f"expected a folder of the run in {place}, got a file; remove it, or choose another output")
            check_writable(place, "choose another output")
    for name in FILES:
        if (place := config.folder / name).is_dir():
            raise InputError(f"expected a file of the run in {place}, got a folder; remove it, or choose another output")
    for name, endings in RESULTS.items():
        for place in sorted((config.folder / name).glob("*")):
            if place.suffix in endings and place.is_dir():
                raise InputError(f"expected a file of the run in {place}, got a folder; remove it, or choose another output")
    journal = config.folder / "history.jsonl"
    if journal.exists() and not os.access(journal, os.W_OK):
        raise InputError(f"expected to write {journal}, got a file without permission; correct it, or choose another output")
    for name in ("model", "best_elite"):
        hf.check_target(config.folder / name)


def claim_folder(config: RunConfig) -> None:
    """Writes the resolved config, with schema and versions, into a folder that :func:`check_folder` has passed.

    A folder of an older schema is migrated.

    Where the run continues with more generations, what was measured or drawn after fewer is removed. Where it has no scores
    yet, the inputs that an earlier start recorded are removed: it may have had another config. Keys that decide about rows and
    about the exported model are those of the last command.
    """
    file = config.folder / "config.yaml"
    here = {**to_dict(config), "schema": SCHEMA, "versions": versions()}
    if (config.folder / "history.jsonl").exists():
        migrate(config.folder)
        there = read_yaml(file, "the config of a run")
        more = there["search"]["generations"] != config.search.generations
        now = {**there, **{key: here[key] for key in STATED}}
        now["search"] = {**there["search"], "generations": config.search.generations}
        now = _with_paths(now, here)
        if now == there:
            return
        here = now
        if more:
            _remove_results(config.folder)
    else:
        (config.folder / "inputs.json").unlink(missing_ok=True)
    write_text(file, yaml.safe_dump(here, sort_keys=False, allow_unicode=True))


def _with_paths(tree: Any, new: Any, key: str = "") -> Any:
    """A config whose files are at the places of another one."""
    if isinstance(tree, dict) and isinstance(new, dict):
        return {name: _with_paths(item, new.get(name), f"{key}.{name}".lstrip(".")) for name, item in tree.items()}
    if isinstance(tree, list) and isinstance(new, list) and len(tree) == len(new):
        return [_with_paths(item, other, f"{key}.{i}") for i, (item, other) in enumerate(zip(tree, new, strict=True))]
    return new if PATHS.fullmatch(key) and isinstance(tree, str) and isinstance(new, str) else tree


def _remove_results(folder: Path) -> None:
    """Removes results, transcripts, figures and the page. Exported models stay: their cards say what they are."""
    for pattern in ("tables/results.*", "tables/costs.*", "report.html"):
        for file in folder.glob(pattern):
            file.unlink()
    for name in ("items", "selection", "usage", "measured"):
        (folder / "tables" / f"{name}.json").unlink(missing_ok=True)
    for file in folder.glob("tables/suite-*"):
        if file.suffix == ".json":
            _keep_rows_of_inputs(file)
        else:
            file.unlink()
    for name in ("transcripts", "figures", "pictures"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _keep_rows_of_inputs(file: Path) -> None:
    """Removes the rows of a suite that the search has found; those of base and experts stay."""
    try:
        tree = load_json(file)
        rows = {name: row for name, row in tree["rows"].items() if row["key"] is None}
    except (ValueError, KeyError, TypeError, AttributeError):  # damaged
        file.unlink()
        return
    write_json(file, {**tree, "rows": rows})


def check_inputs(folder: Path, inputs: Mapping[str, Any], device: str, log: Callable[[str], None]) -> None:
    """Records what a run's scores depend on beside its config, or compares it with what was recorded.

    Args:
        folder: the run folder.
        inputs: digests of models and problems, by name.
        device: on what the scores are computed: the kind of the devices, and the sizes on which last bits depend.
        log: called with a warning that names changed versions, or other devices.

    Raises:
        InputError: a model or a problem has changed, or nothing says what the scores depend on.
    """
    file = folder / "inputs.json"
    _check_recorded(folder)
    if not file.exists():
        write_json(file, {"schema": SCHEMA, **inputs, "devices": [device], "versions": versions()})
        return
    before = _compare(file, inputs)
    devices = before.get("devices", [])  # older folders have none
    if device not in devices:
        write_json(file, {**before, "devices": [*devices, device]})
    others = [one for one in devices if one != device]
    if others:
        log(
            f"warning: scores of this run were computed on {', '.join(others)}; this start computes them on {device}, "
            "so it may not continue bit for bit"
        )
    known = before["versions"]  # older folders have fewer packages
    changed = [f"{name} {known[name]} → {now}" for name, now in versions().items() if known.get(name, now) != now]
    if changed:
        log(f"warning: versions changed since this run began, so it may not continue bit for bit: {', '.join(changed)}")


def compare_inputs(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Compares what a run's scores depend on with what was recorded, where it has scores; writes nothing.

    Args:
        folder: the run folder.
        inputs: digests of models and problems, by name. A model that has not been trained yet may be left out.

    Raises:
        InputError: a model or a problem has changed, or nothing says what the scores depend on.
    """
    file = folder / "inputs.json"
    _check_recorded(folder)
    if (folder / "history.jsonl").exists():
        _compare(file, inputs)


def _check_recorded(folder: Path) -> None:
    """Raises where a run has scores, and the file is gone that says what they depend on: every run writes it before them."""
    file, journal = folder / "inputs.json", folder / "history.jsonl"
    if journal.exists() and not file.exists():
        raise InputError(
            f"expected the digests of the run's models and problems in {file}, got no such file beside {journal.name}; restore "
            "it, or choose another output"
        )


def _compare(file: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Compares inputs with the recorded ones, which it returns."""
    before = read_inputs(file)
    for name, value in inputs.items():
        if before.get(name) != value:
            raise InputError(
                f"expected {name} with digest {before.get(name)}, as when the run in {file.parent} began, got {value}; restore "
                "it, or choose another output"
            )
    return before


def value_at(keys: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key of :func:`flat`, or the mapping of the keys below it; ``"<absent>"`` where there is none."""
    below = {name.removeprefix(f"{key}."): value for name, value in keys.items() if name.startswith(f"{key}.")}
    return keys.get(key, below or "<absent>")


def _shown(value: Any) -> str:
    """A value for a message; of a mapping only the first key."""
    if not isinstance(value, dict) or not value:
        return repr(value)
    name, first = next(iter(value.items()))
    return f"{{{name}: {first!r}{', …' if len(value) > 1 else ''}}}"


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of mappings and lists as dotted keys."""
    if isinstance(tree, dict) and tree:
        return {k: v for key, item in tree.items() for k, v in flat(item, f"{prefix}{key}.").items()}
    if isinstance(tree, list) and tree:
        return {k: v for i, item in enumerate(tree) for k, v in flat(item, f"{prefix}{i}.").items()}
    return {prefix[:-1]: tree}
