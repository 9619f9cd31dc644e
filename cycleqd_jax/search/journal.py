"""The journal of a run: one JSON line for every evaluated individual, on disk before anything builds on it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.types import InputError

__all__ = ["Journal"]


FIELDS = {"id", "generation", "expert", "active", "parents", "omega", "key", "scores", "error", "items", "seconds"}
"""What every line has."""


class Journal:
    """``history.jsonl``, append-only.

    A line that a crash cut short is dropped when the journal is opened: its individual is evaluated again.
    """

    def __init__(self, path: str | Path) -> None:
        """Args:
            path: of the file; made with its first line.

        Raises:
            InputError: when a line other than the last is not JSON.
        """  # noqa: D205
        self.path = Path(path)
        self._records: dict[int, dict[str, Any]] = {}
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        lines = data.split(b"\n")
        torn = lines.pop()  # what follows the last newline: nothing, or a line cut short
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                missing = FIELDS - record.keys()
                if (
                    missing
                    or record["id"] in self._records
                    or not (record["scores"] is None or isinstance(record["scores"], dict))
                ):
                    raise ValueError(missing)
                self._records[record["id"]] = record
            except (ValueError, AttributeError, TypeError) as error:
                raise InputError(
                    f"the journal {self.path}, line {number}, is no record of one more individual: restore it."
                ) from error
        if torn:
            with self.path.open("r+b") as file:
                file.truncate(len(data) - len(torn))

    def __len__(self) -> int:
        """Number of individuals."""
        return len(self._records)

    def get(self, identity: int) -> dict[str, Any] | None:
        """The record of an individual, or None."""
        return self._records.get(identity)

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record; it is on disk when this returns."""
        line = json.dumps(record, allow_nan=False, separators=(",", ":"))
        with self.path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._records[record["id"]] = json.loads(line)

    def scores(self, identity: int, tasks: Sequence[str]) -> list[float]:
        """The scores of an individual in the order of ``tasks``; NaN if it was quarantined.

        Raises:
            InputError: when they are of other tasks.
        """
        scores = self._records[identity]["scores"]
        if scores is None:
            return [float("nan")] * len(tasks)
        if scores.keys() != set(tasks):
            raise InputError(
                f"the journal {self.path} has scores of {', '.join(scores)} for individual {identity}, this run of "
                f"{', '.join(tasks)}: the folder belongs to another config."
            )
        return [scores[task] for task in tasks]
