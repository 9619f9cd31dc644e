"""What is known of the rows of a run's results table: from a finished run, and from a measurement that was killed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cycleqd_jax.config import to_dict
from cycleqd_jax.files import load_json, write_json
from cycleqd_jax.report.read import load_items, load_results
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.results.selection import Key
from cycleqd_jax.runs.training.gradient import GradientMerge
from cycleqd_jax.runs.usage import read_usage

__all__ = ["KilledMeasurement", "Measured", "RowResult", "add_known"]

RowResult = tuple[dict[Any, Any], dict[Any, Any], dict[Any, Any]]
"""Scores, scores of problems, and tokens and seconds of a row, each by split."""

_SEEDED = ("dare", "dare_ties", "gradient")
"""Rows that depend on the seed of the run although no search found them: by random masks, or by the order of conversations."""


@dataclasses.dataclass
class Measured:
    """What is known of rows: of every row its scores, the scores of problems, and what was used, all by split.

    Attributes:
        training: the records of trainings that are not in the cache.
        keys: the keys of the rows that a search found.
        gradient: the digest of the coefficients of the row ``gradient``.
    """

    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    items: dict[str, Any] = dataclasses.field(default_factory=dict)
    usage: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    keys: dict[str, Key] = dataclasses.field(default_factory=dict)
    gradient: str | None = None

    def take(self, name: str, other: Measured, row: str) -> None:
        """Takes a row over from another."""
        self.scores[name], self.items[name] = other.scores[row], other.items[row]
        self.usage[name] = other.usage.get(row, {})
        if row in other.training:
            self.training[name] = other.training[row]


def add_known(
    known: Measured,
    folder: Path,
    merge: GradientMerge | None,
    log: Callable[[str], None],
    *,
    searched: bool = True,
    seed: int | None = None,
) -> None:
    """Adds the rows of a finished run.

    Args:
        known: gets the rows.
        folder: the run folder.
        merge: the config's gradient descent; a row of other coefficients is left out.
        log: called with a warning if the record of tokens and seconds is damaged.
        searched: add the rows that its search found too, where the results have what identifies their weights.
        seed: leave out rows that depend on the seed, where the run has another; None leaves none out.

    Raises:
        InputError: the results are damaged.
    """
    results, items, usage = load_results(folder), load_items(folder), read_usage(folder, log)
    if results is None:
        return
    keys = {name: (str(kind), tuple(map(int, ids))) for name, (kind, ids) in results.get("keys", {}).items()}
    other = Measured(results["methods"], items, usage.get("evaluation", {}), usage.get("training", {}))
    for name in other.scores:
        if name not in items or (name in results.get("found", ()) and not (searched and name in keys)):
            continue
        if name in _SEEDED and seed is not None and results.get("seed") != seed:
            continue
        if name == "gradient" and merge is not None and not merge.is_in(results):
            continue
        known.take(name, other, name)
        if name in keys:
            known.keys[name] = keys[name]
        if name == "gradient":
            known.gradient = results.get("gradient")


_ROW = {"key", "scores", "items", "usage"}
"""What the file of a killed measurement has of every row."""


class KilledMeasurement:
    """The rows that a measurement has evaluated, in ``tables/measured.json``, until all results are written."""

    def __init__(self, context: Context) -> None:
        """Reads the file, where it belongs to a measurement of the same models."""
        config = context.config
        self._file = context.folder / "tables" / "measured.json"
        self._models = {"generations": config.search.generations, "gradient": to_dict(config.gradient)}
        self._known: dict[str, Any] = {}
        self.rows: set[str] = set()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # there is none, or it is damaged
            found = load_json(self._file)
            if found["models"] == self._models:
                self._known = {name: row for name, row in found["rows"].items() if row.keys() == _ROW}

    def ensure(self, name: str, key: Key | None, evaluate: Callable[[], RowResult]) -> RowResult:
        """What is known of a row; it is evaluated where that is nothing.

        Args:
            name: the name of the row.
            key: identifies the weights of a model that the search found.
            evaluate: evaluates the row.
        """
        self.rows.add(name)
        known = self._known.get(name)
        if known is None or known["key"] != repr(key):
            scores, items, usage = evaluate()
            self._known[name] = {"key": repr(key), "scores": scores, "items": items, "usage": usage}
            write_json(self._file, {"models": self._models, "rows": self._known})
            return scores, items, usage
        return known["scores"], known["items"], known["usage"]

    def remove(self) -> None:
        """Removes the file, when all results are written."""
        self._file.unlink(missing_ok=True)
