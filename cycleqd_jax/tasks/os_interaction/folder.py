"""Reads AgentBench's own files of OS problems: its folder ``data/os_interaction``, or one of the JSON files in it.

The files ``data/N/*.json`` with their scripts in ``scripts/N`` are the "std" set of the benchmark. A single file may be one of
these, ``data/dev.json`` (scripts in ``scripts/dev``) or ``train_0317/training.json`` (scripts in ``scripts/7``, as in the
benchmark's configuration).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cycleqd_jax.tasks.records import Row, checked_row, read_rows
from cycleqd_jax.types import InputError

__all__ = ["read_os_rows"]

_SUFFIXES = (".json", ".jsonl")
_TRAINING_SCRIPTS = "7"


def read_os_rows(path: str | Path) -> list[Row]:
    """The flat records of AgentBench's folder, of one of its files, or of a file of flat records.

    The ids are those of AgentBench (``std-004-N11-00000``). An example may be a field of ``evaluation`` or of the record.

    Args:
        path: the folder (or the repository that contains it), or a JSON or JSON Lines file.

    Raises:
        InputError: there are no records, a record is malformed, or a script is missing; the message names the file and the
            item.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    fields = _single(path)
    rows = read_rows(path) if fields is None else [checked_row(str(path), fields)]
    if "evaluation" not in rows[0].fields:
        return rows
    return _convert_file(path.resolve(), rows)


def _read_folder(path: Path) -> list[Row]:
    folder = path / "data" / "os_interaction" if (path / "data" / "os_interaction").is_dir() else path
    if not (folder / "data").is_dir() or not (folder / "scripts").is_dir():
        raise InputError(
            f"expected AgentBench's folder data/os_interaction, got a folder without data and scripts in {path}; "
            "give that folder, or a file of records"
        )
    sets = sorted((f for f in (folder / "data").iterdir() if f.is_dir() and f.name.isdigit()), key=lambda f: int(f.name))
    files = [file for f in sets for file in sorted(f.iterdir()) if file.suffix in _SUFFIXES]
    if not files:
        raise InputError(f"expected files of problems such as 1/stock.json, got none in {folder / 'data'}; give another folder")
    return [row for file in files for row in read_os_rows(file)]


def _single(path: Path) -> Mapping[str, Any] | None:
    """The JSON object that a file consists of; None if it consists of several or of anything else."""
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None  # read_rows reports the error
    return fields if isinstance(fields, dict) else None


def _convert_file(path: Path, rows: list[Row]) -> list[Row]:
    name, folder = path.stem, path.parent
    if folder.parent.name == "data" and folder.name.isdigit():
        scripts, prefix = folder.parents[1] / "scripts" / folder.name, f"std-{int(folder.name):03d}-{name}-"
    elif folder.name == "data":
        scripts, prefix = folder.parent / "scripts" / name, f"{name}-001-{name}-"
    else:
        scripts, prefix = folder.parent / "scripts" / _TRAINING_SCRIPTS, f"train-0223-{name}-"
    return [Row(_convert(row, f"{prefix}{n:05d}", scripts), row.where) for n, row in enumerate(rows)]


def _convert(row: Row, identity: str, scripts: Path) -> dict[str, Any]:
    create = row.fields.get("create")  # a list in one published record, by mistake; AgentBench ignores it
    create = create if isinstance(create, dict) else {}
    evaluation = row.get("evaluation", dict)
    match, checks, example = (evaluation.get(key) for key in ("match", "check", "example"))
    example = row.fields.get("example") if example is None else example
    flat = {
        "id": identity,
        "description": row.text("description"),
        "image": f"local-os/{create.get('local', 'default')}",
        "init_script": [_script(row, item, scripts) for item in _several(create.get("init"))],
        "start": _script(row, row.fields.get("start"), scripts),
        "match": {"answer": match, "strip": True} if isinstance(match, str) else match,
        "check": None,
        "example_script": _script(row, example, scripts),
    }
    if match is None and "check" in evaluation:
        flat["check"] = [_script(row, item, scripts) for item in (checks if isinstance(checks, list) else [checks])]
    return flat


def _several(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _script(row: Row, value: Any, scripts: Path) -> list[str] | None:
    """A script as ``[language, code]``, from its text or from an object with its code or the name of its file."""
    if value is None:
        return None
    if isinstance(value, str):
        return ["bash", value]
    if not isinstance(value, dict) or not isinstance(value.get("file", value.get("code")), str):
        raise row.error("a script as a text or an object with 'code' or 'file'", json.dumps(value)[:80])
    language = value.get("language", "bash")
    if "file" not in value:
        return [language, value["code"]]
    try:
        file = (scripts / value["file"]).resolve()
        code = file.read_text(encoding="utf-8") if (inside := file.is_relative_to(scripts.resolve())) else ""
    except (OSError, ValueError) as error:
        raise row.error(f"a readable script {value['file']!r} in {scripts}", str(error)) from error
    if not inside:
        raise row.error(f"a script in the folder {scripts}", repr(value["file"]))
    return [language, code]
