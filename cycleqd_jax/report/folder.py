"""The other files of a run folder: configuration, results, transcripts."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cycleqd_jax.types import InputError

__all__ = ["Config", "Transcript", "load_config", "load_results", "load_transcripts"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The resolved configuration, as text.

    Attributes:
        text: ``config.yaml`` without its versions.
        versions: package → version.
    """

    text: str
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Transcript:
    """One episode as it was played.

    Attributes:
        task: its task.
        split: ``train`` or ``test``.
        method: whose model spoke.
        index: number of the episode in the split.
        score: in [0, 1].
        reason: why it got that score.
        messages: (role, content) pairs.
    """

    task: str
    split: str
    method: str
    index: int
    score: float
    reason: str
    messages: tuple[tuple[str, str], ...]


def load_config(folder: Path) -> Config | None:
    """``config.yaml`` of a run folder, or None.

    The text is shown as it is; only the ``versions:`` mapping (one ``package: version`` a line) is taken apart.
    """
    path = Path(folder) / "config.yaml"
    if not path.exists():
        return None
    text, versions, inside = [], {}, False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if re.match(r"\S", line) and not line.startswith("#"):
            inside = re.fullmatch(r"versions:\s*", line) is not None
            if inside:
                continue
        entry = re.fullmatch(r"\s+['\"]?([^:'\"]+)['\"]?:\s*['\"]?(.*?)['\"]?\s*", line) if inside else None
        if entry:
            versions[entry[1]] = entry[2]
        else:
            text.append(line)
    return Config("\n".join(text).strip(), versions)


def load_results(folder: Path) -> dict[str, Any] | None:
    """``tables/results.json`` of a run folder, or None.

    Raises:
        InputError: the file is not a mapping with ``methods``: method → split → task → score.
    """
    path = Path(folder) / "tables" / "results.json"
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        for splits in raw["methods"].values():
            for scores in splits.values():
                for score in scores.values():
                    _ = score is None or float(score)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f'expected {{"methods": method → split → task → score}} in {path}, got {type(error).__name__} {error}; '
            "evaluate the run again"
        ) from error
    return raw


def load_transcripts(folder: Path) -> Iterator[Transcript]:
    """Every episode under ``transcripts/``; lines that are no episode (cut short by a kill) are passed over."""
    for path in sorted((Path(folder) / "transcripts").rglob("*.jsonl")):
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    raw = json.loads(line)
                    yield Transcript(
                        task=str(raw["task"]),
                        split=str(raw["split"]),
                        method=str(raw["method"]),
                        index=int(raw["index"]),
                        score=float(raw["score"]),
                        reason=str(raw.get("reason", "")),
                        messages=tuple((str(m["role"]), str(m["content"])) for m in raw["messages"]),
                    )
                except (ValueError, TypeError, KeyError, AttributeError):
                    continue
