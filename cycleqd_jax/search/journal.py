"""The journal of a run: one JSON line for every evaluated individual, on disk before the search uses its scores."""

from __future__ import annotations

import collections
import os
import threading
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from cycleqd_jax.files import replacing, sync_folder
from cycleqd_jax.individual import Individual, read_lines
from cycleqd_jax.types import Float, InputError

__all__ = ["Journal"]


RECENT = 1000
"""Individuals that stay in memory. Others are read from the file, so a long search needs no more memory than a short one."""


class Journal:
    """The file ``history.jsonl`` and its individuals.

    Opening the journal removes an incomplete last line, which a crash leaves; its individual is evaluated again.

    Attributes:
        path: the path of the file.
        torn: whether an incomplete last line was there.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        """Args:
            path: the path of the file; it is created when the first individual is appended.
            read_only: leave an incomplete last line in the file, which another process may be writing at this moment.

        Raises:
            InputError: a line other than an incomplete last one is not a record, or was changed, or an id comes twice; or the
                end of the file is not the beginning of a line.
        """  # noqa: D205
        self.path = Path(path)
        self._lock = threading.Lock()
        self._starts: dict[int, int] = {}  # of the lines, in bytes, by id, in the order of the file
        self._end = 0  # of the last line
        self._recent: collections.OrderedDict[int, Individual] = collections.OrderedDict()  # by id, the latest use last
        self._in_order = True  # whether the ids of the lines ascend
        self._read_only = read_only
        self._file: IO[bytes] | None = None  # for reading
        self._close = lambda: None
        self.torn = False
        if self.path.exists():
            self._open()
            self._read_all()

    def _open(self) -> None:
        """Opens the file. Another process may put a new one in its place, and the lines of this one can still be read."""
        handle = os.open(self.path, os.O_RDONLY)
        self._close()
        try:
            self._file = os.fdopen(handle, "rb", closefd=False)
        except OSError as error:  # a folder, which it names by its descriptor
            os.close(handle)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._close = weakref.finalize(self, os.close, handle)

    def _read_all(self) -> None:
        assert self._file is not None, "an open file"
        for individual, line in read_lines(self._file, self.path):
            if individual is None:
                self.torn = True
            else:
                self._add(individual, len(line))
        if self.torn and not self._read_only:
            os.truncate(self.path, self._end)

    def _add(self, individual: Individual, size: int) -> None:
        in_order = self._in_order and individual.id > self._last_id
        start, self._end = self._end, self._end + size  # first: an interrupt after it loses no line of the file
        self._starts[individual.id] = start
        self._in_order = in_order
        self._keep(individual)

    def _keep(self, individual: Individual) -> None:
        self._recent[individual.id] = individual
        self._recent.move_to_end(individual.id)
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def __len__(self) -> int:
        """Number of individuals."""
        return len(self._starts)

    def ids(self) -> list[int]:
        """The ids of all individuals, ascending."""
        return sorted(self._starts)

    @property
    def last_id(self) -> int:
        """The largest id; -1 without individuals."""
        return self._last_id if self._in_order else max(self._starts, default=-1)

    def __contains__(self, identity: int) -> bool:
        """Whether the journal has the individual of an id."""
        return identity in self._starts

    def __getitem__(self, identity: int) -> Individual:
        """The individual of an id; raises a KeyError if there is none."""
        with self._lock:
            return self._get(identity)

    def _get(self, identity: int) -> Individual:
        found = self._recent.get(identity)
        if found is None:
            start = self._starts[identity]
            assert self._file is not None, "an open file"
            self._file.seek(start)
            found = Individual.from_json(self._file.readline()[:-1], f"the line at byte {start} of {self.path}")
        self._keep(found)
        return found

    def get(self, identity: int) -> Individual | None:
        """The individual of an id, or None."""
        return self[identity] if identity in self._starts else None

    def append(self, individual: Individual) -> None:
        """Writes a line; it is on disk when this returns. After an interrupt at any point the next call writes a whole line.

        If the journal has the id already, nothing is written, and the first individual stays. Workers whose calls are repeated
        may return the result of an individual twice, and the search has used the first one.
        """
        assert not self._read_only, "a journal that may write"
        line = individual.to_json().encode() + b"\n"
        with self._lock:
            if individual.id in self._starts:
                return
            with self.path.open("ab") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._end:
                    raise InputError(
                        f"expected at least {self._end} bytes, which this search has written, got {size} in {self.path}; "
                        "restore the file"
                    )
                file.truncate(self._end)  # removes what an interrupted call has written
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if self._file is None:
                sync_folder(self.path.parent)  # the file is new
                self._open()
            self._add(individual, len(line))

    def sort(self) -> None:
        """Sorts the lines by id, atomically; they are out of order after an interrupted generation was resumed."""
        if not self._in_order:
            self._rewrite(sorted(self._starts))

    def take_back(self, identities: Collection[int]) -> None:
        """Removes individuals, atomically: a search evaluates them again."""
        if any(identity in identities for identity in self._starts):
            self._rewrite([identity for identity in self._starts if identity not in identities])

    def _rewrite(self, identities: Sequence[int]) -> None:
        assert not self._read_only, "a journal that may write"
        with self._lock:
            starts, end = {}, 0
            with replacing(self.path) as file:
                for identity in identities:
                    starts[identity] = end
                    end += file.write(self._get(identity).to_json().encode() + b"\n")
            self._starts, self._end = starts, end
            self._recent = collections.OrderedDict((i, one) for i, one in self._recent.items() if i in starts)
            self._in_order = identities == sorted(identities)
            self._open()

    @property
    def _last_id(self) -> int:
        """The id of the last line; -1 without lines."""
        return next(reversed(self._starts), -1)

    def scores(self, identity: int, tasks: Sequence[str]) -> list[float]:
        """The scores of an individual in the order of ``tasks``; all NaN if it has none.

        Raises:
            InputError: the individual has scores of other tasks.
        """
        scores = self[identity].scores
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
            return [len(self[identity].items.get(task, ())) for task in tasks]

        expected, rows = sizes(0), []
        for identity in identities:
            one = self[identity]
            items = one.items if one.evaluated is None else {}
            if items and sizes(identity) != expected:
                raise InputError(
                    f"expected scores of {expected} problems of {', '.join(tasks)} for individual {identity}, as for "
                    f"individual 0, got {sizes(identity)} in {self.path}; restore the file"
                )
            rows.append([score for task in tasks for score in items[task]] if items else [np.nan] * sum(expected))
        return np.asarray(rows, np.float32).reshape(len(rows), sum(expected))
