"""The journal of a search, and the archives that the insertions of Algorithm 1 give, replayed in plain numpy.

Nothing here uses the code of the searcher, so the report checks the search independently.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cycleqd_jax.files import load_json
from cycleqd_jax.individual import Individual, read_lines
from cycleqd_jax.schema import check_schema
from cycleqd_jax.types import InputError

__all__ = ["Archive", "Grid", "History", "Insertion", "load_grid", "load_history", "load_individuals", "shares"]

MIN_WEIGHT_SUM = 1e-3
"""Weights of a crossover whose sum is closer to zero give the mean of the parents."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """How archives are divided into cells.

    Attributes:
        tasks: names of the K tasks, in order.
        bins: number of bins per axis.
        bounds: lower edge of the first bin and upper edge of the last, per task, Float ``[K, 2]``.
        edges: edges of the bins, Float ``[K, bins + 1]``. They are float32 as in the searcher, so that a score on an edge
            falls into the same bin.
        method: the search method. Methods other than ``cycleqd`` do not use these archives.
        centroids: the centroids of the cells of a CVT, on axes of length 1, Float ``[cell, K - 1]``. With them, the bins are
            for figures only. None where the bins are the cells.
    """

    tasks: tuple[str, ...]
    bins: int
    bounds: np.ndarray
    edges: np.ndarray
    method: str = "cycleqd"
    centroids: np.ndarray | None = None

    @property
    def capacity(self) -> int:
        """The number of cells of an archive."""
        return self.bins ** (len(self.tasks) - 1) if self.centroids is None else len(self.centroids)

    def cells(self, task: int, scores: np.ndarray) -> list[tuple[int, ...]]:
        """The cells in archive ``task``: the bins on its axes; of a CVT the bins of the centroid, and the number of the cell.

        Args:
            task: index of the archive.
            scores: finite scores, Float ``[N, K]``.
        """
        axes = list(self.axes(task))
        if self.centroids is None:
            return [tuple(row) for row in self.bin(scores)[:, axes].tolist()]
        low, high = self.edges[axes, 0], self.edges[axes, -1]
        unit = np.clip((np.asarray(scores, np.float32)[:, axes] - low) / (high - low), 0.0, 1.0)
        nearest = [int(np.argmin(np.square(row - self.centroids).sum(axis=-1))) for row in unit]
        bins = np.clip((self.centroids * self.bins).astype(np.int64), 0, self.bins - 1)
        return [(*bins[cell].tolist(), cell) for cell in nearest]

    @classmethod
    def of_bounds(cls, tasks: tuple[str, ...], bins: int, bounds: np.ndarray) -> Grid:
        """A grid with equal bins between the bounds."""
        edges = np.linspace(bounds[:, 0], bounds[:, 1], bins + 1, axis=1)
        return cls(tasks, bins, bounds, edges.astype(np.float32))

    def axes(self, task: int) -> tuple[int, ...]:
        """The tasks whose scores are the descriptors f_{j≠k} of archive ``task``, in task order."""
        return tuple(j for j in range(len(self.tasks)) if j != task)

    def bin(self, scores: np.ndarray) -> np.ndarray:
        """The bin of each score. An edge belongs to the bin above it; scores outside the bounds fall into the end bins.

        Args:
            scores: finite scores, Float ``[..., K]``.

        Returns:
            Bin of each score on the axis of its task, Int ``[..., K]``.
        """
        above = (np.asarray(scores, np.float32)[..., None] >= self.edges).sum(axis=-1)
        return np.clip(above - 1, 0, self.bins - 1)


class Insertion(NamedTuple):
    """The insertion of an individual into an archive.

    Attributes:
        task: index of the archive.
        cell: bins on the archive's axes.
        row: position of the individual in the journal.
        replaced: position of the elite it replaced; -1 if the cell was empty.
    """

    task: int
    cell: tuple[int, ...]
    row: int
    replaced: int


@dataclasses.dataclass(frozen=True)
class Archive:
    """The archive A_k of one task at some generation.

    Attributes:
        task: index k of the task that gives quality.
        axes: indices of the tasks that give the descriptors.
        bins: number of bins per axis.
        capacity: number of cells.
        cells: cell (bins on the axes, of a CVT also its number) → position of the elite in the journal.
        quality: f_k of the elite of each cell.
    """

    task: int
    axes: tuple[int, ...]
    bins: int
    capacity: int
    cells: Mapping[tuple[int, ...], int]
    quality: Mapping[tuple[int, ...], float]

    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of axis positions to show: one pair for K ≤ 3 (``(0, 0)`` for K = 2), all pairs for more tasks."""
        return list(itertools.combinations(range(len(self.axes)), 2)) or [(0, 0)]

    def project(self, pair: tuple[int, int]) -> np.ndarray:
        """Projects the archive on two axes: the best elite over all other axes, the earlier one if qualities are equal.

        Args:
            pair: positions in ``axes`` of the horizontal and the vertical axis; if they are equal (K = 2), there is one row.

        Returns:
            Position in the journal, Int ``[bins (vertical; 1 for K = 2), bins (horizontal)]``; -1 for empty cells.
        """
        x, y = pair
        rows = np.full((1 if x == y else self.bins, self.bins), -1, np.int64)
        best: dict[tuple[int, int], tuple[float, int]] = {}
        for cell, row in self.cells.items():
            spot = (0 if x == y else cell[y], cell[x])
            rank = (-self.quality[cell], row)
            if spot not in best or rank < best[spot]:
                best[spot] = rank
                rows[spot] = row
        return rows


@dataclasses.dataclass(frozen=True)
class History:
    """A whole journal with the grid it was searched on.

    Attributes:
        grid: tasks, bins and bounds.
        individuals: all individuals, in the order of the journal; a *row* is a position in this order.
        torn: whether an incomplete last line was left out.
    """

    grid: Grid
    individuals: tuple[Individual, ...]
    torn: bool = False

    @functools.cached_property
    def row_of(self) -> dict[int, int]:
        """Individual id → row."""
        return {one.id: row for row, one in enumerate(self.individuals)}

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """Scores in task order, Float ``[N, K]``; a row of NaN is a quarantined individual."""
        tasks = self.grid.tasks
        rows = [[math.nan if one.scores is None else one.scores[task] for task in tasks] for one in self.individuals]
        return np.array(rows, np.float64).reshape(len(rows), len(tasks))

    @functools.cached_property
    def averages(self) -> np.ndarray:
        """Mean score over the tasks, Float ``[N]``; NaN for a quarantined individual."""
        return self.scores.mean(axis=1)

    @functools.cached_property
    def clock(self) -> np.ndarray:
        """Newest generation up to each row, Int ``[N]``: the generation of the row, unless children arrive out of order."""
        generations = np.array([one.generation for one in self.individuals], np.int64)
        return np.maximum.accumulate(generations) if len(generations) else generations

    @property
    def last_generation(self) -> int:
        """Newest generation; -1 if there are only experts."""
        return int(self.clock[-1]) if len(self.clock) else -1

    @functools.cached_property
    def experts(self) -> tuple[int, ...]:
        """Rows of the experts that have scores."""
        return tuple(row for row, one in enumerate(self.individuals) if one.expert is not None and one.scores is not None)

    @functools.cached_property
    def insertions(self) -> tuple[Insertion, ...]:
        """The insertions of Algorithm 1 in order: into A_k at the cell of f_{j≠k}, if it is empty or f_k is strictly better."""
        tasks = len(self.grid.tasks)
        elites: list[dict[tuple[int, ...], int]] = [{} for _ in range(tasks)]
        done: list[Insertion] = []
        alive = np.isfinite(self.scores).all(axis=1)
        quality = self.scores.astype(np.float32)  # as in the searcher, where smaller differences are ties
        cells = [self.grid.cells(k, self.scores[alive]) for k in range(tasks)]
        for n, row in enumerate(np.flatnonzero(alive).tolist()):
            for k in range(tasks):
                cell = cells[k][n]
                elite = elites[k].get(cell, -1)
                if elite < 0 or quality[row, k] > quality[elite, k]:
                    elites[k][cell] = row
                    done.append(Insertion(k, cell, row, elite))
        return tuple(done)

    def archives(self, generation: int | None = None) -> tuple[Archive, ...]:
        """All archives after ``generation`` (default: the last), one per task."""
        end = self.last_generation if generation is None else generation
        cells: list[dict[tuple[int, ...], int]] = [{} for _ in self.grid.tasks]
        for task, cell, row, _ in self.insertions:
            if self.clock[row] <= end:
                cells[task][cell] = row
        return tuple(
            Archive(
                k,
                self.grid.axes(k),
                self.grid.bins,
                self.grid.capacity,
                cells[k],
                {c: float(self.scores[r, k]) for c, r in cells[k].items()},
            )
            for k in range(len(self.grid.tasks))
        )

    def expert_cells(self, archive: Archive, pair: tuple[int, int]) -> dict[tuple[int, int], list[str]]:
        """The cells of the experts on a projection: (vertical, horizontal) bin → tasks of the experts in it."""
        found: dict[tuple[int, int], list[str]] = {}
        cells = self.grid.cells(archive.task, self.scores[list(self.experts)])
        for row, cell in zip(self.experts, cells, strict=True):
            x, y = (cell[i] for i in pair)
            found.setdefault((0 if pair[0] == pair[1] else y, x), []).append(str(self.individuals[row].expert))
        return found

    def quality_range(self, task: int) -> tuple[float, float]:
        """Lowest and highest f_k ever inserted into archive ``task``, as one colour scale for all generations."""
        values = [self.scores[i.row, task] for i in self.insertions if i.task == task]
        return (float(min(values)), float(max(values))) if values else (0.0, 1.0)

    @functools.cached_property
    def expert_names(self) -> tuple[str, ...]:
        """The names of the experts: those of the tasks, and then the others."""
        others = [one.expert for one in self.individuals if one.expert is not None and one.expert not in self.grid.tasks]
        return (*self.grid.tasks, *others)

    @functools.cached_property
    def mixture(self) -> np.ndarray:
        """The mixing vector ``a`` of each individual, Float ``[N, expert]``: the weights of the experts, from crossover alone.

        It is one-hot for experts, ω1/(ω1+ω2) a_p1 + ω2/(ω1+ω2) a_p2 for children of crossover, the mean over the groups of
        layers for children with coefficients, and NaN if the journal has neither.
        """
        names = self.expert_names
        mix = np.full((len(self.individuals), len(names)), np.nan)
        for row, one in enumerate(self.individuals):
            if one.expert is not None:
                mix[row] = np.eye(len(names))[names.index(one.expert)]
            elif one.coefficients is not None:
                mix[row] = np.mean(one.coefficients, axis=0)
            elif one.omega is not None:
                parents = [self.row_of.get(p, row) for p in one.parents]  # if unknown: the row itself, still NaN
                mix[row] = np.array(shares(one.omega)) @ mix[parents]
        return mix


def shares(omega: Sequence[float]) -> tuple[float, float]:
    """The shares of the two parents in a child, ω1/(ω1+ω2) and ω2/(ω1+ω2), as the crossover computes them.

    Args:
        omega: the raw weights ω1, ω2 of the journal.
    """
    first, second = omega
    total = first + second
    return (0.5, 0.5) if abs(total) < MIN_WEIGHT_SUM else (first / total, second / total)


def _read_json(path: Path) -> Any:
    try:
        return load_json(path)
    except ValueError as error:
        raise InputError(f"expected JSON in {path}, got {error}; restore the file from the run that wrote it") from error


def _floats(read: Callable[[], Any], shape: tuple[int, ...], expected: str, path: Path) -> np.ndarray:
    """Finite numbers of a grid, one or more, as float32; an InputError otherwise."""
    try:
        found = np.array(read(), np.float32).reshape(shape)
        if not found.size or not np.isfinite(found).all():
            raise ValueError(f"{found.tolist()}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"expected {expected} in {path}, got {type(error).__name__} {error}; run the search again or restore the file"
        ) from error
    return found


def load_grid(folder: Path) -> Grid | None:
    """Reads the grid of a run folder (``grid.json``); None if there is no such file yet.

    Raises:
        InputError: if the file is not a grid.
    """
    path = Path(folder) / "grid.json"
    if not path.exists():
        return None
    raw = _read_json(path)
    check_schema(raw if isinstance(raw, dict) else {}, path)
    try:
        tasks = tuple(str(task) for task in raw["tasks"])
        bins = int(raw["bins"])
        bounds = np.array([raw["bounds"][task] for task in tasks], np.float64).reshape(len(tasks), 2)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"expected tasks, bins and [low, high] bounds for every task in {path}, got {type(error).__name__} {error}; "
            "run the search again or restore the file"
        ) from error
    if len(tasks) < 2 or len(set(tasks)) < len(tasks) or bins < 1 or not np.isfinite(bounds).all():
        raise InputError(
            f"expected two or more distinct tasks, one or more bins and finite bounds in {path}, "
            f"got tasks {tasks}, {bins} bins, bounds {bounds.tolist()}; run the search again or restore the file"
        )
    grid = Grid.of_bounds(tasks, bins, bounds)
    if "edges" in raw:  # those of the searcher, bit for bit
        expected = f"{bins + 1} finite edges for every task"
        edges = _floats(lambda: [raw["edges"][task] for task in tasks], grid.edges.shape, expected, path)
        grid = dataclasses.replace(grid, edges=edges)
    if "centroids" in raw:
        expected = f"centroids of {len(tasks) - 1} finite coordinates"
        grid = dataclasses.replace(grid, centroids=_floats(lambda: raw["centroids"], (-1, len(tasks) - 1), expected, path))
    return dataclasses.replace(grid, method=str(raw.get("method", grid.method)))


def load_history(folder: Path) -> History | None:
    """Reads the journal of a run folder; None if ``history.jsonl`` or ``grid.json`` is missing.

    A last line without its newline (the run was killed, or is writing it at this moment) is left out.

    Raises:
        InputError: if a line is not a record, or if an id occurs twice.
    """
    grid = load_grid(folder)
    if grid is None or not (Path(folder) / "history.jsonl").exists():
        return None
    individuals, torn = load_individuals(folder, grid.tasks)
    return History(grid, individuals, torn=torn)


def load_individuals(folder: Path, tasks: tuple[str, ...]) -> tuple[tuple[Individual, ...], bool]:
    """Reads the journal of a run folder; empty if there is none.

    Args:
        folder: the run folder.
        tasks: the tasks whose scores every individual must have.

    Returns:
        The individuals in the order of the file, and whether an incomplete last line was left out.

    Raises:
        InputError: if a line is not a record or was changed, if an id occurs twice, or if the end of the file is not the
            beginning of a line.
    """
    path = Path(folder) / "history.jsonl"
    if not path.exists():
        return (), False
    found = [one for one, _ in read_lines(io.BytesIO(path.read_bytes()), path)]
    individuals = [one for one in found if one is not None]
    for one in individuals:
        if one.scores is not None and not one.scores.keys() >= {*tasks}:
            raise InputError(
                f"expected scores of {', '.join(tasks)}, got scores of {', '.join(one.scores)} of individual {one.id} in "
                f"{path}; restore the file"
            )
    return tuple(individuals), len(individuals) < len(found)
