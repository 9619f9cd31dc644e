"""The choice of the final model on validation problems: the aggregate, the leading individuals, and a greedy soup of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from cycleqd_jax.evaluation import Evaluation, GenomeEvaluator
from cycleqd_jax.files import load_json, write_json
from cycleqd_jax.operators.merge import weighted_sum
from cycleqd_jax.report.labels import candidate_label
from cycleqd_jax.types import Genome, InputError, Progress, no_progress, stack_trees

__all__ = ["Candidate", "Selection", "select", "selection_facts"]

Key = tuple[str, tuple[int, ...]]
"""What identifies the weights of a candidate: its kind and the ids of its individuals."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model that may become the final one.

    Attributes:
        kind: ``aggregate`` (equation 5, of CycleQD), ``elite`` (one individual, of any search) or ``soup`` (the uniform average
            of several individuals).
        ids: the individuals that it is made of.
        genome: its genome.
    """

    kind: Literal["aggregate", "elite", "soup"]
    ids: tuple[int, ...]
    genome: Genome

    @property
    def key(self) -> Key:
        """Identifies its weights."""
        return self.kind, self.ids

    @property
    def label(self) -> str:
        """Its name in messages, such as ``"elite 12"``."""
        return candidate_label(self.kind, self.ids)


@dataclasses.dataclass(frozen=True)
class Selection:
    """The outcome of :func:`select`.

    Attributes:
        chosen: the candidate with the best average over tasks on the validation problems.
        soup: the greedy soup; an elite where no other elite was accepted.
        facts: see :func:`selection_facts`.
    """

    chosen: Candidate
    soup: Candidate
    facts: Mapping[str, Any]


def select(
    candidates: Sequence[Candidate],
    evaluator: GenomeEvaluator,
    file: Path,
    *,
    problems: Mapping[str, str],
    progress: Progress = no_progress,
    log: Callable[[str], None] = lambda line: None,
    on_evaluated: Callable[[Mapping[str, Evaluation]], None] = lambda evaluated: None,
) -> Selection:
    """Evaluates candidates and a greedy soup of the elites among them, and chooses the best.

    The soup starts with the best elite. The other elites follow from the best to the worst. Each is added to the uniform
    average of genomes if the average score does not fall (Wortsman et al. 2022, "Model soups"). Averages of genomes are
    averages of weights, because weights are affine in the genome in every genome space.

    Scores are compared exactly. Of equal candidates the first is chosen, the soup last. Every result is written to ``file`` as
    soon as it is complete. A selection that was killed evaluates only what the file lacks.

    Args:
        candidates: the candidates; at least one is an elite. Elites are in the order of their scores on the train problems.
        evaluator: evaluates genomes on the validation problems.
        file: ``tables/selection.json`` of the run.
        problems: a digest of the validation problems of every task, by task.
        progress: called after every group of candidates.
        log: called with the outcome in one line.
        on_evaluated: called with the evaluations of every group of candidates by their labels, before they are written. After a
            kill between the two, the same candidates come again.

    Raises:
        InputError: no elite has finite scores; or the file is damaged or belongs to other problems.
        InfraError: a sandbox is broken; the same call continues.
    """
    record = _Record(file, problems, len(candidates), progress, on_evaluated)
    record.ensure(candidates, evaluator)
    elites = [one for one in candidates if one.kind == "elite" and record.average(one) is not None]
    if not elites:
        raise InputError(
            f"expected an elite with finite scores on the validation problems, got none in {file}; choose another output, and "
            "give it more export.elites"
        )
    elites.sort(key=lambda one: record.score(one), reverse=True)  # stable: equals stay in the order of their train scores
    soup, members = elites[0], elites[:1]
    for elite in elites[1:]:
        trial = _mean([*members, elite])
        record.ensure([trial], evaluator)
        if record.average(trial) is not None and record.score(trial) >= record.score(soup):
            soup, members = trial, [*members, elite]
    finalists = [*candidates, *([soup] if soup.kind == "soup" else [])]
    chosen = max(finalists, key=record.score)  # the first of equals
    facts = selection_facts(record.finish(chosen, soup))
    log(f"selected on {facts['problems']} validation problems: {chosen.label}, {100 * facts['average']:.1f} %")
    return Selection(chosen, soup, facts)


def selection_facts(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a model card says of a selection.

    Args:
        found: the content of a finished ``tables/selection.json``.

    Returns:
        JSON-ready: the ``average`` of the chosen candidate on the validation problems, the number of ``problems``, the number
        of ``candidates``, and how many of them are ``elites`` and ``soups``. Of all soups that were tried only the final one is
        a candidate.
    """
    key = found["chosen"]["kind"], found["chosen"]["ids"]
    (chosen,) = [one for one in found["candidates"] if (one["kind"], one["ids"]) == key]
    kinds = [one["kind"] for one in found["candidates"] if one["kind"] != "soup"]
    soups = int(len(found["soup"]) > 1)  # a soup of one individual is that individual
    numbers = {"candidates": len(kinds) + soups, "elites": kinds.count("elite"), "soups": soups}
    return {"average": chosen["average"], "problems": sum(map(len, chosen["items"].values())), **numbers}


def _mean(members: Sequence[Candidate]) -> Candidate:
    """The uniform average of elites."""
    genome = weighted_sum(stack_trees([one.genome for one in members]), jnp.full(len(members), 1 / len(members), jnp.float32))
    return Candidate("soup", tuple(one.ids[0] for one in members), genome)


class _Record:
    """What is known of the candidates; its file is written with every result."""

    def __init__(
        self,
        file: Path,
        problems: Mapping[str, str],
        total: int,
        progress: Progress,
        on_evaluated: Callable[[Mapping[str, Evaluation]], None],
    ) -> None:
        self._file = file
        self._problems = dict(problems)
        self._total = total
        self._progress = progress
        self._on_evaluated = on_evaluated
        self._entries: dict[Key, dict[str, Any]] = {}
        if file.exists():
            self._entries = self._read()

    def _read(self) -> dict[Key, dict[str, Any]]:
        try:
            tree = load_json(self._file)
            entries = {(str(one["kind"]), tuple(map(int, one["ids"]))): one for one in tree["candidates"]}
            for entry in entries.values():
                _average(entry)
            problems = dict(tree["problems"])
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            raise InputError(
                f"expected the candidates of a selection, got {type(error).__name__} {error} in {self._file}; remove the "
                "file, and the candidates are evaluated again"
            ) from error
        if problems != self._problems:
            raise InputError(
                f"expected the validation problems {self._problems} of this run, got a selection on {problems} in "
                f"{self._file}; restore the problems, or remove the file"
            )
        return entries

    def ensure(self, candidates: Sequence[Candidate], evaluator: GenomeEvaluator) -> None:
        """Evaluates the candidates that are not known.

        The groups do not depend on what is known, because the last bits of results may depend on the group.
        """
        size = evaluator.size
        groups = [candidates[i : i + size] for i in range(0, len(candidates), size)]
        groups = [group for group in groups if any(one.key not in self._entries for one in group)]

        def on_result(i: int, evaluations: list[Evaluation]) -> None:
            new = {one.label: x for one, x in zip(groups[i], evaluations, strict=True) if one.key not in self._entries}
            self._on_evaluated(new)
            for one, evaluation in zip(groups[i], evaluations, strict=True):
                self._entries.setdefault(one.key, _entry(one, evaluation))
            self._write({})
            self._progress("select", len(self._entries), max(self._total, len(self._entries)), {})

        evaluator([[one.genome for one in group] for group in groups], on_result)

    def average(self, candidate: Candidate) -> Fraction | None:
        """The mean over tasks of the mean score over problems, exactly; None if the candidate could not be evaluated."""
        return _average(self._entries[candidate.key])

    def score(self, candidate: Candidate) -> Fraction:
        """The average; below all averages if there is none."""
        average = self.average(candidate)
        return Fraction(-1) if average is None else average

    def finish(self, chosen: Candidate, soup: Candidate) -> Mapping[str, Any]:
        """Writes the outcome; returns the content of the file."""
        return self._write({"soup": list(soup.ids), "chosen": {"kind": chosen.kind, "ids": list(chosen.ids)}})

    def _write(self, outcome: Mapping[str, Any]) -> Mapping[str, Any]:
        content = {"problems": self._problems, "candidates": [*self._entries.values()], **outcome}
        write_json(self._file, content)
        return content


def _entry(candidate: Candidate, evaluation: Evaluation) -> dict[str, Any]:
    """What the file holds of a candidate."""
    entry: dict[str, Any] = {"kind": candidate.kind, "ids": list(candidate.ids), "error": evaluation.error}
    entry |= {"scores": evaluation.scores, "items": evaluation.items}
    entry |= {} if evaluation.tokens is None else {"tokens": evaluation.tokens}
    average = _average(entry)
    return {**entry, "average": None if average is None else float(average)}


def _average(entry: Mapping[str, Any]) -> Fraction | None:
    if entry["error"] is not None:
        return None
    means = [sum(map(Fraction, scores), Fraction(0)) / len(scores) for scores in entry["items"].values()]
    return sum(means, Fraction(0)) / len(means)
