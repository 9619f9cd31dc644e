"""The journal of a run: one JSON line for every evaluated individual, on disk before the search uses its scores."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cycleqd_jax.files import replacing
from cycleqd_jax.individual import Individual
from cycleqd_jax.types import Float, InputError

__all__ = ["Journal"]


class _Line(NamedTuple):
    individual: Individual
    end: int  # offset in the file after the line


class Journal:
    """The file ``history.jsonl`` and its individuals.

    Opening the journal removes an incomplete last line, which a crash leaves; its individual is evaluated again.

    Attributes:
        path: of the file.
        torn: whether an incomplete last line was there.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        """Args:
            path: of the file; it is created when the first individual is appended.
            read_only: leave an incomplete last line in the file, which another process may be writing at this moment.

        Raises:
            InputError: a line other than an incomplete last one is not a record, or an id comes twice.
        """  # noqa: D205
        self.path = Path(path)
        self._lock = threading.Lock()
        self._lines: dict[int, _Line] = {}  # by id, in the order of the file
        self._in_order = True  # whether the ids of the lines ascend
        self._read_only = read_only
        self.torn = False
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        *lines, incomplete = data.split(b"\n")
        end = 0
        for number, line in enumerate(lines, 1):
            place = f"line {number} of {self.path}"
            individual = Individual.from_json(line, place)
            if individual.id in self._lines:
                raise InputError(f"expected distinct ids, got id {individual.id} again in {place}; restore the file")
            end += len(line) + 1
            self._in_order = self._in_order and individual.id > self._last_id
            self._lines[individual.id] = _Line(individual, end)
        self.torn = bool(incomplete)
        if incomplete and not read_only:
            with self.path.open("r+b") as file:
                file.truncate(end)

    def __len__(self) -> int:
        """Number of individuals."""
        return len(self._lines)

    def ids(self) -> list[int]:
        """The ids of all individuals, ascending."""
        return sorted(self._lines)

    def __getitem__(self, identity: int) -> Individual:
        """The individual of an id; raises a KeyError if there is none."""
        return self._lines[identity].individual

    def get(self, identity: int) -> Individual | None:
        """The individual of an id, or None."""
        line = self._lines.get(identity)
        return None if line is None else line.individual

    def append(self, individual: Individual) -> None:
        """Writes a line; it is on disk when this returns. After an interrupt at any point the next call writes a whole line."""
        assert not self._read_only, "a journal that may write"
        line = individual.to_json().encode() + b"\n"
        with self._lock:
            size = next(reversed(self._lines.values())).end if self._lines else 0
            with self.path.open("ab") as file:
                file.truncate(size)  # removes what an interrupted call has written
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self._in_order = self._in_order and individual.id > self._last_id
            self._lines[individual.id] = _Line(individual, size + len(line))

    def sort(self) -> None:
        """Sorts the lines by id, atomically; they are out of order after an interrupted generation was resumed."""
        if not self._in_order:
            self._rewrite(sorted(self._lines))

    def take_back(self, identities: Collection[int]) -> None:
        """Removes individuals, atomically: a search evaluates them again."""
        if any(identity in identities for identity in self._lines):
            self._rewrite([identity for identity in self._lines if identity not in identities])

    def _rewrite(self, identities: Sequence[int]) -> None:
        assert not self._read_only, "a journal that may write"
        lines, end = {}, 0
        with replacing(self.path) as file:
            for identity in identities:
                individual = self._lines[identity].individual
                end += file.write(individual.to_json().encode() + b"\n")
                lines[identity] = _Line(individual, end)
        self._lines = lines
        self._in_order = identities == sorted(identities)

    @property
    def _last_id(self) -> int:
        """The id of the last line; -1 without lines."""
        return next(reversed(self._lines), -1)

    def scores(self, identity: int, tasks: Sequence[str]) -> list[float]:
        """The scores of an individual in the order of ``tasks``; all NaN if it has none.

        Raises:
            InputError: the individual has scores of other tasks.
        """
        scores = self._lines[identity].individual.scores
        if scores is None:
            return [float("nan")] * len(tasks)
        if scores.keys() != set(tasks):
            raise InputError(
                f"expected scores of the tasks {', '.join(tasks)}, got scores of {', '.join(scores)} for individual {identity} "
                f"in {self.path}; use the config of that run, or another folder"
            )
        return [scores[task] for task in tasks]

    def items(self, identities: Sequence[int], tasks: Sequence[str]) -> Float[np.ndarray, "individual item"]:
        """The scores of all problems, those of the first of ``tasks`` first; rows of NaN for individuals without scores.

        Raises:
            InputError: an individual was scored on another number of problems than individual 0.
        """

        def sizes(identity: int) -> list[int]:
            return [len(self._lines[identity].individual.items.get(task, ())) for task in tasks]

        expected, rows = sizes(0), []
        for identity in identities:
            one = self._lines[identity].individual
            items = one.items if one.evaluated is None else {}
            if items and sizes(identity) != expected:
                raise InputError(
                    f"expected scores of {expected} problems of {', '.join(tasks)} for individual {identity}, as for "
                    f"individual 0, got {sizes(identity)} in {self.path}; restore the file"
                )
            rows.append([score for task in tasks for score in items[task]] if items else [np.nan] * sum(expected))
        return np.asarray(rows, np.float32).reshape(len(rows), sum(expected))
