"""The journal of a run: one JSON line for every evaluated individual, on disk before anything builds on it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cycleqd_jax.files import replacing
from cycleqd_jax.types import InputError

__all__ = ["Journal"]


FIELDS = {"id", "generation", "expert", "active", "parents", "omega", "key", "scores", "error", "items", "seconds"}
"""What every line has."""


class _Line(NamedTuple):
    record: dict[str, Any]
    end: int  # where the line ends in the file


class Journal:
    """``history.jsonl``, to which lines are appended.

    A line that a crash cut short is dropped when the journal is opened: its individual is evaluated again.
    """

    def __init__(self, path: str | Path) -> None:
        """Args:
            path: of the file; made with its first line.

        Raises:
            InputError: when a line other than the last is not JSON.
        """  # noqa: D205
        self.path = Path(path)
        self._lock = threading.Lock()
        self._lines: dict[int, _Line] = {}  # in the order of the file
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        lines = data.split(b"\n")
        torn = lines.pop()  # what follows the last newline: nothing, or a line cut short
        end = 0
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                missing = FIELDS - record.keys()
                if (
                    missing
                    or record["id"] in self._lines
                    or not (record["scores"] is None or isinstance(record["scores"], dict))
                ):
                    raise ValueError(missing)
                end += len(line) + 1
                self._lines[record["id"]] = _Line(record, end)
            except (ValueError, AttributeError, TypeError) as error:
                raise InputError(
                    f"the journal {self.path}, line {number}, is no record of one more individual: restore it."
                ) from error
        if torn:
            with self.path.open("r+b") as file:
                file.truncate(len(data) - len(torn))

    def __len__(self) -> int:
        """Number of individuals."""
        return len(self._lines)

    def get(self, identity: int) -> dict[str, Any] | None:
        """The record of an individual, or None."""
        line = self._lines.get(identity)
        return None if line is None else line.record

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record; it is on disk when this returns. Whatever interrupts it, the next one can be written."""
        line = json.dumps(record, allow_nan=False, separators=(",", ":"))
        with self._lock:
            written = next(reversed(self._lines.values())).end if self._lines else 0
            with self.path.open("ab") as file:
                file.truncate(written)  # what an interrupted write has left
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._lines[record["id"]] = _Line(json.loads(line), written + len(line.encode()) + 1)

    def sort(self) -> None:
        """Brings the lines into the order of their ids, where an interrupted generation left others; whole or not at all."""
        if list(self._lines) == sorted(self._lines):
            return
        found, end = {}, 0
        with replacing(self.path) as file:
            for identity in sorted(self._lines):
                record = self._lines[identity].record
                end += file.write(json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n")
                found[identity] = _Line(record, end)
        self._lines = found

    def scores(self, identity: int, tasks: Sequence[str]) -> list[float]:
        """The scores of an individual in the order of ``tasks``; NaN if it was quarantined.

        Raises:
            InputError: when they are of other tasks.
        """
        scores = self._lines[identity].record["scores"]
        if scores is None:
            return [float("nan")] * len(tasks)
        if scores.keys() != set(tasks):
            raise InputError(
                f"the journal {self.path} has scores of {', '.join(scores)} for individual {identity}, this run of "
                f"{', '.join(tasks)}: the folder belongs to another config."
            )
        return [scores[task] for task in tasks]
