"""Readers of ``config.yaml``, ``tables/*.json`` and ``transcripts/``; ``history.py`` reads the journal."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cycleqd_jax.files import load_json
from cycleqd_jax.schema import check_schema
from cycleqd_jax.types import InputError
from cycleqd_jax.yaml_files import parse_yaml

__all__ = [
    "Config",
    "Picture",
    "Transcript",
    "load_config",
    "load_engine",
    "load_items",
    "load_pictures",
    "load_results",
    "load_selection",
    "load_transcripts",
    "load_usage",
    "load_workers",
]


_TOKENS = ("generated", "computed", "attended")


@dataclasses.dataclass(frozen=True)
class Config:
    """The resolved configuration, as text.

    Attributes:
        text: ``config.yaml`` without ``schema`` and the ``versions`` section.
        versions: version of each package.
    """

    text: str
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Transcript:
    """One episode of an evaluation.

    Attributes:
        task: name of the task.
        split: ``train`` or ``test``.
        method: the method whose model wrote the replies, such as ``cycleqd``.
        index: number of the episode in the split.
        score: the score, in [0, 1].
        reason: why the episode got this score.
        messages: (role, content) pairs; the content ends with the tool calls of the message, one a line as JSON.
    """

    task: str
    split: str
    method: str
    index: int
    score: float
    reason: str
    messages: tuple[tuple[str, str], ...]


def load_config(folder: Path) -> Config | None:
    """Reads ``config.yaml`` of a run folder as text; None if there is no such file.

    Only ``schema`` and the ``versions:`` section (one ``package: version`` per line) are parsed, so a damaged file can still be
    shown.

    Raises:
        InputError: the folder is of a newer schema, or its schema is not a version.
    """
    path = Path(folder) / "config.yaml"
    if not path.exists():
        return None
    text, versions, in_versions = [], {}, False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if re.match(r"schema\s*:", line):
            check_schema(_mapping_in(line), path)
            continue
        if re.match(r"\S", line) and not line.startswith("#"):
            in_versions = re.fullmatch(r"versions:\s*", line) is not None
            if in_versions:
                continue
        entry = re.fullmatch(r"\s+['\"]?([^:'\"]+)['\"]?:\s*['\"]?(.*?)['\"]?\s*", line) if in_versions else None
        if entry:
            versions[entry[1]] = entry[2]
        else:
            text.append(line)
    return Config("\n".join(text).strip(), versions)


def _mapping_in(line: str) -> Mapping[str, Any]:
    """The mapping of a line of YAML; the schema of a line that can't be read is its text, which is not a version."""
    try:
        return parse_yaml(line)
    except ValueError:
        return {"schema": line}


def load_engine(folder: Path) -> dict[str, int] | None:
    """Reads ``engine.json`` of a run folder, which says that slots were halved; None if there is no such file.

    Of models that segment images, the slots are the images per call.

    Returns:
        ``configured``, the slots in the config, and ``slots``, the slots after they were halved.

    Raises:
        InputError: the file is damaged, or of a newer schema.
    """
    path = Path(folder) / "engine.json"
    if not path.exists():
        return None
    try:
        tree = load_json(path)
        found = {name: int(tree[name]) for name in ("configured", "slots")}
        if not 1 <= found["slots"] <= found["configured"]:
            raise ValueError("other slots")
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(
            f"expected the numbers configured and slots in {path}, got {type(error).__name__} {error}; remove the file, and "
            "the run continues with the slots of its config"
        ) from error
    check_schema(tree, path)
    return found


def load_workers(folder: Path) -> list[dict[str, Any]]:
    """Reads ``workers.json`` of a run folder, the records of workers on a cluster; empty if there is no such file.

    Returns:
        A mapping for each worker, in the order in which they were asked for: ``start`` (the number of the start of the run) and
        the fields of :class:`~cycleqd_jax.evaluation.ray.WorkerRecord`.

    Raises:
        InputError: the file is damaged, or of a newer schema.
    """
    path = Path(folder) / "workers.json"
    if not path.exists():
        return []
    try:
        tree = load_json(path)
        found = [dict(one) for one in tree["workers"]]
        for one in found:
            _ = str(one["state"]), [_number(one[name]) for name in ("start", "id", "evaluated", "busy_s", "lost")]
            _ = [one[name] is None or _number(one[name]) for name in ("start_s", "per_hour")]
            _ = [one[name] for name in ("host", "pid", "device", "error")]
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(
            f"expected the records of workers in {path}, got {type(error).__name__} {error}; remove the file, and the run "
            "continues without them"
        ) from error
    check_schema(tree, path)
    return found


def load_results(folder: Path) -> dict[str, Any] | None:
    """Reads ``tables/results.json`` of a run folder; None if there is no such file.

    Raises:
        InputError: if the file does not map ``methods`` to method → split → task → score; or the seed, or the id of an
            individual, is no number.
    """
    path = Path(folder) / "tables" / "results.json"
    if not path.exists():
        return None
    try:
        raw = load_json(path)
        for splits in raw["methods"].values():
            for scores in splits.values():
                for score in scores.values():
                    _ = score is None or _number(score)
        chosen = raw.get("best_elite"), raw.get("selected", {}).get("id"), *raw.get("aggregate", {}).get("elites", ())
        _ = [one is None or int(_number(one)) for one in (raw.get("seed"), *chosen)]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(
            f'expected {{"methods": method → split → task → score}}, a seed and ids in {path}, got {type(error).__name__} '
            f"{error}; run the evaluation again"
        ) from error
    return raw


def load_items(folder: Path) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Reads ``tables/items.json`` of a run folder: method → split → task → the score of every problem; empty without the file.

    Raises:
        InputError: if the file has another form, or a score that is not a finite number.
    """
    path = Path(folder) / "tables" / "items.json"
    if not path.exists():
        return {}
    try:
        raw = load_json(path)
        items = {
            method: {split: {task: _finite(scores) for task, scores in tasks.items()} for split, tasks in splits.items()}
            for method, splits in raw.items()
        }
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"expected method → split → task → scores in {path}, got {type(error).__name__} {error}; run the evaluation again"
        ) from error
    return items


def load_selection(folder: Path) -> dict[str, Any] | None:
    """Reads ``tables/selection.json`` of a run folder; None if there is no such file, or the selection is not finished.

    Raises:
        InputError: if the file does not hold candidates with kind, ids and scores, or a finished selection has no soup.
    """
    path = Path(folder) / "tables" / "selection.json"
    if not path.exists():
        return None
    try:
        raw = load_json(path)
        problems = raw["problems"].keys()
        for one in raw["candidates"]:
            _ = str(one["kind"]), tuple(map(int, one["ids"]))
            if one["scores"] is None:
                continue
            if not one["scores"].keys() == one["items"].keys() == problems:
                raise ValueError("scores of other tasks")
            if not all(map(_finite, [*one["items"].values(), [*one["scores"].values(), one["average"]]])):
                raise ValueError("a task without scores")
        finished = "chosen" in raw and _ids(raw["chosen"]) in [_ids(one) for one in raw["candidates"]]
        _ = finished and tuple(map(int, raw["soup"]))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(
            f"expected candidates with kind, ids, scores and items, and a soup of them, in {path}, got {type(error).__name__} "
            f"{error}; remove the file and run the evaluation again"
        ) from error
    return raw if finished else None


def load_usage(folder: Path) -> dict[str, Any] | None:
    """Reads ``tables/usage.json`` of a run folder; None if there is no such file.

    Returns:
        ``flops`` (of a model's forward pass, and of the weights of a child), ``gpu``, ``training`` by model, ``evaluation`` by
        method and split, and ``selection``: the seconds of candidates. The last two are empty where nothing has been evaluated.

    Raises:
        InputError: if the file has another form.
    """
    path = Path(folder) / "tables" / "usage.json"
    if not path.exists():
        return None
    try:
        raw = {"evaluation": {}, "selection": {}, **load_json(path)}
        numbers = [raw["flops"][name] for name in ("layers", "head", "pair", "express")]
        gpu = [raw["gpu"]["peak"], raw["gpu"]["utilisation"]["train"], raw["gpu"]["utilisation"]["evaluate"]]
        if not raw["gpu"]["name"] or min(_finite(gpu)) <= 0:
            raise ValueError("a GPU without a name, or a peak or utilisation that is not above 0")
        numbers += [*raw["selection"].values(), raw["flops"].get("mixed", 0)]
        for one in raw["training"].values():
            numbers += [one[name] for name in ("tokens", "attended", "seconds")] if one is not None else []
            numbers += [one.get("flops", 0)] if one is not None else []
        for splits in raw["evaluation"].values():
            for one in splits.values():
                numbers += [one["seconds"], *([one["tokens"][name] for name in _TOKENS] if one["tokens"] is not None else [])]
        _finite(numbers)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(
            f"expected flops, gpu and training in {path}, got {type(error).__name__} {error}; remove the file and run the "
            "evaluation again"
        ) from error
    return raw


@dataclasses.dataclass(frozen=True)
class Picture:
    """A test image with the masks of several models.

    Attributes:
        png: the picture: from left to right the image with its prompt, the truth, and the masks of ``rows``.
        task: its task.
        item: the name of the image.
        rows: rows of the results table.
        scores: their scores of this image.
    """

    png: bytes
    task: str
    item: str
    rows: tuple[str, ...]
    scores: tuple[float, ...]


def load_pictures(folder: Path) -> list[Picture]:
    """The pictures of a run of models that segment images. Missing and damaged files are left out."""
    place, found = Path(folder) / "pictures", []
    try:
        entries = [*load_json(place / "pictures.json")]
    except (OSError, ValueError, TypeError):
        return []
    for one in entries:
        try:
            png = (place / Path(str(one["file"])).name).read_bytes()
            rows, scores = tuple(map(str, one["rows"])), tuple(_finite(one["scores"]))
            found.append(Picture(png, str(one["task"]), str(one["item"]), rows, scores))
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            continue
    return found


def _ids(candidate: Any) -> tuple[str, list[int]]:
    return candidate["kind"], candidate["ids"]


def _finite(scores: Any) -> list[float]:
    """Scores of problems; raises ValueError or TypeError if one is not a finite number."""
    return [_number(score) for score in scores]


def _number(value: Any) -> float:
    """A finite number of a file; raises ValueError or TypeError for anything else."""
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} in the place of a number")
    if not math.isfinite(value):
        raise ValueError("a number that is not finite")
    return float(value)


def load_transcripts(folder: Path) -> Iterator[Transcript]:
    """Yields every episode under ``transcripts/``. Lines that a killed run left incomplete are skipped."""
    for path in sorted((Path(folder) / "transcripts").rglob("*.jsonl")):
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    transcript = _transcript(json.loads(line))
                except (ValueError, TypeError, KeyError, AttributeError):
                    continue
                yield transcript


def _transcript(raw: Any) -> Transcript:
    """Parses one line; raises ValueError, TypeError, KeyError or AttributeError if it is not an episode."""
    return Transcript(
        task=str(raw["task"]),
        split=str(raw["split"]),
        method=str(raw["method"]),
        index=int(raw["index"]),
        score=float(raw["score"]),
        reason=str(raw.get("reason", "")),
        messages=tuple((str(message["role"]), _shown(message)) for message in raw["messages"]),
    )


def _shown(message: Any) -> str:
    """The content of a message; tool calls follow it, one a line as JSON."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    return "\n".join([str(message["content"]), *calls]).strip("\n") if calls else str(message["content"])
