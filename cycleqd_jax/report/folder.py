"""A run folder as data for notebooks and scripts: records that ``pandas.DataFrame`` takes as they are."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cycleqd_jax.report.costs import Costs, load_costs
from cycleqd_jax.report.history import Archive, History, load_history, shares
from cycleqd_jax.report.read import load_config, load_results, load_selection, load_transcripts
from cycleqd_jax.schema import check_schema
from cycleqd_jax.types import InputError
from cycleqd_jax.yaml_files import load_yaml

__all__ = ["Record", "RunFolder", "open_run"]

Record = dict[str, Any]
"""One row of a table: column → value. A list of records is a table."""

_CONTENTS = ("config.yaml", "history.jsonl", "tables/results.json")


def open_run(folder: str | Path) -> RunFolder:
    """Opens the folder of a run for reading.

    Example:
        >>> run = open_run("runs/quickstart")  # doctest: +SKIP
        >>> pandas.DataFrame(run.individuals)  # doctest: +SKIP
        >>> pandas.DataFrame(run.archives["mbpp"]).nlargest(5, "quality")  # doctest: +SKIP

    Args:
        folder: the ``output`` of a configuration.

    Raises:
        InputError: if the folder is not a run folder.
    """
    return RunFolder(folder)


class RunFolder:
    """A read-only view of a run folder.

    Files are read on first use and then kept in memory. The search may still be running; open the folder again to see newer
    individuals. Reading raises ``InputError`` if the file that is needed is missing or damaged.

    Tables are attributes: lists of records, which ``pandas.DataFrame`` takes as they are. What takes an argument is a method.

    Attributes:
        path: the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        """Checks that the folder is a run folder of this version or an older one; reads no more than its config.

        Raises:
            InputError: if it is not one.
        """
        self.path = Path(folder)
        if not any((self.path / name).is_file() for name in _CONTENTS):
            found = "a folder without them" if self.path.is_dir() else "a file" if self.path.exists() else "nothing"
            raise InputError(
                f"expected a run folder with {', '.join(_CONTENTS[:-1])} or {_CONTENTS[-1]}, got {found} at {self.path}; "
                "give the output folder of a run"
            )
        load_config(self.path)  # refuses a newer schema

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration of the run, as nested mappings; ``versions`` holds the versions of the packages."""
        path = self._existing("config.yaml", "restore the file from the run that wrote it")
        try:
            config = load_yaml(path)
        except ValueError as error:
            raise InputError(f"expected YAML in {path}, got other text ({error}); restore the file of the run") from error
        if not isinstance(config, dict):
            raise InputError(f"expected a mapping in {path}, got {type(config).__name__}; restore the file")
        check_schema(config, path)
        return config

    @functools.cached_property
    def _history(self) -> History:
        """The journal: all individuals, and the archives replayed from them."""
        for name in ("grid.json", "history.jsonl"):
            self._existing(name, "start the search first, with cycleqd evolve")
        history = load_history(self.path)
        assert history is not None  # both files exist
        return history

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the archives."""
        return self._history.grid.tasks

    @functools.cached_property
    def individuals(self) -> list[Record]:
        """Every evaluated individual, in the order of the journal.

        The records have the fields of :class:`~cycleqd_jax.individual.Individual`, with one score per task and ``average``
        instead of ``scores``, and with ``coefficients``, ``digest``, ``asked`` and ``evaluated`` only where there are any.
        ``parents`` lists only ids that exist, ``seconds`` is the sum over all stages, and ``tokens`` is the number that went
        through the model's layers (None where they were not counted). The scores of an individual that is quarantined, or that
        racing stopped, are NaN.
        """
        return [self._individual(row) for row in range(len(self._history.individuals))]

    @functools.cached_property
    def archives(self) -> dict[str, list[Record]]:
        """The elites of every archive after the last generation, by task; see :meth:`archives_after`."""
        return self.archives_after(self._history.last_generation)

    def archives_after(self, generation: int) -> dict[str, list[Record]]:
        """The elites of every archive after a generation; -1 is the experts alone.

        Returns:
            For each task, records with ``cell`` (bins), ``descriptors`` (scores on the other tasks, in task order),
            ``quality`` (score on the archive's task), ``id`` of the individual, one score per task, and ``average``.
        """
        return {self.tasks[archive.task]: self._elites(archive) for archive in self._history.archives(generation)}

    def lineage(self, id: int) -> list[Record]:
        """An individual and all its ancestors, up to the experts.

        Args:
            id: the id of the individual.

        Returns:
            Records as of :attr:`individuals`, each ancestor once, sorted by depth. They also have ``depth``: the fewest
            generations between it and the individual (0 for the individual, 1 for its parents); ``shares``: the normalised
            crossover weights of its parents, None without parents; and ``mixing``: the weight of every expert by task, before
            mutation, None where the journal does not have it.

        Raises:
            InputError: there is no such individual; or the journal lacks an ancestor, or names a parent that is younger than
                its child.
        """
        rows = self._history.row_of
        if id not in rows:
            raise InputError(f"expected the id of an individual, got {id} in {self.path}; see individuals for the ids")
        records, seen, level = [], {id}, [id]
        depth = 0
        while level:
            records += [{**self._individual(rows[one]), "depth": depth, **self._origin(rows[one])} for one in level]
            parents = dict.fromkeys(parent for one in level for parent in self._checked_parents(one))
            level = [parent for parent in parents if parent not in seen]
            seen.update(level)
            depth += 1
        return records

    @functools.cached_property
    def results(self) -> list[Record]:
        """The scores of the base model, the experts, the baselines, the merges and the search.

        The records have ``method``, ``split``, ``task`` (``"average"`` for the mean over tasks) and ``score``, which is NaN if
        the method could not be evaluated.
        """
        self._existing("tables/results.json", "evaluate the run first, with cycleqd evaluate")
        results = load_results(self.path)
        assert results is not None  # the file exists
        return [
            {"method": method, "split": split, "task": task, "score": float("nan") if score is None else float(score)}
            for method, splits in results["methods"].items()
            for split, scores in splits.items()
            for task, score in scores.items()
        ]

    @functools.cached_property
    def selection(self) -> list[Record]:
        """The candidates for the final model with their scores on the validation problems; empty before the selection.

        The records have ``kind`` (``aggregate``, ``elite`` or ``soup``), ``ids`` of the individuals, one score per task,
        ``average`` and ``chosen``. Scores are NaN where a candidate could not be evaluated. Every soup that was tried is a
        record.
        """
        found = load_selection(self.path)
        if found is None:
            return []
        nothing = dict.fromkeys((*self.tasks, "average"), float("nan"))
        return [
            {
                "kind": one["kind"],
                "ids": tuple(one["ids"]),
                **nothing,
                **({} if one["scores"] is None else {**one["scores"], "average": one["average"]}),
                "chosen": {"kind": one["kind"], "ids": one["ids"]} == found["chosen"],
            }
            for one in found["candidates"]
        ]

    @functools.cached_property
    def _costs(self) -> Costs | None:
        return load_costs(self.path)

    @functools.cached_property
    def costs(self) -> list[Record]:
        """The cost of every row of the results table by stage; before the results are there, that of the search.

        The records have ``method``, ``stage`` (one of :data:`~cycleqd_jax.report.costs.STAGES`), ``tokens``, ``flops`` and
        ``seconds``, which are None where they are unknown. GPU-hours and sums are in ``tables/costs.json`` after the report.
        """
        found = self._costs
        return [
            {"method": method, "stage": stage, **dataclasses.asdict(cost)}
            for method, stages in (found.methods if found else {}).items()
            for stage, cost in stages.items()
        ]

    @functools.cached_property
    def generation_costs(self) -> list[Record]:
        """The cost of every generation by stage.

        The records have ``generation`` (-1 for the experts), ``individuals``, ``stage`` (``express`` or ``evaluate``),
        ``tokens``, ``flops`` and ``seconds``.
        """
        found = self._costs
        return [
            {"generation": generation, "individuals": count, "stage": stage, **dataclasses.asdict(cost)}
            for generation, (count, stages) in (found.generations if found else {}).items()
            for stage, cost in stages.items()
        ]

    def transcripts(self, *, task: str | None = None, split: str | None = None, method: str | None = None) -> list[Record]:
        """The conversations of the evaluation; empty before the run is evaluated.

        Args:
            task: only this task.
            split: only ``"train"`` or ``"test"``.
            method: only this method, such as ``"cycleqd"``.

        Returns:
            Records with ``task``, ``split``, ``method``, ``index`` (of the problem), ``score``, ``reason`` and ``messages``
            (mappings with ``role`` and ``content``, which ends with the tool calls of the message, one a line as JSON).
        """
        return [
            {
                **{name: getattr(one, name) for name in ("task", "split", "method", "index", "score", "reason")},
                "messages": [{"role": role, "content": content} for role, content in one.messages],
            }
            for one in load_transcripts(self.path)
            if task in (None, one.task) and split in (None, one.split) and method in (None, one.method)
        ]

    def _existing(self, name: str, advice: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise InputError(f"expected the file {name}, got none in {self.path}; {advice}")
        return path

    def _scores(self, row: int) -> Record:
        scores = self._history.scores[row].tolist()
        return {**dict(zip(self.tasks, scores, strict=True)), "average": float(self._history.averages[row])}

    def _parents(self, row: int) -> tuple[int, ...]:
        return tuple(parent for parent in self._history.individuals[row].parents if parent >= 0)

    def _checked_parents(self, id: int) -> tuple[int, ...]:
        """The parents of an individual; raises an InputError where the journal lacks one or they are not older."""
        parents = self._parents(self._history.row_of[id])
        for parent in parents:
            if parent >= id or parent not in self._history.row_of:
                what = "no individual of this id" if parent not in self._history.row_of else "a younger individual"
                raise InputError(
                    f"expected the parent {parent} of individual {id} among the earlier individuals, got {what} in "
                    f"{self.path / 'history.jsonl'}; restore the file"
                )
        return parents

    def _origin(self, row: int) -> Record:
        omega, mixing = self._history.individuals[row].omega, self._history.mixture[row].tolist()
        known = all(map(math.isfinite, mixing))
        return {
            "shares": None if omega is None else shares(omega),
            "mixing": dict(zip(self._history.expert_names, mixing, strict=True)) if known else None,
        }

    def _individual(self, row: int) -> Record:
        one = self._history.individuals[row]
        record = {field.name: getattr(one, field.name) for field in dataclasses.fields(one) if field.name != "scores"}
        for name in ("coefficients", "digest", "asked", "evaluated"):
            if record[name] is None:
                del record[name]
        record |= {"parents": self._parents(row), "seconds": sum(one.seconds.values())}
        record["tokens"] = None if one.tokens is None else one.tokens.get("computed")
        return record | self._scores(row)

    def _elites(self, archive: Archive) -> list[Record]:
        return [
            {
                "cell": cell,
                "descriptors": tuple(self._history.scores[row, list(archive.axes)].tolist()),
                "quality": archive.quality[cell],
                "id": self._history.individuals[row].id,
                **self._scores(row),
            }
            for cell, row in sorted(archive.cells.items())
        ]
